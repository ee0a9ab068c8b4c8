"""Runs that are the same but for their seed: by how much figures differ between them is what chance alone does.

An interval over prompts says how the same two policies would compare on other prompts. It does not say how another
seed would have trained them; several seeds of one recipe do. Pure functions, light.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from evaluation.comparison.load import BASE, ComparedRun
from evaluation.comparison.recipes import flat
from evaluation.report.files import number
from evaluation.report.measures import Measure, measured

_ITS_OWN = ("seed", "name", "output_dir")
"""Keys in which seeds of one recipe differ."""
PREFERRED = ("dpo", "ppo")
"""Kinds of stages that train from preferences; what SFT's seeds do is another spread (`fine_tuning`)."""
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedGroup:
    """Runs of one recipe with different seeds."""

    runs: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One measure of one policy over the seeds of a group."""

    policy: str
    kind: str
    measure: Measure
    runs: tuple[str, ...]
    values: tuple[float, ...]
    identities: tuple[str, ...] = ()
    """The policies themselves, by artefact: two groups may hold the same ones."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation between seeds."""
        return stdev(self.values)


def seed_groups(runs: Sequence[ComparedRun]) -> list[SeedGroup]:
    """The groups of at least two runs whose recipes differ in their seed alone."""
    found: dict[str, list[tuple[str, int]]] = {}
    for compared in runs:
        recipe = flat(compared.recipe)
        seed = recipe.get("seed")
        if isinstance(seed, int):
            rest = {key: value for key, value in recipe.items() if key not in _ITS_OWN}
            found.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append((compared.label, seed))
    groups = [SeedGroup(runs=tuple(r for r, _ in each), seeds=tuple(s for _, s in each)) for each in found.values()]
    return [group for group in groups if len(set(group.seeds)) > 1]


def spreads(runs: Sequence[ComparedRun], groups: Sequence[SeedGroup]) -> list[Spread]:
    """Every measure of every policy that was trained by several seeds; scores only where one model gave them all."""
    by_label = {compared.label: compared for compared in runs}
    found = []
    for group in groups:
        members = [by_label[label] for label in group.runs]
        for policy in dict.fromkeys(policy for one in members for policy in one.run.policies if policy != BASE):
            holding = [one for one in members if policy in one.run.policies]
            # A policy that several runs share is one policy, not several seeds of one.
            distinct = list({one.identity(policy): one for one in holding}.values())
            found += list(spread_of([(one, policy) for one in distinct]))
    return found


def spread_of(holding: Sequence[tuple[ComparedRun, str]]) -> Iterable[Spread]:
    """Every measure of one policy over its seeds.

    Args:
        holding: one run of each seed, and the policy's name in it.
    """
    if len(holding) < 2:
        return
    rows = [one.run.policies[policy] for one, policy in holding]
    first, name = holding[0]
    stage = first.stage(name)
    for measure in measured(rows):
        values = [number(row.get(measure.name)) for row in rows]
        known = [(*one, value) for one, value in zip(holding, values, strict=True) if value is not None]
        if len(known) < 2 or len({one.judge_of(measure.name) for one, _ in holding}) > 1:
            continue
        yield Spread(
            policy=name, kind=stage.kind if stage else "", measure=measure,
            runs=tuple(one.label for one, _, _ in known), values=tuple(value for _, _, value in known),
            identities=tuple(one.identity(policy) for one, policy, _ in known),
        )  # fmt: skip


def floors(found: Sequence[Spread], kinds: Sequence[str] = PREFERRED) -> Mapping[str, float]:
    """By measure: what two runs of one and the same recipe differ by in 19 cases of 20, from the seeds that there are.

    The deviation between seeds is pooled over policies; with few seeds Student's quantile is large, the floor with it.

    Args:
        found: the spreads; policies that stand in several of them count once.
        kinds: of the stages whose policies count: those that verdicts are on.
    """
    groups: dict[str, list[Spread]] = {}
    for one in sorted(found, key=lambda spread: -len(spread.values)):
        each = groups.setdefault(one.measure.name, []) if one.kind in kinds else []
        if not any(set(one.identities) & set(other.identities) for other in each):
            each.append(one)
    return {name: _floor(each) for name, each in groups.items()}


def _floor(each: Sequence[Spread]) -> float:
    free = sum(len(one.values) - 1 for one in each)
    squares = sum(one.deviation**2 * (len(one.values) - 1) for one in each)
    return student(free) * math.sqrt(2 * squares / free)


def student(free: int) -> float:
    """The two-sided 95 % quantile of Student's t; exact to three places up to 20 degrees of freedom."""
    return _STUDENT[free - 1] if free <= len(_STUDENT) else 1.960 + 2.4 / free


def same_recipe(groups: Sequence[SeedGroup], a: str, b: str) -> bool:
    """Whether two runs, by label, differ by their seed alone."""
    return any(a in group.runs and b in group.runs for group in groups)
