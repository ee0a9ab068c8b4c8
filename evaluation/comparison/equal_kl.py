"""The frontier of all runs: where policies stand, what PPO passed on its way, and who is above whom at equal KL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from evaluation import frontier
from evaluation.comparison.load import ComparedRun
from evaluation.comparison.passed import Passed, passed_by, reward_keys
from evaluation.comparison.paths import PathRow, Place, best_of_n, place_of, run_paths
from evaluation.comparison.sweep_paths import sweep_paths
from evaluation.comparison.sweeps import Sweep
from evaluation.intervals import Interval

METRICS = ("score", "score_heldout", "rule_accuracy")
"""What stands on the frontier: what was trained on, and what was not."""
_SCORES = ("score", "score_heldout")
_MOST_PATHS = 8
"""Beyond so many paths not every pair is compared: 28 intervals are as many as anyone can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two paths at equal KL, or two policies as they stand."""

    metric: str
    a: str
    b: str
    kl: float | None
    """In nats; None for policies as they stand."""
    value_a: float
    value_b: float
    difference: Interval
    """b minus a."""
    same_reference: bool
    near_a: float | None = None
    near_b: float | None = None
    """Divergence of each path's policy nearest to there; None for policies as they stand."""
    runs_a: tuple[str, ...] = ()
    runs_b: tuple[str, ...] = ()
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


def frontiers(runs: Sequence[ComparedRun], sweeps: Sequence[Sweep] = ()) -> list[Frontier]:
    """One frontier for each value that is measured, and for each reward model behind it."""
    found = []
    for metric in METRICS:
        paths = list(_paths(runs, sweeps, metric))
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


def _paths(runs: Sequence[ComparedRun], sweeps: Sequence[Sweep], metric: str) -> Iterable[PathRow]:
    """Every method: of a sweep through all its values, of any other run by itself; what no training made last."""
    swept = {label for sweep in sweeps for label in sweep.runs}
    single = [compared for compared in runs if compared.label not in swept]
    for sweep in sweeps:
        yield from sweep_paths(sweep, runs, metric)
    for compared in single:
        yield from run_paths(compared, metric, len(runs))
    for compared in single if metric == "score" else ():
        yield from best_of_n(compared, "best of n" if len(runs) == 1 else f"best of n ({compared.label})")


def _others(runs: Sequence[ComparedRun], metric: str, group: str) -> Iterable[Place]:
    """What stands beside the paths; a policy that several runs share once."""
    seen: set[tuple[str, str]] = set()
    for compared in runs:
        if compared.judge_of(metric) != group:
            continue
        for policy in compared.run.policies:
            stage, key = compared.stage(policy), _key(compared, policy)
            on_a_path = policy == compared.run.reference or (stage is not None and stage.kind in ("dpo", "ppo"))
            place = None if on_a_path or key in seen else place_of(compared, policy, metric)
            if place is not None:
                seen.add(key)
                everywhere = all(_key(one, policy) == key for one in runs if policy in one.run.policies)
                yield place if everywhere else replace(place, name=f"{policy} ({compared.label})")


def _key(compared: ComparedRun, policy: str) -> tuple[str, str]:
    """What a policy is and what its divergence is counted from."""
    return compared.identity(policy), compared.identity(compared.run.reference)


def _pairs(metric: str, paths: Sequence[PathRow]) -> Iterable[Pair]:
    for a, b in list(combinations([path for path in paths if path.spots][:_MOST_PATHS], 2)):
        if a.spots[0].kl_P.size != b.spots[0].kl_P.size:
            continue
        found = frontier.at_equal_kl(a.spots, b.spots)
        if found is not None:
            yield Pair(
                metric=metric, a=a.name, b=b.name, kl=found.kl, value_a=found.a, value_b=found.b,
                difference=found.difference, same_reference=a.reference == b.reference, near_a=found.near_a,
                near_b=found.near_b, runs_a=a.runs, runs_b=b.runs,
            )  # fmt: skip
