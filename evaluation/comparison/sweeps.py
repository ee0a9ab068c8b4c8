"""Runs that are one recipe but for a few keys: a sweep, found from the resolved recipes alone.

Like `seeds`, which finds runs that differ by chance alone; here they differ by what somebody chose. Where both vary,
the seeds of one value are one point of the sweep. Pure functions, light.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.comparison.load import ComparedRun
from evaluation.comparison.recipes import flat, written
from evaluation.report.files import mapping

_ITS_OWN = ("seed", "name", "output_dir")
"""Keys in which runs of one value may differ."""
_ABSENT = "–"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Point:
    """One value of each swept key, and the runs that have them: several where seeds vary too.

    A value may be a list, which has no hash, so a point is equal to itself alone.
    """

    values: tuple[Any, ...]
    """In the order of the sweep's keys; a dash where the recipe has no such key."""
    runs: tuple[str, ...]
    """Labels."""
    seeds: tuple[Any, ...]
    """Of the runs, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Runs that differ in nothing but some keys, their seeds and their names."""

    keys: tuple[str, ...]
    """Dotted, in the recipe's order."""
    points: tuple[Point, ...]
    """By value: numbers ascending, words as they come."""

    @property
    def runs(self) -> tuple[str, ...]:
        """Labels, by value."""
        return tuple(run for point in self.points for run in point.runs)

    @property
    def short_keys(self) -> tuple[str, ...]:
        """The last parts of the keys where they tell them apart: `beta`."""
        ends = [key.rsplit(".", 1)[-1] for key in self.keys]
        return tuple(end if ends.count(end) == 1 else key for end, key in zip(ends, self.keys, strict=True))

    def is_number(self, at: int) -> bool:
        """Whether all values of a key are numbers: such a key moves a method along a path, words make another one."""
        values = [point.values[at] for point in self.points]
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)

    def label(self, point: Point, places: Sequence[int] | None = None) -> str:
        """A point in words, `beta 0.05, loss_type ipo`; of some of its keys, by their places, where those are named."""
        chosen = range(len(self.keys)) if places is None else places
        return ", ".join(f"{self.short_keys[at]} {written(point.values[at])}" for at in chosen)

    def shown(self, point: Point) -> str:
        """A point's values alone: `0.05`, `0.05, ipo`."""
        return ", ".join(map(written, point.values))

    def point_of(self, run: str) -> Point:
        """The point that a run belongs to."""
        return next(point for point in self.points if run in point.runs)


def find_sweeps(runs: Sequence[ComparedRun]) -> list[Sweep]:
    """The sweeps among some runs; a run is in one at most.

    Runs with the same stages and the same evaluation are one sweep where they are more points than keys that differ:
    two recipes that differ in three keys are two recipes. Failing that, those that differ in a single key are.
    """
    alike: dict[str, list[ComparedRun]] = {}
    for compared in runs:
        if compared.recipe:
            alike.setdefault(_frame(compared.recipe), []).append(compared)
    return [sweep for group in alike.values() for sweep in _within(group)]


def _within(group: Sequence[ComparedRun]) -> Iterable[Sweep]:
    settings = {compared.label: _settings(compared.recipe) for compared in group}
    if (whole := _sweep(group, settings)) is not None:
        yield whole
        return
    left = list(group)
    while (found := _largest_over_one_key(left, settings)) is not None:
        yield found
        left = [compared for compared in left if compared.label not in found.runs]


def _largest_over_one_key(group: Sequence[ComparedRun], settings: Mapping[str, Mapping[str, Any]]) -> Sweep | None:
    best: Sweep | None = None
    for key in _differing([settings[compared.label] for compared in group]):
        same: dict[str, list[ComparedRun]] = {}
        for compared in group:
            rest = {name: value for name, value in settings[compared.label].items() if name != key}
            same.setdefault(_as_text(rest), []).append(compared)
        for each in same.values():
            found = _sweep(each, settings)
            if found is not None and (best is None or len(found.runs) > len(best.runs)):
                best = found
    return best


def _sweep(group: Sequence[ComparedRun], settings: Mapping[str, Mapping[str, Any]]) -> Sweep | None:
    keys = tuple(_differing([settings[compared.label] for compared in group]))
    points: dict[str, list[ComparedRun]] = {}
    for compared in group:
        points.setdefault(_as_text([settings[compared.label].get(key, _ABSENT) for key in keys]), []).append(compared)
    if not keys or len(points) <= len(keys):
        return None
    found = Sweep(
        keys=keys,
        points=tuple(
            Point(
                values=tuple(settings[members[0].label].get(key, _ABSENT) for key in keys),
                runs=tuple(one.label for one in members),
                seeds=tuple(one.recipe.get("seed") for one in members),
            )
            for members in points.values()
        ),
    )
    ranks = [_ranks(found, at) for at in range(len(keys))]
    ordered = sorted(
        found.points,
        key=lambda point: [rank[_as_text(value)] for rank, value in zip(ranks, point.values, strict=True)],
    )
    return Sweep(keys=keys, points=tuple(ordered))


def _ranks(sweep: Sweep, at: int) -> dict[str, int]:
    """Place of each value of a key among its values."""
    values = [point.values[at] for point in sweep.points]
    ordered = sorted(values) if sweep.is_number(at) else values
    return {text: place for place, text in enumerate(dict.fromkeys(map(_as_text, ordered)))}


def _frame(recipe: Mapping[str, Any]) -> str:
    """What runs of a sweep have in common beforehand: their stages, and how their policies are measured."""
    stages = {name: mapping(stage).get("kind") for name, stage in mapping(recipe.get("stages")).items()}
    return _as_text([list(stages.items()), recipe.get("evaluation")])


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What may be swept, by dotted key. Where figures are sent to is no part of what was done."""
    found = flat({name: value for name, value in recipe.items() if name not in ("evaluation", "tracking")})
    return {key: value for key, value in found.items() if key not in _ITS_OWN}


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({_as_text(one.get(key, _ABSENT)) for one in settings}) > 1]


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
