"""Sentences for the figures: what a run shows, how sure that is, and plainly when nothing is shown.

The page and the terminal say the same because both take their words from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.report.load import Comparison, Run
from evaluation.report.measures import LEAST_PROMPTS, Measure, alike, duration, measure_named, over, shown

_PHRASES = {
    "rule_accuracy": "{after} answers {size} {more} of {of} held-out prompts right than {before}",
    "preference_accuracy": "{after} prefers the chosen answer in {size} {more} of {of} held-out pairs than {before}",
    "win_rate": "{after} wins {size} {more} of {of} comparisons with the reference than {before}",
    "score_heldout": "{after} scores {size} {higher} than {before} by a reward model that training did not use on {of} "
    "held-out prompts",
    "score": "{after} scores {size} {higher} than {before} by the reward model on {of} held-out prompts",
}
_SUBJECTS = {"rule_accuracy": "held-out prompts answered right", "preference_accuracy": "pairs with chosen preferred"}

_BRIEF = {
    "rule_accuracy": "right answers", "score_heldout": "held-out score", "score": "score", "win_rate": "wins",
    "perplexity": "perplexity", "repetition": "repetition",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A finding, and what kind of news it is."""

    text: str
    tone: str
    """better, worse, mixed (both), changed, caution, none (no difference shown), unsure (no interval), running, failed
    or plain."""


def state(run: Run) -> Sentence:
    """Whether the run is through, and if not, where it stands."""
    broken = next((stage for stage in run.stages if stage.status in ("failed", "interrupted")), None)
    if broken:
        verb, tone = ("failed", "failed") if broken.status == "failed" else ("was interrupted", "running")
        reason = f": {broken.reason}" if broken.reason else "."
        return Sentence(text=f"Stage {broken.name} {verb}{reason}", tone=tone)
    if killed := [stage.name for stage in run.stages if stage.status == "killed"]:
        return Sentence(text=f"Stage {killed[0]} was killed; the run's command goes on from there.", tone="running")
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


def told(row: Comparison) -> Sentence:
    """What one comparison shows: nothing where its interval holds zero, or where it rests on too few prompts."""
    measure = measure_named(row.metric)
    if row.bounds is None:
        (size,) = alike(measure, [abs(row.difference)])
        text = f"{_claim(row, measure, size)} (uncertainty not measured)"
        return Sentence(text=f"{text}.", tone="unsure")
    if not shown(row.bounds, row.n):
        return Sentence(text=_no_difference(row, measure), tone="none")
    low, high = row.bounds if row.difference > 0 else (-row.bounds[1], -row.bounds[0])
    size, *around = alike(measure, [abs(row.difference), low, high])
    text = f"{_claim(row, measure, size)} [{around[0]}, {around[1]}]."
    return Sentence(text=text, tone=tone_of(row))


def tone_of(row: Comparison) -> str:
    """better, worse or changed where the interval shows it; none where it does not; unsure without one."""
    if row.bounds is None:
        return "unsure"
    sign = shown(row.bounds, row.n)
    if not sign:
        return "none"
    return ("changed", "better", "worse")[sign * measure_named(row.metric).better]


def amount(row: Comparison) -> str:
    """`+0.43 [0.22, 0.65], n = 48`: the difference with its interval and what it rests on."""
    measure = measure_named(row.metric)
    size, *around = alike(measure, [row.difference, *(row.bounds or ())])
    signed = size if row.difference <= 0 else f"+{size}"
    between = f" [{around[0]}, {around[1]}]" if around else ""
    return f"{signed}{unit_of(measure)}{between}{'' if row.n is None else f', n = {row.n:,}'}"


def _claim(row: Comparison, measure: Measure, size: str) -> str:
    """`sft answers 31 points more of 150 held-out prompts right than base`, without interval and full stop."""
    up = row.difference >= 0
    higher = "higher" if up else "lower"
    if measure.name in _PHRASES:
        more = f"{'point' if size == '1' else 'points'} {'more' if up else 'fewer'}"
        of = "the" if row.n is None else f"{row.n:,}"
        return _PHRASES[measure.name].format(
            after=row.after, before=row.before, size=size, more=more, higher=higher, of=of
        )
    label, behind = lower(measure.label), over(row.n, measure.counted)
    return f"{row.after}: {label} {size}{unit_of(measure)} {higher} than {row.before}{behind}"


def _no_difference(row: Comparison, measure: Measure) -> str:
    subject = _SUBJECTS.get(measure.name, lower(measure.label))
    size, low, high = alike(measure, [row.difference, *(row.bounds or ())])
    signed = size if row.difference <= 0 else f"+{size}"
    figures = f"{signed}{unit_of(measure)} [{low}, {high}]{over(row.n, measure.counted)}"
    few = f"; fewer than {LEAST_PROMPTS} show nothing" if row.n is not None and row.n < LEAST_PROMPTS else ""
    return f"{row.after} against {row.before}: no difference shown in {subject} ({figures}{few})."


def unit_of(measure: Measure) -> str:
    """What stands behind a difference: ` points`, ` nats`, or nothing."""
    return " points" if measure.percent else f" {measure.unit}" if measure.unit else ""


def brief(measure: Measure) -> str:
    """A measure's name inside a sentence that names several."""
    return _BRIEF.get(measure.name, lower(measure.label))


def lower(label: str) -> str:
    """A label inside a sentence; abbreviations such as KL keep their capitals."""
    return label if label[:2].isupper() else label[:1].lower() + label[1:]
