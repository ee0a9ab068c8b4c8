"""What every block of a recipe is: strict, frozen, and bounded in its numbers. Layer 0."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class Settings(BaseModel):
    """Base of all recipe blocks: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, populate_by_name=True, allow_inf_nan=False)
