"""Which policies of a run are held against which, and by how much they differ on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.intervals import paired_bootstrap_ci
from pipeline.recipe.lineage import BASE, POLICY_KINDS, heldout_reward, policy_of
from pipeline.recipe.schema import Recipe

Values = Mapping[str, Sequence[float | None]]
"""By policy: one value per prompt, the prompts the same for all; None where a prompt could not be judged."""


def reference_policy(recipe: Recipe) -> str:
    """The policy that divergence is measured from: the one that the first DPO or PPO stage starts from."""
    for name, stage in recipe.stages.items():
        if stage.kind in ("dpo", "ppo"):
            return policy_of(recipe, name) or BASE
    return BASE


def judge(recipe: Recipe) -> str | None:
    """The reward stage whose model scores every policy: the last one that is not held out; None without any."""
    kept_for_judging = heldout_reward(recipe)
    names = (name for name in reversed(recipe.stages) if recipe.stages[name].kind == "reward")
    return next((name for name in names if name != kept_for_judging), None)


def judges(recipe: Recipe) -> dict[str, str]:
    """The reward stages whose models score every policy, by the figure they give."""
    named = {"score": judge(recipe), "score_heldout": heldout_reward(recipe)}
    return {figure: name for figure, name in named.items() if name is not None}


def pairs(recipe: Recipe) -> list[tuple[str, str]]:
    """Each stage's policy behind the one it started from, then PPO behind DPO where both started from the same one."""
    kinds = {name: stage.kind for name, stage in recipe.stages.items() if stage.kind in POLICY_KINDS}
    starts = {name: policy_of(recipe, name) or BASE for name in kinds}
    siblings = [
        (one, other)
        for other in kinds
        for one in kinds
        if (kinds[one], kinds[other]) == ("dpo", "ppo") and starts[one] == starts[other]
    ]
    return [(start, name) for name, start in starts.items()] + siblings


def differences(metric: str, compared: Sequence[tuple[str, str]], values: Values) -> list[dict[str, Any]]:
    """For each pair of policies the mean difference with a paired interval, over the prompts judged for both."""
    rows = []
    for before, after in compared:
        both = [
            (a, b)
            for a, b in zip(values.get(before, ()), values.get(after, ()), strict=True)
            if a is not None and b is not None
        ]
        if not both:
            continue
        found = paired_bootstrap_ci([a for a, _ in both], [b for _, b in both])
        rows.append({
            "metric": metric, "from": before, "to": after, "difference": found.estimate, "ci95": found.bounds,
            "n": found.n,
        })  # fmt: skip
    return rows
