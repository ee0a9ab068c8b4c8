"""Sentences for the figures: what a run shows, how sure that is, and plainly when nothing is shown.

The page and the terminal say the same because both take their words from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.report.files import bounds, number, whole
from evaluation.report.load import Comparison, Run, Stage
from evaluation.report.measures import Measure, digits_for, duration, measure_named, plain

_PHRASES = {
    "rule_accuracy": "{after} answers {size} {more} of {of} held-out prompts right than {before}",
    "preference_accuracy": "{after} prefers the chosen answer in {size} {more} of {of} held-out pairs than {before}",
    "win_rate": "{after} wins {size} {more} of {of} comparisons than {before}",
}
_SUBJECTS = {"rule_accuracy": "held-out prompts answered right", "preference_accuracy": "pairs with chosen preferred"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A finding, what kind of news it is, and whether it belongs into the verdict."""

    text: str
    tone: str
    """better, worse, changed, none (no difference shown), unsure (no interval), running, failed or plain."""
    outcome: bool = True


def findings(run: Run) -> list[Sentence]:
    """The comparisons in words, outcomes before side effects, otherwise in the order they were written."""
    sentences = [_compare(row) for row in run.comparisons]
    return [s for s in sentences if s.outcome] + [s for s in sentences if not s.outcome]


def state(run: Run) -> Sentence:
    """Whether the run is through, and if not, where it stands."""
    broken = next((stage for stage in run.stages if stage.status in ("failed", "interrupted")), None)
    if broken:
        verb, tone = ("failed", "failed") if broken.status == "failed" else ("was interrupted", "running")
        reason = f": {broken.reason}" if broken.reason else "."
        return Sentence(text=f"Stage {broken.name} {verb}{reason}", tone=tone)
    running = [stage.name for stage in run.stages if stage.status == "running"]
    if running:
        return Sentence(text=f"The run is still going: {', '.join(running)} is running.", tone="running")
    open_stages = [stage.name for stage in run.stages if stage.status not in ("done", "skipped")]
    if open_stages:
        return Sentence(text=f"The run is not through: {', '.join(open_stages)} still to come.", tone="running")
    if not run.stages:
        return Sentence(text="Nothing has been recorded in this run directory yet.", tone="running")
    seconds = sum(stage.seconds or 0 for stage in run.stages if stage.status == "done")
    stages = "The one stage is" if len(run.stages) == 1 else f"All {len(run.stages)} stages are"
    reused = sum(stage.status == "skipped" for stage in run.stages)
    if reused == len(run.stages):
        return Sentence(text=f"{stages} taken over from earlier; nothing had to be run.", tone="plain")
    again = f", {reused} of them taken over from earlier" if reused else ""
    return Sentence(text=f"{stages} done ({duration(seconds)}{again}).", tone="plain")


def outcome_of(stage: Stage) -> str:
    """What a stage's own held-out figures say, in one sentence; empty when it reported none."""
    tell = _OUTCOMES.get(stage.kind)
    return tell(stage.metrics) if tell else ""


def _compare(row: Comparison) -> Sentence:
    measure = measure_named(row.metric)
    if row.bounds is None:
        (size,) = alike(measure, [abs(row.difference)])
        text = f"{_claim(row, measure, size)} (uncertainty not measured)"
        return Sentence(text=f"{text}.", tone="unsure", outcome=measure.outcome)
    low, high = row.bounds
    if low <= 0 <= high:
        return Sentence(text=_no_difference(row, measure), tone="none", outcome=measure.outcome)
    low, high = (low, high) if row.difference > 0 else (-high, -low)
    size, *around = alike(measure, [abs(row.difference), low, high])
    text = f"{_claim(row, measure, size)} [{around[0]}, {around[1]}]."
    return Sentence(text=text, tone=_tone(row.difference, measure), outcome=measure.outcome)


def _tone(difference: float, measure: Measure) -> str:
    gain = difference * measure.better
    return "changed" if gain == 0 else "better" if gain > 0 else "worse"


def _claim(row: Comparison, measure: Measure, size: str) -> str:
    """`sft answers 31 points more of 150 held-out prompts right than base`, without interval and full stop."""
    up = row.difference >= 0
    if measure.name in _PHRASES:
        more = f"{'point' if size == '1' else 'points'} {'more' if up else 'fewer'}"
        of = "the" if row.n is None else f"{row.n:,}"
        return _PHRASES[measure.name].format(after=row.after, before=row.before, size=size, more=more, of=of)
    label, over = _lower(measure.label), _over(row.n, measure.counted)
    return f"{row.after}: {label} {size}{_unit(measure)} {'higher' if up else 'lower'} than {row.before}{over}"


def _no_difference(row: Comparison, measure: Measure) -> str:
    subject = _SUBJECTS.get(measure.name, _lower(measure.label))
    size, low, high = alike(measure, [row.difference, *(row.bounds or ())])
    signed = size if row.difference <= 0 else f"+{size}"
    figures = f"{signed}{_unit(measure)} [{low}, {high}]{_over(row.n, measure.counted)}"
    return f"{row.after} against {row.before}: no difference shown in {subject} ({figures})."


def alike(measure: Measure, values: list[float]) -> list[str]:
    """`values` in the measure's unit with equally many decimals, enough that none rounds to a zero it is not.

    A lower bound of 0.3 points must not be written 0: the reader would take it for an interval that includes zero.
    """
    scaled = [100 * v if measure.percent else v for v in values]
    sizes = [abs(v) for v in scaled if v != 0]
    least = 0 if measure.percent or not sizes else digits_for(max(sizes))
    decimals = next((d for d in range(least, 6) if all(size >= 0.5 * 10**-d for size in sizes)), 6)
    return ["0" if v == 0 else f"{v:,.{decimals}f}" for v in scaled]


def _unit(measure: Measure) -> str:
    return " points" if measure.percent else f" {measure.unit}" if measure.unit else ""


def _lower(label: str) -> str:
    """A label inside a sentence; abbreviations such as KL keep their capitals."""
    return label if label[:2].isupper() else label[:1].lower() + label[1:]


def _sft(metrics: Mapping[str, Any]) -> str:
    before, after = number(metrics.get("eval_loss_before")), number(metrics.get("eval_loss"))
    if after is None:
        return ""
    came = "" if before is None else f" (before training {plain(before)})"
    return f"Held-out loss {plain(after)} nats per token{came}{_over(metrics.get('eval_rows'), 'held-out rows')}."


def _pairs(metrics: Mapping[str, Any]) -> str:
    accuracy, around = number(metrics.get("eval_accuracy")), bounds(metrics.get("eval_accuracy_ci95"))
    if accuracy is None:
        return ""
    before = number(metrics.get("eval_accuracy_before"))
    interval = "" if around is None else f" [{100 * around[0]:.1f}, {100 * around[1]:.1f}]"
    came = "" if before is None else f", before training {100 * before:.1f} %"
    chance = " Not shown to differ from chance." if around and around[0] <= 0.5 <= around[1] else ""
    over = _over(metrics.get("eval_n"), "held-out pairs")
    return f"Prefers the chosen answer in {100 * accuracy:.1f} %{interval}{over}{came}.{chance}"


def _ppo(metrics: Mapping[str, Any]) -> str:
    before, after = number(metrics.get("score_before")), number(metrics.get("score"))
    if after is None:
        return ""
    came = "" if before is None else f" (before training {plain(before)})"
    around = bounds(metrics.get("score_gain_ci95"))
    gain = "" if around is None else f"; gain [{plain(around[0])}, {plain(around[1])}]"
    shown = " No gain shown." if around and around[0] <= 0 <= around[1] else ""
    return f"Score {plain(after)}{came}{gain}.{shown}"


def _over(rows: object, what: str) -> str:
    known = whole(rows)
    return "" if known is None else f" over {known:,} {what}"


_OUTCOMES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "sft": _sft,
    "reward": _pairs,
    "dpo": _pairs,
    "ppo": _ppo,
}
