"""The methods of a sweep as paths: one for each, through all its values in the order of their divergence.

Policies are on one path only where their divergence is counted from the same reference, by artefact, and their values
are by the same reward model. Keys whose values are words (a loss, a schedule) make methods of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from evaluation.comparison.load import ComparedRun
from evaluation.comparison.paths import PathRow, Place, band_of, best_of_n, place_of, trained_away
from evaluation.comparison.spots import spot_of
from evaluation.comparison.sweeps import Point, Sweep
from evaluation.frontier import Spot


@dataclass(frozen=True, slots=True)
class _Held:
    """One policy of one run, at its point of the sweep."""

    compared: ComparedRun
    policy: str
    point: Point
    varies: bool
    """Whether the swept keys change anything about it."""


@dataclass(frozen=True, slots=True)
class _Method:
    """What the policies of one path have in common."""

    kind: str
    reference: str
    judge: str
    words: tuple[str, ...]
    """Values that are words; none where the keys change nothing about the method."""


def sweep_paths(sweep: Sweep, runs: Sequence[ComparedRun], metric: str) -> Iterable[PathRow]:
    """Every method of a sweep.

    Args:
        sweep: whose runs are among `runs`.
        runs: all that are compared; where others are beside the sweep's, names say whose they are.
        metric: what stands on the frontier.
    """
    members = {compared.label: compared for compared in runs if compared.label in sweep.runs}
    others = [compared for compared in runs if compared.label not in sweep.runs]
    methods = _methods(sweep, members, metric)
    for method, held in methods.items():
        found = _path(sweep, method, held, metric, _name(sweep, method, methods, others))
        if found is not None:
            yield found
    if metric == "score":
        yield from _best_of_n([members[label] for label in sweep.runs], others)


def varying(sweep: Sweep, members: Mapping[str, ComparedRun], policy: str) -> bool:
    """Whether a policy is another one at another value, and not one that the keys do not reach."""
    made = [frozenset(members[run].identity(policy) for run in point.runs if run in members) for point in sweep.points]
    return len({each for each in made if each}) > 1


def _methods(sweep: Sweep, members: Mapping[str, ComparedRun], metric: str) -> dict[_Method, list[_Held]]:
    found: dict[_Method, list[_Held]] = {}
    for compared in (members[label] for label in sweep.runs):
        point, reference = sweep.point_of(compared.label), compared.identity(compared.run.reference)
        for kind, policies in trained_away(compared).items():
            varies = {policy: varying(sweep, members, policy) for policy in policies}
            words = _words(sweep, point) if any(varies.values()) else ()
            held = found.setdefault(_Method(kind, reference, compared.judge_of(metric), words), [])
            known = {one.compared.identity(one.policy) for one in held}
            # A policy that several runs share is one policy.
            new = [policy for policy in policies if compared.identity(policy) not in known]
            held += [_Held(compared, policy, point, varies[policy]) for policy in new]
    return found


def _words(sweep: Sweep, point: Point) -> tuple[str, ...]:
    return tuple(sweep.label(point, [at]) for at in range(len(sweep.keys)) if not sweep.is_number(at))


def _name(
    sweep: Sweep, method: _Method, methods: Mapping[_Method, Sequence[_Held]], others: Sequence[ComparedRun]
) -> str:
    """`dpo over beta`, and in brackets what tells it from others of its kind, in the sweep and beside it."""
    held = methods[method]
    policies = dict.fromkeys(one.policy for one in held)
    name = next(iter(policies)) if len(policies) == 1 else method.kind
    numbers = [sweep.short_keys[at] for at in range(len(sweep.keys)) if _moves(sweep, held, at)]
    over = f"{name} over {', '.join(numbers)}" if numbers and any(one.varies for one in held) else name
    told = list(method.words)
    alike = [other for other in methods if (other.kind, other.words) == (method.kind, method.words)]
    if len(alike) > 1:
        told.append(_whose(sweep, held, [methods[other] for other in alike]))
    if any(method.kind in trained_away(other) for other in others):
        told.append(listed([one.compared.label for one in held]))
    return f"{over} ({', '.join(dict.fromkeys(told))})" if told else over


def _moves(sweep: Sweep, held: Sequence[_Held], at: int) -> bool:
    return sweep.is_number(at) and len({one.point.values[at] for one in held}) > 1


def _whose(sweep: Sweep, held: Sequence[_Held], all_alike: Sequence[Sequence[_Held]]) -> str:
    """What tells policies from those with another reference or judge: their seed, their values, or else their runs."""
    seeds = [{one.compared.recipe.get("seed") for one in each} for each in all_alike]
    if all(len(each) == 1 for each in seeds) and len({next(iter(each)) for each in seeds}) == len(seeds):
        return f"seed {held[0].compared.recipe.get('seed')}"
    values = [{sweep.label(one.point) for one in each} for each in all_alike]
    if all(len(each) == 1 for each in values) and len({next(iter(each)) for each in values}) == len(values):
        return sweep.label(held[0].point)
    return listed([one.compared.label for one in held])


def _path(sweep: Sweep, method: _Method, held: Sequence[_Held], metric: str, name: str) -> PathRow | None:
    first = held[0].compared
    start = place_of(first, first.run.reference, metric)
    groups: dict[tuple[str, tuple[str, ...]], list[_Held]] = {}
    for one in held:
        if place_of(one.compared, one.policy, metric) is not None:
            groups.setdefault((one.policy, one.point.runs), []).append(one)
    several = len({policy for policy, _ in groups}) > 1
    found = [_stop(sweep, each, metric, several) for each in groups.values()]
    if start is None or not found:
        return None
    found.sort(key=lambda stop: stop[0].kl)
    spots = [spot_of(first, first.run.reference, metric), *(spot for _, spot in found)]
    whole = tuple(spot for spot in spots if spot is not None)
    whole = whole if len(whole) == len(spots) and len({spot.kl_P.size for spot in whole}) == 1 else ()
    return PathRow(
        name=name,
        run=first.label,
        runs=tuple(dict.fromkeys(one.compared.label for one in held)),
        policies=tuple(place.name for place, _ in found),
        group=first.judge_of(metric),
        reference=method.reference,
        places=(start, *(place for place, _ in found)),
        spots=whole,
        band=tuple(band_of(whole)),
    )


def _stop(sweep: Sweep, held: Sequence[_Held], metric: str, several: bool) -> tuple[Place, Spot | None]:
    """One value of the sweep: its policy, or the mean over those of its seeds, prompt by prompt."""
    policy, point = held[0].policy, held[0].point
    label = sweep.shown(point) if held[0].varies else policy
    places = [place for one in held if (place := place_of(one.compared, one.policy, metric)) is not None]
    spots = [spot for one in held if (spot := spot_of(one.compared, one.policy, metric)) is not None]
    place = Place(
        name=f"{policy}, {sweep.label(point)}" if held[0].varies else policy,
        kl=fmean(one.kl for one in places),
        value=fmean(one.value for one in places),
        label=f"{policy} {label}" if several and held[0].varies else label,
    )
    whole = len(spots) == len(held) and len({spot.kl_P.size for spot in spots}) == 1
    return place, mean_spot(spots) if whole else None


def mean_spot(spots: Sequence[Spot]) -> Spot:
    """The mean of several policies, prompt by prompt; NaN where one of them was not measured."""
    return Spot.of(np.mean([spot.kl_P for spot in spots], axis=0), np.mean([spot.value_P for spot in spots], axis=0))


def _best_of_n(swept: Sequence[ComparedRun], others: Sequence[ComparedRun]) -> Iterable[PathRow]:
    """Best of n of each reference by each reward model, once however many runs measured it."""
    seen: set[tuple[str, str]] = set()
    kinds = {(compared.identity(compared.run.reference), compared.score_by) for compared in swept}
    for compared in swept:
        kind = (compared.identity(compared.run.reference), compared.score_by)
        if kind in seen or not compared.run.best_of_n:
            continue
        seen.add(kind)
        alone = len(kinds) == 1 and not any(other.run.best_of_n for other in others)
        yield from best_of_n(compared, "best of n" if alone else f"best of n ({compared.label})")


def listed(labels: Sequence[str]) -> str:
    """Labels of runs, the middle ones left out where there are many."""
    own = list(dict.fromkeys(labels))
    return ", ".join(own) if len(own) <= 3 else f"{own[0]} to {own[-1]}"
