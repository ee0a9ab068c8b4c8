"""A frontier as a chart: value against sqrt(KL), a line and its band for each path, dots for what policies passed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.comparison.equal_kl import Frontier
from evaluation.comparison.passed import Passed
from evaluation.comparison.paths import PathRow, Place
from evaluation.report.charts import Band, Mark, Series, line_chart
from evaluation.report.curves import Legend
from evaluation.report.measures import figures, measure_named, plain

_TITLES = {
    "score": "Score by the reward model",
    "score_heldout": "Score by a reward model that training did not use,",
}
STYLES = 8
"""The style sheet has so many colours, `path-1` on; further paths begin again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierChart:
    """One frontier as it is shown."""

    title: str
    svg: Markup
    legend: tuple[Legend, ...]
    beyond: str
    """Policies so far away that drawing them would squeeze all others."""


_CLOSE = 0.06
"""Of two rings that are nearer than this share of the chart, the second has no words: they would cover the first's."""
_FAR = 1.5
"""A policy that no path leads to is drawn up to this many times as far out as the furthest that one does."""


def frontier_charts(found: Sequence[Frontier]) -> list[FrontierChart]:
    """One chart per frontier that has anything to show; a path has the same colour in all."""
    paths = [path.name for one in found for path in one.paths]
    order = dict.fromkeys([*paths, *(one.name for frontier in found for one in frontier.passed)])
    colours = {name: f"path-{at % STYLES + 1}" for at, name in enumerate(order)}
    return [_chart(one, colours) for one in found if one.paths or one.passed]


def _chart(found: Frontier, colours: dict[str, str]) -> FrontierChart:
    measure = measure_named(found.metric)
    scale = 100 if measure.percent else 1
    lines = [_path(path, colours, found.metric, scale) for path in found.paths]
    way = [
        Series(
            label=one.name, style=f"{_colour(found, one, colours)} way",
            points=tuple((_root(kl), value) for _, kl, value in one.points),
            hints=tuple(f"{one.name}, {one.counter} {x:g}: {plain(v)} at {plain(kl)} nats" for x, kl, v in one.points),
        )
        for one in found.passed
    ]  # fmt: skip
    bands = [
        Band(style=colours[path.name], points=tuple((x, scale * low, scale * high) for x, low, high in path.band))
        for path in found.paths
    ]
    furthest = max((_root(place.kl) for path in found.paths for place in path.places), default=0.0) * _FAR
    near = [place for place in found.others if _root(place.kl) <= furthest or not found.paths]
    beside = Series(
        label=", ".join(place.name for place in near), style="apart", joined=False,
        points=tuple((_root(place.kl), scale * place.value) for place in near),
        hints=tuple(f"{p.name}: {figures(measure, p.value)[0]} at {plain(p.kl)} nats" for p in near),
    )  # fmt: skip
    lines += [beside] if near else []
    svg = line_chart(
        f"{measure.label} against the square root of the KL",
        [*lines, *way],
        x_label="square root of the KL, in nats",
        y_label=", ".join(filter(None, [measure.short, measure.unit])),
        steps=False,
        x_range=(0.0,),
        marks=[*_marks(found, scale), *_turns(found)],
        bands=bands,
    )
    return FrontierChart(
        title=f"{_TITLES.get(found.metric, measure.label)} of {found.group}" if found.group else measure.label,
        svg=svg,
        beyond="; ".join(
            f"{place.name}: {figures(measure, place.value)[0]} at {plain(place.kl)} nats"
            for place in found.others
            if place not in near
        ),
        legend=tuple(Legend(label=line.label, style=line.style, last="") for line in [*lines, *way]),
    )


def _path(path: PathRow, colours: dict[str, str], metric: str, scale: float) -> Series:
    hints = [
        f"{place.name} ({_whose(path)}): {figures(measure_named(metric), place.value)[0]} at {plain(place.kl)} nats"
        for place in path.places
    ]
    points = tuple((_root(place.kl), scale * place.value) for place in path.places)
    return Series(label=path.name, style=colours[path.name], points=points, hints=tuple(hints))


def _whose(path: PathRow) -> str:
    return path.run if len(path.runs) == 1 else f"{len(path.runs)} runs"


def _marks(found: Frontier, scale: float) -> Iterable[Mark]:
    """A ring around every policy, with its value in a sweep or its name where it is the only one."""
    # Names beside others would cover them; values are short, and without them a path through several says little.
    named = sum(len(path.policies) for path in found.paths) == 1
    places = [place for path in found.paths for place in path.places]
    far = max((_root(place.kl) for place in places), default=0.0)
    tall = max((place.value for place in places), default=0.0) - min((place.value for place in places), default=0.0)
    told: list[Place] = []
    for path, place in [(one, place) for one in found.paths for place in one.places[1:]]:
        label = place.label or ((path.name if len(path.policies) == 1 else place.name) if named else "")
        covers = any(
            abs(_root(place.kl) - _root(other.kl)) < _CLOSE * far and abs(place.value - other.value) < _CLOSE * tall
            for other in told
        )
        if label and not covers:
            told.append(place)
        yield Mark(_root(place.kl), scale * place.value, "" if covers else label)


def _turns(found: Frontier) -> Iterable[Mark]:
    """A ring where over-optimisation began, at the nearest measurement."""
    for one in found.passed:
        if one.turned is not None:
            turned = one.turned
            _, kl, value = min(one.points, key=lambda point: abs(point[0] - turned))
            yield Mark(_root(kl), value, "turned here")


def _colour(found: Frontier, passed: Passed, colours: dict[str, str]) -> str:
    """That of the run's path of the same kind where it has one."""
    mine = (path.name for path in found.paths if passed.run in path.runs and passed.kind in path.name)
    return colours[next(mine, passed.name)]


def _root(kl: float) -> float:
    # The estimate of a divergence near zero can fall below it.
    return max(kl, 0.0) ** 0.5
