"""The frontier of all runs: where policies stand, what PPO passed on its way, and who is above whom at equal KL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from evaluation import frontier
from evaluation.comparison.load import ComparedRun
from evaluation.comparison.passed import Passed, passed_by, reward_keys
from evaluation.comparison.spots import best_spot, spot_of
from evaluation.frontier import Spot
from evaluation.intervals import Interval
from evaluation.report.files import number

METRICS = ("score", "score_heldout", "rule_accuracy")
"""What stands on the frontier: what was trained on, and what was not."""
_SCORES = ("score", "score_heldout")
_BAND_POINTS = 25
_MOST_PATHS = 8
"""Beyond so many paths not every pair is compared: 28 intervals are as many as anyone can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One policy on the frontier."""

    name: str
    kl: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRow:
    """One method of one run: its policies of one kind, from the reference on."""

    name: str
    """`ppo (s17)`."""
    run: str
    policies: tuple[str, ...]
    group: str
    """Only paths of one group share an axis: their values are by the same reward model."""
    reference: str
    """What its divergence is counted from, by artefact key."""
    places: tuple[Place, ...]
    """The reference first, then by divergence."""
    spots: tuple[Spot, ...]
    """The same with values per prompt; empty where the evaluation left none."""
    band: tuple[tuple[float, float, float], ...] = ()
    """sqrt(KL) with the lower and upper end of the value's interval there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two paths at equal KL."""

    metric: str
    a: str
    b: str
    kl: float
    value_a: float
    value_b: float
    difference: Interval
    """b minus a."""
    same_reference: bool
    run_a: str = ""
    run_b: str = ""
    """Labels of their runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """One value against sqrt(KL), for all paths that share its meaning."""

    metric: str
    group: str
    """Label of the run whose reward model scored; empty where no reward model is involved."""
    paths: tuple[PathRow, ...]
    others: tuple[Place, ...]
    """Policies that no path leads to, such as the base model."""
    passed: tuple[Passed, ...]
    pairs: tuple[Pair, ...]


def frontiers(runs: Sequence[ComparedRun]) -> list[Frontier]:
    """One frontier for each value that is measured, and for each reward model behind it."""
    found = []
    for metric in METRICS:
        paths = [path for compared in runs for path in _paths(compared, metric, len(runs))]
        if metric == "score":
            paths += [path for compared in runs for path in _best_of_n(compared, len(runs))]
        mine = [one for compared in runs for one in passed_by(compared, metric)] if metric in _SCORES else []
        for group in dict.fromkeys([*(path.group for path in paths), *(one.group for one in mine)]):
            within = tuple(path for path in paths if path.group == group)
            way = tuple(one for one in mine if one.group == group)
            found.append(
                Frontier(
                    metric=metric,
                    group=_owner(runs, group),
                    paths=within,
                    others=tuple(_others(runs, metric, group)),
                    passed=way,
                    pairs=tuple(_pairs(metric, within)),
                )
            )
    return found


def _owner(runs: Sequence[ComparedRun], judge: str) -> str:
    return ", ".join(
        one.label for one in runs if judge and judge in (one.score_by, one.score_heldout_by, *reward_keys(one))
    )


def _paths(compared: ComparedRun, metric: str, runs: int) -> Iterable[PathRow]:
    """A run's policies of one kind that were trained away from its reference, as one path each kind."""
    run = compared.run
    kinds: dict[str, list[str]] = {}
    for policy in run.policies:
        stage = compared.stage(policy)
        if stage is not None and stage.kind in ("dpo", "ppo") and policy != run.reference:
            kinds.setdefault(stage.kind, []).append(policy)
    start = _place(compared, run.reference, metric)
    for kind, policies in kinds.items():
        places = sorted((p for name in policies if (p := _place(compared, name, metric))), key=lambda place: place.kl)
        if start is None or not places:
            continue
        spots = tuple(spot for place in (start, *places) if (spot := spot_of(compared, place.name, metric)) is not None)
        whole = spots if len(spots) == len(places) + 1 else ()
        name = policies[0] if len(policies) == 1 else kind
        yield PathRow(
            name=name if runs == 1 else f"{name} ({compared.label})",
            run=compared.label,
            policies=tuple(place.name for place in places),
            group=compared.judge_of(metric),
            reference=compared.identity(run.reference),
            places=(start, *places),
            spots=whole,
            band=tuple(_band(whole)),
        )


def _others(runs: Sequence[ComparedRun], metric: str, group: str) -> Iterable[Place]:
    """What stands beside the paths; a policy that several runs share once."""
    seen: set[tuple[str, str]] = set()
    for compared in runs:
        if compared.judge_of(metric) != group:
            continue
        for policy in compared.run.policies:
            stage, key = compared.stage(policy), _key(compared, policy)
            on_a_path = policy == compared.run.reference or (stage is not None and stage.kind in ("dpo", "ppo"))
            place = None if on_a_path or key in seen else _place(compared, policy, metric)
            if place is not None:
                seen.add(key)
                everywhere = all(_key(one, policy) == key for one in runs if policy in one.run.policies)
                yield place if everywhere else replace(place, name=f"{policy} ({compared.label})")


def _key(compared: ComparedRun, policy: str) -> tuple[str, str]:
    """What a policy is and what its divergence is counted from."""
    return compared.identity(policy), compared.identity(compared.run.reference)


def _best_of_n(compared: ComparedRun, runs: int) -> Iterable[PathRow]:
    """The reference's best answers of several: a path that no training made."""
    run = compared.run
    start = _place(compared, run.reference, "score")
    places = [Place(name=f"best of {best.n}", kl=best.kl_bound, value=best.score) for best in run.best_of_n]
    if start is None or not places:
        return
    bests = [best_spot(compared, best.n, best.kl_bound) for best in run.best_of_n]
    whole = tuple(spot for spot in (spot_of(compared, run.reference, "score"), *bests) if spot is not None)
    whole = whole if len(whole) == len(places) + 1 else ()
    yield PathRow(
        name="best of n" if runs == 1 else f"best of n ({compared.label})",
        run=compared.label,
        policies=tuple(place.name for place in places),
        group=compared.score_by,
        reference=compared.identity(run.reference),
        places=(start, *places),
        spots=whole,
        band=tuple(_band(whole)),
    )


def _place(compared: ComparedRun, policy: str, metric: str) -> Place | None:
    row = compared.run.policies.get(policy, {})
    kl, value = number(row.get("kl_to_reference")), number(row.get(metric))
    return None if kl is None or value is None else Place(name=policy, kl=kl, value=value)


def _band(spots: Sequence[Spot]) -> Iterable[tuple[float, float, float]]:
    if not spots or not frontier.departs(spots):
        return
    furthest = max(spot.kl for spot in spots)
    places = [furthest * (at / (_BAND_POINTS - 1)) ** 2 for at in range(_BAND_POINTS)]
    for kl, found in zip(places, frontier.band(spots, places, resamples=2000), strict=True):
        assert found.low is not None and found.high is not None
        yield math.sqrt(kl), found.low, found.high


def _pairs(metric: str, paths: Sequence[PathRow]) -> Iterable[Pair]:
    for a, b in list(combinations([path for path in paths if path.spots][:_MOST_PATHS], 2)):
        if a.spots[0].kl_P.size != b.spots[0].kl_P.size:
            continue
        found = frontier.at_equal_kl(a.spots, b.spots)
        if found is not None:
            yield Pair(
                metric=metric, a=a.name, b=b.name, kl=found.kl, value_a=found.a, value_b=found.b,
                difference=found.difference, same_reference=a.reference == b.reference, run_a=a.run, run_b=b.run,
            )  # fmt: skip
