"""What SFT made of the base model, and which SFT recipe made more of it, beyond what another seed of it does.

An SFT policy has no reference that it is held to, so nothing is compared at equal KL here: differences are over the
same prompts, as they stand. Policies of one recipe, seeds apart, are one method, whatever runs they stand in: between
them there is no verdict, they say how much chance does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from evaluation.comparison.equal_kl import METRICS, Pair
from evaluation.comparison.load import BASE, ComparedRun
from evaluation.comparison.seeds import SeedGroup, Spread, spread_of
from evaluation.comparison.spots import values_of
from evaluation.comparison.sweeps import Sweep
from evaluation.frontier import Array
from evaluation.intervals import SHARE, paired_bootstrap_ci

_BY_CHANCE = ("seed", "parents")
"""Of a stage's settings: what seeds of one recipe differ in; parents are looked at by what they were made by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A policy where it stands."""

    compared: ComparedRun
    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """One SFT recipe."""

    name: str
    seeds: tuple[tuple[Held, ...], ...]
    """For each artefact, that is for each seed, the runs that hold it."""

    @property
    def runs(self) -> tuple[str, ...]:
        """Labels of all that hold any of its policies."""
        return tuple(dict.fromkeys(held.compared.label for each in self.seeds for held in each))


def tuned_policies(runs: Sequence[ComparedRun], groups: Sequence[SeedGroup]) -> list[Tuned]:
    """The SFT recipes among some runs, in the order in which they come up.

    Args:
        runs: all that are compared.
        groups: of runs that differ by their seed alone, for those whose manifests do not say what made them.
    """
    recipes: dict[str, dict[str, list[Held]]] = {}
    for compared in runs:
        for policy in compared.run.policies:
            stage = compared.stage(policy)
            if stage is None or stage.kind != "sft":
                continue
            identity, own = compared.identity(policy), _recipe(compared, policy, groups)
            # One artefact is one seed of one recipe, in whatever company it stands.
            seeds = next((seeds for seeds in recipes.values() if identity in seeds), recipes.get(own, {}))
            recipes.setdefault(own, seeds)
            seeds.setdefault(identity, []).append(Held(compared=compared, policy=policy))
    distinct = list({id(seeds): seeds for seeds in recipes.values()}.values())
    found = [tuple(tuple(each) for each in seeds.values()) for seeds in distinct]
    names = [seeds[0][0].policy for seeds in found]
    return [Tuned(name=_name(name, seeds, names), seeds=seeds) for name, seeds in zip(names, found, strict=True)]


def tuned_spreads(recipes: Iterable[Tuned]) -> list[Spread]:
    """Every measure of every SFT recipe that was trained by several seeds."""
    return [spread for one in recipes for spread in _spreads(one)]


def tuned_pairs(recipes: Sequence[Tuned], sweeps: Sequence[Sweep]) -> list[Pair]:
    """Each SFT recipe beside the base model, then every two beside each other, on the same prompts.

    Values of one sweep are left to its own table, which counts how many were tried.
    """
    found = []
    for metric in METRICS:
        found += [_pair(metric, None, one) for one in recipes]
        found += [_pair(metric, a, b) for a, b in combinations(recipes, 2) if not _of_one_sweep(a, b, sweeps)]
    return [pair for pair in found if pair is not None]


def _recipe(compared: ComparedRun, policy: str, groups: Sequence[SeedGroup]) -> str:
    """What tells one SFT recipe from another: its settings without the seed; unknown, the run's group, or itself."""
    group = next((at for at, group in enumerate(groups) if compared.label in group.runs), None)
    unknown = compared.identity(policy) if group is None else f"{policy} of group {group}"
    return _made_by(compared, policy) or unknown


def _made_by(compared: ComparedRun, name: str) -> str:
    """The settings of a stage and of all it stands on, seeds apart; empty where a manifest does not say."""
    stage = compared.stage(name)
    if stage is None or stage.provenance is None or not stage.provenance.settings:
        return ""
    own: dict[str, Any] = {key: value for key, value in stage.provenance.settings.items() if key not in _BY_CHANCE}
    parents = [(parent.role, _made_by(compared, parent.stage)) for parent in stage.provenance.parents]
    return json.dumps([own, parents], sort_keys=True, default=str) if all(made for _, made in parents) else ""


def _name(policy: str, seeds: Sequence[Sequence[Held]], names: Sequence[str]) -> str:
    runs = dict.fromkeys(held.compared.label for each in seeds for held in each)
    told = [", ".join(runs)] if names.count(policy) > 1 else []
    told += [f"mean of {len(seeds)} seeds"] if len(seeds) > 1 else []
    return f"{policy} ({'; '.join(told)})" if told else policy


def _spreads(one: Tuned) -> Iterable[Spread]:
    """Over one run of each seed; where runs hold different figures of a policy, over those that any run has of all."""
    known: set[str] = set()
    for compared_alike in _choices(one):
        for spread in spread_of([(held.compared, held.policy) for held in compared_alike]):
            if spread.measure.name not in known:
                known.add(spread.measure.name)
                yield spread


def _choices(one: Tuned) -> Iterable[list[Held]]:
    """One run of each seed: first runs that one reward model scored alike, then the first of each."""
    judges = dict.fromkeys(held.compared.score_by for each in one.seeds for held in each)
    for judge in judges:
        alike = [[held for held in each if held.compared.score_by == judge] for each in one.seeds]
        if all(alike):
            yield [each[0] for each in alike]
    yield [each[0] for each in one.seeds]


def _of_one_sweep(a: Tuned, b: Tuned, sweeps: Sequence[Sweep]) -> bool:
    return any({*a.runs, *b.runs} <= set(sweep.runs) for sweep in sweeps)


def _pair(metric: str, a: Tuned | None, b: Tuned) -> Pair | None:
    """b less a, or less the base model; None where either was not measured, or not by one reward model."""
    for judge in _judges(metric, b):
        of_b = _mean(metric, b, judge)
        of_a = _mean(metric, b, judge, base=True) if a is None else _mean(metric, a, judge)
        if of_a is None or of_b is None or of_a.size != of_b.size:
            continue
        both = np.isfinite(of_a) & np.isfinite(of_b)
        if both.any():
            within = SHARE if metric == "rule_accuracy" else None
            difference = paired_bootstrap_ci(of_a[both], of_b[both], within=within)
            return Pair(
                metric=metric, a=BASE if a is None else a.name, b=b.name, kl=None, value_a=float(of_a[both].mean()),
                value_b=float(of_b[both].mean()), difference=difference, same_reference=True,
                runs_a=() if a is None else a.runs, runs_b=b.runs,
            )  # fmt: skip
    return None


def _judges(metric: str, one: Tuned) -> list[str]:
    return list(dict.fromkeys(held.compared.judge_of(metric) for each in one.seeds for held in each))


def _mean(metric: str, one: Tuned, judge: str, *, base: bool = False) -> Array | None:
    """Prompt by prompt the mean over the seeds of what this reward model says; None where a seed lacks it."""
    rows = []
    for each in one.seeds:
        judged = [held for held in each if held.compared.judge_of(metric) == judge]
        values = (values_of(held.compared, BASE if base else held.policy, metric) for held in judged)
        rows.append(next((value for value in values if value is not None), None))
    whole = [row for row in rows if row is not None]
    if len(whole) < len(rows) or len({row.size for row in whole}) > 1:
        return None
    found: Array = np.mean(whole, axis=0)
    return found
