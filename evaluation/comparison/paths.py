"""Paths on the frontier: a run's methods, each from its reference through its policies; a sweep's in `sweep_paths`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluation import frontier
from evaluation.comparison.load import ComparedRun
from evaluation.comparison.spots import best_spot, spot_of
from evaluation.frontier import Spot
from evaluation.report.files import number

_BAND_POINTS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One policy on the frontier."""

    name: str
    kl: float
    value: float
    label: str = ""
    """What stands beside its ring on the chart: the value that made it, in a sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRow:
    """One method of one run, or of all runs of a sweep: its policies of one kind, from the reference on."""

    name: str
    """`ppo (s17)`, `dpo over beta`."""
    run: str
    """Label of the run, of a sweep's the first."""
    runs: tuple[str, ...]
    """All that its policies are from."""
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


def run_paths(compared: ComparedRun, metric: str, runs: int) -> Iterable[PathRow]:
    """A run's policies of one kind that were trained away from its reference, as one path each kind."""
    start = place_of(compared, compared.run.reference, metric)
    for kind, policies in trained_away(compared).items():
        places = sorted((p for name in policies if (p := place_of(compared, name, metric))), key=lambda place: place.kl)
        if start is None or not places:
            continue
        spots = tuple(spot for place in (start, *places) if (spot := spot_of(compared, place.name, metric)) is not None)
        whole = spots if len(spots) == len(places) + 1 else ()
        name = policies[0] if len(policies) == 1 else kind
        yield PathRow(
            name=name if runs == 1 else f"{name} ({compared.label})",
            run=compared.label,
            runs=(compared.label,),
            policies=tuple(place.name for place in places),
            group=compared.judge_of(metric),
            reference=compared.identity(compared.run.reference),
            places=(start, *places),
            spots=whole,
            band=tuple(band_of(whole)),
        )


def trained_away(compared: ComparedRun) -> dict[str, list[str]]:
    """The policies that were trained away from a run's reference, by kind, in the order of its stages."""
    kinds: dict[str, list[str]] = {}
    for policy in compared.run.policies:
        stage = compared.stage(policy)
        if stage is not None and stage.kind in ("dpo", "ppo") and policy != compared.run.reference:
            kinds.setdefault(stage.kind, []).append(policy)
    return kinds


def best_of_n(compared: ComparedRun, name: str) -> Iterable[PathRow]:
    """The reference's best answers of several: a path that no training made."""
    run = compared.run
    start = place_of(compared, run.reference, "score")
    places = [Place(name=f"best of {best.n}", kl=best.kl_bound, value=best.score) for best in run.best_of_n]
    if start is None or not places:
        return
    bests = [best_spot(compared, best.n, best.kl_bound) for best in run.best_of_n]
    whole = tuple(spot for spot in (spot_of(compared, run.reference, "score"), *bests) if spot is not None)
    whole = whole if len(whole) == len(places) + 1 else ()
    yield PathRow(
        name=name,
        run=compared.label,
        runs=(compared.label,),
        policies=tuple(place.name for place in places),
        group=compared.score_by,
        reference=compared.identity(run.reference),
        places=(start, *places),
        spots=whole,
        band=tuple(band_of(whole)),
    )


def place_of(compared: ComparedRun, policy: str, metric: str) -> Place | None:
    """Where a policy stands; None where either figure was not measured."""
    row = compared.run.policies.get(policy, {})
    kl, value = number(row.get("kl_to_reference")), number(row.get(metric))
    return None if kl is None or value is None else Place(name=policy, kl=kl, value=value)


def band_of(spots: Sequence[Spot]) -> Iterable[tuple[float, float, float]]:
    """The interval around a path; none where it cannot be told from its reference."""
    if not spots or not frontier.departs(spots):
        return
    furthest = max(spot.kl for spot in spots)
    places = [furthest * (at / (_BAND_POINTS - 1)) ** 2 for at in range(_BAND_POINTS)]
    for kl, found in zip(places, frontier.band(spots, places, resamples=2000), strict=True):
        assert found.low is not None and found.high is not None
        yield math.sqrt(kl), found.low, found.high
