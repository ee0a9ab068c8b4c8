"""Which held-out prompts the policies answer: the same ones in every run on the same data."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from data_prep.build import encode, prompts, without_seen
from data_prep.chat import ChatFormatter
from data_prep.clean import limit_records
from data_prep.records import Prompt
from pipeline.recipe.lineage import asks_policies
from pipeline.recipe.schema import Recipe

READABLE_PROMPTS = 24
"""So many prompts are answered for reading when there is neither rule nor judge to score answers by."""
SEED = 0
"""Prompts are drawn alike in every run, so that runs which differ by seed are judged on the same ones."""
Chosen = list[tuple[Prompt, list[int]]]
"""Prompts with their token ids."""


def choose_prompts(recipe: Recipe, formatter: ChatFormatter, seen: Collection[str]) -> Chosen:
    """Held-out prompts that no policy was trained on; those with a rule first, as only they can be scored by rule.

    Args:
        recipe: says how many, and from which data.
        formatter: turns them into tokens.
        seen: hashes of the prompts that any of the run's models was trained on.
    """
    if not asks_policies(recipe):
        return []
    found = prompts(recipe.data)
    unseen = without_seen(found.held_out, frozenset(seen))
    with_rule = [prompt for prompt in unseen if prompt.check is not None]
    settings = recipe.evaluation
    chosen = limit_records(with_rule or unseen, max(settings.prompts, settings.kl_prompts), SEED)
    longest = recipe.data.prompts.max_prompt_length
    encoded = encode(chosen, lambda prompt: formatter.prompt(prompt, longest), found.report)
    return [(prompt, row.ids) for prompt, row in zip(encoded.records, encoded.rows, strict=True)]


def greedy_count(recipe: Recipe, chosen: Sequence[tuple[Prompt, list[int]]]) -> int:
    """How many of them are answered greedily."""
    wanted = recipe.evaluation.prompts
    can_be_judged = recipe.evaluation.judge is not None or any(prompt.check is not None for prompt, _ in chosen)
    return wanted if can_be_judged else min(wanted, READABLE_PROMPTS)
