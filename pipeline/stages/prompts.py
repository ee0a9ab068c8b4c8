"""Prompts that a policy answers while it trains: with their ids, and with room for an answer. Layer 4."""

from __future__ import annotations

from data_prep.records import Prompt
from pipeline.context import StageContext
from pipeline.errors import RecipeError

PromptRow = tuple[Prompt, list[int]]


def require_room(context: StageContext, max_new_tokens: int, longest: int, positions: int | None) -> None:
    """Refuse prompts that leave no room for an answer in the model's context.

    Args:
        context: of the stage.
        max_new_tokens: of an answer.
        longest: tokens of the longest prompt.
        positions: tokens that the model can see at once, where it says so.

    Raises:
        RecipeError: with what would fit.
    """
    if positions is not None and longest + max_new_tokens > positions:
        raise RecipeError(
            f"stage {context.stage}: the longest prompt has {longest} tokens, with max_new_tokens "
            f"{max_new_tokens} that is more than the model's context of {positions}; set "
            f"data.prompts.max_prompt_length to {max(positions - max_new_tokens, 1)} or less"
        )
