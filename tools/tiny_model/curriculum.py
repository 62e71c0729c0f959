"""What is taught in which order."""

from __future__ import annotations

from dataclasses import dataclass

from tiny_model.lessons import Limits


@dataclass(frozen=True)
class Stage:
    """One step of a course. What the three shares leave over goes to reading."""

    tokens: int
    batch_tokens: int
    limits: Limits
    copying: float
    chatting: float
    prose: float


@dataclass(frozen=True)
class Course:
    """Some stages under one schedule of the learning rate."""

    learning_rate: float
    hold: float  # the share of the course after which the rate begins to fall
    stages: tuple[Stage, ...]

    @property
    def tokens(self) -> int:
        """The length of the course."""
        return sum(stage.tokens for stage in self.stages)


# Looking back is learned on short texts first; long texts only make sense after that.
FOUNDATION = Course(
    learning_rate=4e-3,
    hold=0.6,
    stages=(
        Stage(1_500_000, 2048, Limits(sentences=2, turns=4, nonsense=0.3), 0.50, 0.15, 0.00),
        Stage(4_000_000, 3072, Limits(sentences=4, turns=4, nonsense=0.3), 0.12, 0.18, 0.04),
        Stage(6_000_000, 4096, Limits(sentences=12, turns=4), 0.05, 0.18, 0.04),
        Stage(4_500_000, 4096, Limits(sentences=30, turns=4), 0.04, 0.18, 0.03),
        Stage(2_500_000, 4096, Limits(sentences=110, turns=5), 0.04, 0.18, 0.02),
    ),
)

# Finding the right sentence is learned best from many questions about one text, without
# the prose, whose loss drowns that of the questions.
RETRIEVAL = Course(
    learning_rate=2.5e-3,
    hold=0.1,
    stages=(
        Stage(2_000_000, 3072, Limits(4, turns=10, scenes=0.45, plainness=0.6), 0.02, 0.08, 0.00),
        Stage(2_500_000, 4096, Limits(12, turns=10, scenes=0.45, plainness=0.6), 0.02, 0.08, 0.00),
        Stage(1_000_000, 4096, Limits(32, turns=10, scenes=0.45, plainness=0.6), 0.02, 0.10, 0.00),
        Stage(500_000, 4096, Limits(110, turns=10, scenes=0.45, plainness=0.6), 0.02, 0.10, 0.00),
    ),
)

COURSES = (FOUNDATION, RETRIEVAL)
