"""Which held-out rows the policies are measured on: the same ones in every run on the same data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from data_prep.build import encode, encode_demonstrations, prompts, without_seen
from data_prep.chat import ChatFormatter, EncodedDemonstration
from data_prep.clean import limit_records
from data_prep.records import Prompt
from pipeline.recipe.lineage import ASKING_TASKS, asks_policies, prompts_from
from pipeline.recipe.schema import Recipe

READABLE_PROMPTS = 24
"""So many prompts are answered for reading when there is neither rule nor judge to score answers by."""
SEED = 0
"""Prompts are drawn alike in every run, so that runs which differ by seed are judged on the same ones."""
NO_DEMONSTRATIONS = (
    "No demonstration is left to measure perplexity on: data.sft holds none out that no stage was trained on; hold "
    "some out with data.sft.eval_fraction, or take perplexity out of evaluation.tasks."
)
Chosen = list[tuple[Prompt, list[int]]]
"""Prompts with their token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the policies are asked."""

    prompts: Chosen
    why_none: str = ""
    """Where somebody was to be asked and there is no prompt: one sentence on what became of them all."""


def choose_prompts(recipe: Recipe, formatter: ChatFormatter, seen: Collection[str]) -> Choice:
    """Held-out prompts that no policy was trained on; those with a rule first, as only they can be scored by rule.

    Args:
        recipe: says how many, and from which data.
        formatter: turns them into tokens.
        seen: hashes of the prompts that any of the run's models was trained on.
    """
    if not asks_policies(recipe):
        return Choice(prompts=[])
    found = prompts(recipe.data)
    unseen = without_seen(found.held_out, frozenset(seen))
    with_rule = [prompt for prompt in unseen if prompt.check is not None]
    settings = recipe.evaluation
    chosen = limit_records(with_rule or unseen, max(settings.prompts, settings.kl_prompts), SEED)
    longest = recipe.data.prompts.max_prompt_length
    report = {**found.report, "dropped": {}}
    encoded = encode(chosen, lambda prompt: formatter.prompt(prompt, longest), report)
    rows = [(prompt, row.ids) for prompt, row in zip(encoded.records, encoded.rows, strict=True)]
    why_none = "" if rows else _why_none(recipe, len(found.held_out), len(unseen), report["dropped"])
    return Choice(prompts=rows, why_none=why_none)


def _why_none(recipe: Recipe, held_out: int, unseen: int, dropped: Mapping[str, int]) -> str:
    """What took the last prompt, and what to type about it."""
    name = prompts_from(recipe)
    settings = recipe.data.preference if name == "preference" else recipe.data.sft
    assert settings is not None  # the prompts have been read
    if not held_out:
        became = f"data.{name} holds none out (eval_fraction is {settings.eval_fraction:g})"
        remedy = f"hold some out with data.{name}.eval_fraction"
    elif not unseen:
        became = f"all {held_out} that data.{name} holds out were trained on by a stage of this run"
        remedy = "hold the same prompts out of every data set, with one eval_fraction for all"
    else:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        became = f"none of the {unseen} that data.{name} holds out can be put to the model ({reasons})"
        remedy = "look at them with `trivet data inspect`"
    asking = ", ".join(task for task in recipe.evaluation.tasks if task in ASKING_TASKS)
    asking = asking or "the judge"
    return (
        f"No prompt is left to ask the policies: {became}. {asking} measured nothing; {remedy}, or take what needs "
        "prompts out of evaluation.tasks."
    )


def greedy_count(recipe: Recipe, chosen: Sequence[tuple[Prompt, list[int]]]) -> int:
    """How many of them are answered greedily."""
    wanted = recipe.evaluation.prompts
    can_be_judged = recipe.evaluation.judge is not None or any(prompt.check is not None for prompt, _ in chosen)
    return wanted if can_be_judged else min(wanted, READABLE_PROMPTS)


def choose_demonstrations(
    recipe: Recipe, formatter: ChatFormatter, seen: Collection[str]
) -> list[EncodedDemonstration]:
    """Held-out demonstrations whose prompts no policy was trained on; arguments as for `choose_prompts`."""
    _, held_out, _ = encode_demonstrations(recipe.data, formatter, recipe.seed)
    unseen = {id(record) for record in without_seen(held_out.records, frozenset(seen))}
    return [row for record, row in zip(held_out.records, held_out.rows, strict=True) if id(record) in unseen]
