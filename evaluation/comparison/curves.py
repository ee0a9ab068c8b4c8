"""The runs' curves over each other: a chart per metric for each kind of stage, a line per run.

Metrics have the same names in every run, so what one run logged lies on the same axes as what another did. Training and
held-out figures of one metric are two charts: with several runs in one they could not be told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from evaluation.comparison.drawing import STYLES
from evaluation.comparison.load import ComparedRun
from evaluation.report.charts import Series, line_chart
from evaluation.report.curves import Chart, Legend, Panel, counter_of, line_of, panels_of, unit_of
from evaluation.report.load import Point, Stage
from evaluation.report.measures import plain

_ENDED = ("done", "skipped")
_SPLITS = {"train": "in training", "eval": "held-out"}
"""What a chart is called by the split it shows, in the order of the charts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindCurves:
    """The charts of all stages of one kind: those to look at first, and the rest of what was logged."""

    kind: str
    main: tuple[Chart, ...]
    further: tuple[Chart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """What one stage logged, under the name that it has beside the others."""

    label: str
    style: str
    points: tuple[Point, ...]


def compared_curves(runs: Sequence[ComparedRun]) -> list[KindCurves]:
    """The charts of every kind of stage that any run has logged something of, in the order of the stages."""
    kinds = dict.fromkeys(stage.kind for compared in runs for stage in compared.run.stages if stage.points)
    return [_of_kind(kind, _lines(runs, kind)) for kind in kinds]


def _lines(runs: Sequence[ComparedRun], kind: str) -> list[_Line]:
    """One line per stage of the kind; a stage that several runs share is one, under all their names.

    Colours go by run, and on to the next where a run has several stages of the kind.
    """
    shared: dict[tuple[str, tuple[Point, ...]], list[tuple[ComparedRun, Stage]]] = {}
    for compared in runs:
        for stage in compared.run.stages:
            if stage.kind == kind and stage.points:
                shared.setdefault((compared.identity(stage.name), stage.points), []).append((compared, stage))
    several = {one.label for one in runs if sum(stage.kind == kind for stage in one.run.stages) > 1}
    places = {compared.label: at for at, compared in enumerate(runs)}
    alone = len(shared) == len({held[0][0].label for held in shared.values()})
    return [
        _Line(
            label=_label(held, several),
            style=f"path-{(places[held[0][0].label] if alone else at) % STYLES + 1}",
            points=points,
        )
        for at, ((_, points), held) in enumerate(shared.items())
    ]


def _label(held: Sequence[tuple[ComparedRun, Stage]], several: set[str]) -> str:
    """The runs that hold a stage, its name where a run has several of its kind, and how it stands unless it ended."""
    runs = ", ".join(compared.label for compared, _ in held)
    stage = held[0][1]
    name = f"{stage.name} ({runs})" if any(compared.label in several for compared, _ in held) else runs
    return name if any(one.status in _ENDED for _, one in held) else f"{name}, {stage.status}"


def _of_kind(kind: str, lines: Sequence[_Line]) -> KindCurves:
    logged = {(point.name, point.split) for line in lines for point in line.points}
    panels = panels_of(kind)
    shown = {name for panel in panels for name in panel.names}
    further = [Panel(name, name, (name,)) for name in sorted({name for name, _ in logged} - shown)]
    return KindCurves(
        kind=kind,
        main=tuple(chain.from_iterable(_charts(kind, panel, lines, logged) for panel in panels)),
        further=tuple(chain.from_iterable(_charts(kind, panel, lines, logged) for panel in further)),
    )


def _charts(kind: str, panel: Panel, lines: Sequence[_Line], logged: set[tuple[str, str]]) -> Iterable[Chart]:
    """A chart for each metric and split of a panel that any line has."""
    titles = dict(zip(panel.names, panel.labels, strict=True)) if panel.labels else {}
    there = [
        (name, split)
        for name in panel.names
        for split in sorted({split for one, split in logged if one == name}, key=_place)
    ]
    for name, split in there:
        told = [titles[name]] if name in titles else []
        told += [_SPLITS.get(split, split)] if len({one for _, one in there}) > 1 else []
        yield _chart(kind, ", ".join([panel.title, *told]), unit_of(kind, panel), name, split, lines)


def _place(split: str) -> tuple[int, str]:
    order = list(_SPLITS)
    return (order.index(split) if split in order else len(order), split)


def _chart(kind: str, title: str, unit: str, name: str, split: str, lines: Sequence[_Line]) -> Chart:
    found = [(line, [one for one in line.points if (one.name, one.split) == (name, split)]) for line in lines]
    series = [Series(label=line.label, style=line.style, points=line_of(own)) for line, own in found if own]
    return Chart(
        title=title,
        svg=line_chart(f"{title} of {kind}", series, x_label=counter_of(kind), y_label=unit),
        legend=tuple(
            Legend(label=one.label, style=one.style, last=plain(one.points[-1][1]) if one.points else "–")
            for one in series
        ),
        left_out=sum(point.value is None for _, own in found for point in own),
    )
