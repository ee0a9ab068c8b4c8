"""Which policies of a run are held against which, and by how much they differ on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.intervals import SHARE, paired_bootstrap_ci, paired_ratio_ci
from pipeline.recipe.lineage import BASE, POLICY_KINDS, heldout_reward, policy_of
from pipeline.recipe.schema import Recipe

Values = Mapping[str, Sequence[float | None]]
"""By policy: one value per prompt, the prompts the same for all; None where a prompt could not be judged."""

Sums = Mapping[str, Sequence[tuple[float, float]]]
"""By policy: per row what is summed up, and the weight that the sum is divided by."""

_WITHIN = dict.fromkeys(
    ("rule_accuracy", "win_rate", "eos_rate", "refusal_rate", "repetition", "refuses_harmful", "refuses_harmless",
     "admits_unknown", "doubts_known", "gives_in"),
    SHARE,
)  # fmt: skip
"""What a figure of one answer lies within, where that is known; scores have no bounds."""


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


def measured_policies(recipe: Recipe) -> frozenset[str]:
    """The policies that are measured: all, or those that the recipe names and the reference beside them."""
    trained = (name for name, stage in recipe.stages.items() if stage.kind in POLICY_KINDS)
    named = recipe.evaluation.policies
    return frozenset((*named, reference_policy(recipe)) if named else (BASE, *trained))


def pairs(recipe: Recipe) -> list[tuple[str, str]]:
    """Each stage's policy behind the one it started from, then PPO behind DPO where both started from the same one.

    Only where both are measured.
    """
    measured = measured_policies(recipe)
    kinds = {name: stage.kind for name, stage in recipe.stages.items() if stage.kind in POLICY_KINDS}
    starts = {name: policy_of(recipe, name) or BASE for name in kinds}
    siblings = [
        (one, other)
        for other in kinds
        for one in kinds
        if (kinds[one], kinds[other]) == ("dpo", "ppo") and starts[one] == starts[other]
    ]
    every = [*((start, name) for name, start in starts.items()), *siblings]
    return [pair for pair in every if measured.issuperset(pair)]


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
        found = paired_bootstrap_ci([a for a, _ in both], [b for _, b in both], within=_WITHIN.get(metric))
        rows.append({
            "metric": metric, "from": before, "to": after, "difference": found.estimate, "ci95": found.bounds,
            "n": found.n,
        })  # fmt: skip
    return rows


def ratio_differences(
    metric: str, compared: Sequence[tuple[str, str]], sums: Sums, *, exponent: bool = False
) -> list[dict[str, Any]]:
    """The same for a figure that is a ratio of sums over all rows, or `exponent` of it, as perplexity is."""
    rows = []
    for before, after in compared:
        if not (sums.get(before) and sums.get(after)):
            continue
        found = paired_ratio_ci(sums[before], sums[after], exponent=exponent)
        if found.estimate is not None:
            rows.append({
                "metric": metric, "from": before, "to": after, "difference": found.estimate, "ci95": found.bounds,
                "n": found.n,
            })  # fmt: skip
    return rows
