"""What the parameters of an answer may be, and what they are where nobody says."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.9

Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=1000)]
MinP = Annotated[float, Field(ge=0, le=1)]
RepeatPenalty = Annotated[float, Field(ge=0.1, le=2)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
"""Of presence and of frequency."""
TokenLimit = Annotated[int, Field(ge=1)]
