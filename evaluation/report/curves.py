"""The curves of a stage: which metrics are drawn, in which order, under which words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from evaluation.report.charts import MARKED, Mark, Series, line_chart
from evaluation.report.load import Point, Stage
from evaluation.report.measures import plain
from evaluation.report.watched import OPINIONS, Watched, watched


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
    kind: str
    main: tuple[Chart, ...]
    further: tuple[Chart, ...]
    watched: Watched | None


@dataclass(frozen=True, slots=True)
class Panel:
    """Metrics that share a chart: one in training and the same on held-out data, or several of one unit."""

    title: str
    unit: str
    names: tuple[str, ...]
    labels: tuple[str, ...] = ()
    """Of each name's line; unsaid, lines are labelled by their split."""


_LOSS_UNITS = {"sft": "loss, nats per token", "dpo": "loss, nats per pair", "reward": "loss, nats per pair"}
_WATCHED = Panel("Score by the reward model that is watched", "score", ("score_heldout",))
_RIGHT = Panel("Held-out prompts answered right", "share", ("rule_accuracy",))
_KL = Panel("KL to the reference", "nats per response", ("objective/kl_seq", "kl_seq"))
_ANSWERS = (
    Panel("Response length", "tokens", ("response/len_mean", "len_mean")),
    Panel("Responses that end by themselves", "share", ("response/eos_rate", "eos_rate")),
    Panel("4-grams repeated within a response", "share", ("response/repeat_ngram", "repeat_ngram")),
)
_MAIN = (
    Panel("Loss", "loss", ("loss",)),
    Panel("Preference accuracy", "share of pairs", ("rewards/accuracies", "accuracy")),
    Panel("Preference margin", "nats", ("rewards/margins", "margin")),
    _WATCHED,
    _RIGHT,
    _KL,
    *_ANSWERS,
    Panel("Learning rate", "learning rate", ("learning_rate",)),
    Panel("Gradient norm before clipping", "norm", ("grad_norm",)),
)
_PPO = (
    Panel("Score", "score", ("objective/score", "score")),
    _WATCHED,
    _RIGHT,
    _KL,
    Panel("Score used less the price of the KL", "score", ("objective/rlhf_reward", "objective")),
    *_ANSWERS,
    Panel("Variance of the returns that the baseline explains", "share", ("value/explained_var",)),
    Panel(
        "Tokens whose ratio is clipped",
        "share",
        ("policy/clipfrac_high", "policy/clipfrac_low"),
        ("from above", "from below"),
    ),
    Panel("Entropy", "nats per token", ("policy/entropy",)),
)
_ORDER = {"eval": 1, "train": 0}


def panels_of(kind: str) -> tuple[Panel, ...]:
    """The charts to look at first of a stage of this kind, in order."""
    return _PPO if kind == "ppo" else _MAIN


def unit_of(kind: str, panel: Panel) -> str:
    """What the upright axis of a panel counts in a stage of this kind."""
    return _LOSS_UNITS.get(kind, panel.unit) if panel.names == ("loss",) else panel.unit


def counter_of(kind: str) -> str:
    """What the level axis of its charts counts."""
    return "rollout" if kind == "ppo" else "optimiser step"


def line_of(points: Iterable[Point]) -> tuple[tuple[float, float], ...]:
    """A step that was logged twice (before and after a resume) counts as it was logged last."""
    by_step = {point.step: point.value for point in points}
    return tuple((step, value) for step, value in sorted(by_step.items()) if value is not None)


def curves(stages: Iterable[Stage]) -> list[StageCurves]:
    """The charts of every stage that logged something."""
    drawn = [_stage_curves(stage) for stage in stages]
    return [stage for stage in drawn if stage.main or stage.further]


def _stage_curves(stage: Stage) -> StageCurves:
    by_name: dict[str, list[Point]] = {}
    for point in stage.points:
        by_name.setdefault(point.name, []).append(point)
    panels = [panel for panel in panels_of(stage.kind) if set(panel.names) & set(by_name)]
    shown = {name for panel in panels for name in panel.names}
    further = [Panel(name, name, (name,)) for name in sorted(by_name) if name not in shown]
    return StageCurves(
        stage=stage.name,
        kind=stage.kind,
        main=tuple(_chart(stage, panel, by_name) for panel in panels),
        further=tuple(_chart(stage, panel, by_name) for panel in further),
        watched=watched(stage),
    )


def _chart(stage: Stage, panel: Panel, by_name: dict[str, list[Point]]) -> Chart:
    points = [point for name in panel.names for point in by_name.get(name, ())]
    series = _named(panel, by_name) if panel.labels else _by_split(points)
    legend = tuple(
        Legend(label=s.label, style=s.style, last=plain(s.points[-1][1]) if s.points else "–") for s in series
    )
    x_label = counter_of(stage.kind)
    series = [_with_hints(line, x_label) for line in series]
    marks = [mark for mark in (_turn(stage, panel, line) for line in series) if mark]
    y_label = unit_of(stage.kind, panel)
    svg = line_chart(f"{panel.title} of {stage.name}", series, x_label=x_label, y_label=y_label, marks=marks)
    return Chart(title=panel.title, svg=svg, legend=legend, left_out=sum(point.value is None for point in points))


def _with_hints(line: Series, x_label: str) -> Series:
    """A line whose points say their numbers when they are pointed at, where they are few enough to be dots."""
    if len(line.points) > MARKED:
        return line
    return replace(line, hints=tuple(f"{x_label} {step:g}: {plain(value)}" for step, value in line.points))


def _turn(stage: Stage, panel: Panel, line: Series) -> Mark | None:
    """Where over-optimisation began, on the line of held-out measurements that showed it."""
    seen = watched(stage) if line.points and set(panel.names) & set(OPINIONS) else None
    if seen is None or seen.step is None or seen.opinion not in panel.names:
        return None
    step = seen.step
    return Mark(*min(line.points, key=lambda point: abs(point[0] - step)), "turned here")


def _by_split(points: Sequence[Point]) -> list[Series]:
    splits = sorted({point.split for point in points}, key=lambda split: (_ORDER.get(split, 2), split))
    return [
        Series(
            label={"eval": "held-out"}.get(split, split),
            style=split if split in _ORDER else "other",
            points=line_of([point for point in points if point.split == split]),
        )
        for split in splits
    ]


def _named(panel: Panel, by_name: dict[str, list[Point]]) -> list[Series]:
    styles = ("train", "other")
    rows = zip(panel.names, panel.labels, styles, strict=True)
    return [
        Series(label=label, style=style, points=line_of(by_name[name]))
        for name, label, style in rows
        if name in by_name
    ]
