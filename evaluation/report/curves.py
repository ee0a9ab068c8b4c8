"""The curves of a stage: which metrics are drawn, in which order, under which words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.report.charts import Series, line_chart
from evaluation.report.load import Point, Stage
from evaluation.report.measures import plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Legend:
    """One line of a chart in words: its label, its style, and its last value."""

    label: str
    style: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawn chart with its caption."""

    title: str
    svg: Markup
    legend: tuple[Legend, ...]
    left_out: int
    """Values that were not finite numbers and could not be drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCurves:
    """The charts of one stage: the ones to look at first, and the rest of what it logged."""

    stage: str
    main: tuple[Chart, ...]
    further: tuple[Chart, ...]


_LOSS_UNITS = {"sft": "loss, nats per token", "dpo": "loss, nats per pair", "reward": "loss, nats per pair"}
_MAIN = {
    "loss": ("Loss", "loss"),
    "objective/score": ("Score", "score from the reward model"),
    "objective/kl_seq": ("KL to the reference", "nats per response"),
    "rewards/accuracies": ("Preference accuracy", "share of pairs"),
    "rewards/margins": ("Preference margin", "nats"),
    "learning_rate": ("Learning rate", "learning rate"),
    "grad_norm": ("Gradient norm before clipping", "norm"),
}
_ORDER = {"eval": 1, "train": 0}


def curves(stages: Iterable[Stage]) -> list[StageCurves]:
    """The charts of every stage that logged something."""
    drawn = [_stage_curves(stage) for stage in stages]
    return [stage for stage in drawn if stage.main or stage.further]


def _stage_curves(stage: Stage) -> StageCurves:
    by_name: dict[str, list[Point]] = {}
    for point in stage.points:
        by_name.setdefault(point.name, []).append(point)
    further = sorted(name for name in by_name if name not in _MAIN)
    return StageCurves(
        stage=stage.name,
        main=tuple(_chart(stage, name, by_name[name]) for name in _MAIN if name in by_name),
        further=tuple(_chart(stage, name, by_name[name]) for name in further),
    )


def _chart(stage: Stage, name: str, points: list[Point]) -> Chart:
    title, unit = _MAIN.get(name, (name, name))
    if name == "loss":
        unit = _LOSS_UNITS.get(stage.kind, unit)
    splits = sorted({point.split for point in points}, key=lambda split: (_ORDER.get(split, 2), split))
    series = [_series(split, points) for split in splits]
    legend = tuple(
        Legend(label=s.label, style=s.style, last=plain(s.points[-1][1]) if s.points else "–") for s in series
    )
    svg = line_chart(f"{title} of {stage.name}", series, x_label="optimiser step", y_label=unit)
    return Chart(title=title, svg=svg, legend=legend, left_out=sum(point.value is None for point in points))


def _series(split: str, points: list[Point]) -> Series:
    """One split's line. A step that was logged twice (before and after a resume) counts as it was logged last."""
    by_step = {p.step: p.value for p in points if p.split == split}
    line = tuple((step, value) for step, value in sorted(by_step.items()) if value is not None)
    return Series(
        label={"eval": "held-out"}.get(split, split), style=split if split in _ORDER else "other", points=line
    )
