"""The section of a reward stage: how often it is right, on what, whether its confidence is true, what it falls for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evaluation.report.charts import Series, line_chart
from evaluation.report.files import bounds, mapping, number, objects, text, whole
from evaluation.report.load import Run, Stage
from evaluation.report.measures import alike, count, measure_named, plain
from evaluation.report.outcomes import outcome_of, percent

_LENGTHS = {
    "longer_chosen": "the better answer is longer",
    "equal": "both are equally long",
    "shorter_chosen": "the better answer is shorter",
}
_CHANGES = {
    "padded": "white space added at the end",
    "repeated": "the whole answer twice",
    "flattered": "praise before the answer",
    "reformatted": "the same words as a list or in bold",
    "truncated": "second half cut off",
}
_SHIFT = measure_named("shift")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Held-out pairs of one sort."""

    label: str
    accuracy: float | None
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTable:
    """Accuracy by one property of the pairs."""

    title: str
    head: str
    rows: tuple[Slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Pairs of like confidence."""

    confidence: float
    accuracy: float
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one change of an answer does to its score, as it is written."""

    label: str
    shift: str
    around: tuple[str, str] | None
    n: int | None
    told: str
    tone: str
    """worse: the score rises for no better an answer; none; plain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSection:
    """All that a reward stage reports."""

    title: str
    told: str
    facts: tuple[tuple[str, str], ...]
    slices: tuple[tuple[SliceTable, ...], ...]
    """Tables to stand below one another, by column."""
    folded: tuple[SliceTable, ...]
    """Many rows of few pairs each: shown on request."""
    bins: tuple[Bin, ...]
    diagram: Markup
    changes: tuple[Change, ...]


def reward_sections(run: Run) -> list[RewardSection]:
    """One section per reward stage that has figures."""
    return [_section(stage) for stage in run.stages if stage.kind == "reward" and stage.metrics]


def _section(stage: Stage) -> RewardSection:
    metrics = stage.metrics
    bins = tuple(_bins(metrics))
    length = _slices(metrics, "length", "By length", "Of the two answers")
    source = _slices(metrics, "source", "By source", "Source")
    fault = _slices(metrics, "fault", "By fault of the worse answer", "Fault")
    family = _slices(metrics, "family", "By family of prompts", "Family")
    columns = (tuple(table for table in column if table.rows) for column in ((length, source), (fault,)))
    return RewardSection(
        title="Reward model" if stage.name == "reward" else f"Reward model {stage.name}",
        told=outcome_of(stage) or "No pairs were held out, so how good it is was not measured.",
        facts=tuple((term, fact) for term, fact in _facts(metrics) if fact),
        slices=tuple(column for column in columns if column),
        folded=(family,) if family.rows else (),
        bins=bins,
        diagram=_diagram(stage.name, bins),
        changes=tuple(_change(name, mapping(row)) for name, row in mapping(metrics.get("stress")).items()),
    )


def _facts(metrics: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    n, ties = whole(metrics.get("eval_n")), whole(metrics.get("eval_ties"))
    if n:
        yield "held-out pairs", f"{count(n)}{f', {count(ties)} of them scored alike' if ties else ', no ties'}"
    margin = bounds(metrics.get("eval_margin_ci95"))
    around = "" if margin is None else " [{}, {}]".format(*_alike(*margin))
    yield "margin, log-odds", _figure(metrics, "eval_margin", lambda value: _alike(value, *(margin or ()))[0], around)
    yield "loss, nats per pair", _figure(metrics, "eval_loss", plain, hint=" (a coin has 0.693)")
    yield "calibration error", _figure(metrics, "ece", plain, hint=" between stated and true accuracy")
    yield "Brier score", _figure(metrics, "brier", plain, hint=" (a coin has 0.250)")
    length = _figure(metrics, "score_length_correlation", plain, hint=" with the answer's tokens")
    yield "correlation of the score", length
    yield "scale", _scale(metrics)
    yield "members", _members(metrics)
    yield "padding changes a score by", _figure(metrics, "pad_invariance_residual", plain, hint=" at most")
    rows, steps = whole(metrics.get("train_rows")), whole(metrics.get("steps"))
    yield "trained on", f"{count(rows)} pairs in {count(steps)} steps" if rows is not None else ""


def _figure(
    metrics: Mapping[str, Any], name: str, write: Callable[[float], str], around: str = "", *, hint: str = ""
) -> str:
    """`74.4 [67.5, 80.6], before training 50.0`; empty where it was not measured."""
    value, before = number(metrics.get(name)), number(metrics.get(f"{name}_before"))
    if value is None:
        return ""
    return f"{write(value)}{around}{'' if before is None else f', before training {write(before)}'}{hint}"


def _alike(*values: float) -> list[str]:
    return alike(_SHIFT, [*values])


def _scale(metrics: Mapping[str, Any]) -> str:
    offset, scale = number(metrics.get("score_offset")), number(metrics.get("score_scale"))
    if offset is None or scale is None:
        return ""
    n, source = whole(metrics.get("score_n")), text(metrics.get("score_source"))
    rests = f" over {count(n)} answers" if n is not None else ""
    written = f"(raw {'−' if offset >= 0 else '+'} {plain(abs(offset))}) / {plain(scale)}"
    return f"score = {written}: mean 0 and deviation 1{rests}{f' ({source})' if source else ''}"


def _members(metrics: Mapping[str, Any]) -> str:
    members = whole(metrics.get("members"))
    if members is None or members < 2:
        return ""
    listed = metrics.get("member_accuracy")
    each = [percent(value) for one in listed if (value := number(one)) is not None] if isinstance(listed, list) else []
    return f"{members}{', accuracies ' + ', '.join(each) + ' %' if each else ''}"


def _slices(metrics: Mapping[str, Any], by: str, title: str, head: str) -> SliceTable:
    """The weakest first; lengths in their own order."""
    found = {label: mapping(row) for label, row in mapping(metrics.get(f"accuracy_by_{by}")).items()}
    names = [*(name for name in _LENGTHS if name in found), *(name for name in found if name not in _LENGTHS)]
    rows = [
        Slice(
            label=_LENGTHS.get(name, name.replace("_", " ")) if by != "source" else name,
            accuracy=number(found[name].get("accuracy")),
            n=whole(found[name].get("n")),
        )
        for name in names
    ]
    if by != "length":
        rows.sort(key=lambda row: (row.accuracy is None, row.accuracy, row.label))
    return SliceTable(title=title, head=head, rows=tuple(rows))


def _bins(metrics: Mapping[str, Any]) -> Iterable[Bin]:
    for row in objects(metrics.get("reliability")):
        confidence, accuracy = number(row.get("confidence")), number(row.get("accuracy"))
        if confidence is not None and accuracy is not None:
            yield Bin(confidence=confidence, accuracy=accuracy, n=whole(row.get("n")))


def _diagram(stage: str, bins: tuple[Bin, ...]) -> Markup:
    """Accuracy against stated confidence, with the line on which both agree."""
    if not bins:
        return Markup("")
    end = max(0.6, *(one.confidence for one in bins))
    told = [f"says {percent(one.confidence)} %, is {percent(one.accuracy)} % of {count(one.n)} pairs" for one in bins]
    lines = [
        Series(label="confidence that would be true", style="ideal", points=((0.5, 0.5), (end, end))),
        Series(
            label="this model", style="eval", points=tuple((one.confidence, one.accuracy) for one in bins),
            hints=tuple(told), joined=False,
        ),
    ]  # fmt: skip
    return line_chart(
        f"Reliability of {stage}", lines, x_label="probability that the model states", y_label="share it is right in",
        steps=False, x_range=(0.5, end), y_range=(0, 1),
    )  # fmt: skip


def _change(name: str, row: Mapping[str, Any]) -> Change:
    shift, around = number(row.get("shift")), bounds(row.get("ci95"))
    written = _alike(*(value for value in (shift, *(around or ())) if value is not None))
    told, tone = "", "plain"
    if shift is not None and around is None:
        told = "uncertainty not measured"
    elif shift is not None and around is not None:
        told, tone = _direction(*around)
    return Change(
        label=_CHANGES.get(name, name.replace("_", " ")),
        shift=written[0] if shift is not None else "–",
        around=None if shift is None or around is None else (written[1], written[2]),
        n=whole(row.get("n")),
        told=told,
        tone=tone,
    )


def _direction(low: float, high: float) -> tuple[str, str]:
    if low > 0:
        return "▲ rises: a policy can gain by this", "worse"
    return ("falls", "plain") if high < 0 else ("no change shown", "none")
