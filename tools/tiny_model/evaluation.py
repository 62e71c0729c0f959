"""Measures the skills on questions that the training never saw.

A question counts as right when the greedy answer equals the expected one to the last
letter. Teacher forcing decides that in one pass: the greedy answer is exact if and only
if every token of the expected answer is the most likely one after those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

from tiny_model import smalltalk
from tiny_model.handwritten import HANDWRITTEN
from tiny_model.lessons import Limits, Teacher
from tiny_model.prompt import NOT_IN_DOCUMENTS, Document, Message, system_text
from tiny_model.tokenizer import Encoder
from tiny_model.training import IGNORED, answer_logits, pad

EVALUATION_SEED = 990_001
SYSTEM_PROMPT = "You are a helpful assistant."


@dataclass(frozen=True)
class Score:
    """The result for one skill."""

    skill: str
    right: int
    asked: int
    mean_tokens: float


def is_exact(model: LlamaForCausalLM, encoder: Encoder, conversation: list[Message]) -> bool:
    """Tell whether the model would give the last message of a conversation word for word."""
    prompt, (ids, _) = encoder.prompt(conversation[:-1]), encoder.conversation(conversation)
    learned = [position >= len(prompt) for position in range(len(ids))]
    inputs, targets = pad([(ids, learned)])
    with torch.no_grad():
        best = answer_logits(model, inputs, targets).argmax(-1)
    return bool((best == targets[targets != IGNORED]).all())


Draw = Callable[[Teacher], list[Message]]


def _reading(limits: Limits, refusal: bool, low: int, high: int) -> Draw:
    """Draw lessons with a given number of sentences that end in an answer or in a refusal."""

    def draw(teacher: Teacher) -> list[Message]:
        while True:
            lesson = teacher.reading(limits)
            document_lines = lesson[0].content.split("<documents>", 1)[-1]
            sentences = document_lines.count(". ") + document_lines.count(".\n")
            answer = lesson[-1].content
            stock = answer not in document_lines and answer != NOT_IN_DOCUMENTS
            if low <= sentences <= high and not stock and (answer == NOT_IN_DOCUMENTS) == refusal:
                return lesson

    return draw


def _remembering(personal: bool) -> Draw:
    def draw(teacher: Teacher) -> list[Message]:
        words = teacher.words
        told, asked = smalltalk.personal_fact(words, teacher.facts) if personal else smalltalk.name_told(words)
        between = [smalltalk.small_talk(words) for _ in range(words.rng.randint(0, 3))]
        messages = [Message("system", SYSTEM_PROMPT)]
        for question, answer in [told, *between, asked]:
            messages += [Message("user", question), Message("assistant", answer)]
        return messages

    return draw


def _single(turn: Callable[[Teacher], smalltalk.Turn]) -> Draw:
    def draw(teacher: Teacher) -> list[Message]:
        question, answer = turn(teacher)
        return [Message("system", SYSTEM_PROMPT), Message("user", question), Message("assistant", answer)]

    return draw


SKILLS: tuple[tuple[str, Draw], ...] = (
    ("answer from one document, 1-6 sentences", _reading(Limits(6, 1, documents=1), False, 1, 7)),
    ("answer from several documents, up to 16 sentences", _reading(Limits(16, 1), False, 6, 18)),
    ("answer from several documents, 20-40 sentences", _reading(Limits(40, 1), False, 20, 44)),
    ("answer from several documents, 60-100 sentences", _reading(Limits(100, 1), False, 60, 110)),
    ("refusal, 1-6 sentences", _reading(Limits(6, 1, documents=1), True, 1, 7)),
    ("refusal, up to 16 sentences", _reading(Limits(16, 1), True, 6, 18)),
    ("refusal, 20-40 sentences", _reading(Limits(40, 1), True, 20, 44)),
    ("name told earlier in the chat", _remembering(personal=False)),
    ("other personal fact told earlier", _remembering(personal=True)),
    ("repeat a nonsense text", _single(lambda t: smalltalk.repetition(t.words))),
    ("stock answers to small talk (seen questions)", _single(lambda t: smalltalk.small_talk(t.words))),
    ("open question without documents", _single(lambda t: smalltalk.open_question(t.words, t.facts))),
)


def handwritten_conversations() -> list[list[Message]]:
    """Return the questions that a person wrote, about texts that no template made."""
    conversations = []
    for documents, question, answer in HANDWRITTEN:
        shown = [Document(f"notes-{number}.md", text, 0.9 - number / 10) for number, text in enumerate(documents, 1)]
        conversations.append(
            [
                Message("system", system_text(SYSTEM_PROMPT, shown)),
                Message("user", question),
                Message("assistant", answer),
            ]
        )
    return conversations


def _score(model: LlamaForCausalLM, encoder: Encoder, skill: str, asked: list[list[Message]]) -> Score:
    right = sum(is_exact(model, encoder, conversation) for conversation in asked)
    lengths = sum(len(encoder.prompt(conversation[:-1])) for conversation in asked)
    return Score(skill, right, len(asked), lengths / len(asked))


def evaluate(model: LlamaForCausalLM, encoder: Encoder, samples: int) -> list[Score]:
    """Measure every skill on `samples` fresh questions."""
    model.train(False)
    scores = []
    for number, (skill, draw) in enumerate(SKILLS):
        teacher = Teacher(EVALUATION_SEED + number)
        conversations = [draw(teacher) for _ in range(samples)]
        scores.append(_score(model, encoder, skill, conversations))
    for refusal, skill in ((False, "handwritten texts, answer"), (True, "handwritten texts, refusal")):
        chosen = [c for c in handwritten_conversations() if (c[-1].content == NOT_IN_DOCUMENTS) == refusal]
        scores.append(_score(model, encoder, skill, chosen))
    return scores


def table(scores: list[Score]) -> str:
    """Return the scores as a Markdown table."""
    rows = ["| skill | mean prompt tokens | exact | of | share |", "| --- | ---: | ---: | ---: | ---: |"]
    rows += [
        f"| {s.skill} | {s.mean_tokens:.0f} | {s.right} | {s.asked} | {100 * s.right / s.asked:.1f} % |" for s in scores
    ]
    return "\n".join(rows)
