"""What each measure of a policy means and how its figures are written: the one place for names, units and rounding.

A measure that is not listed here is still shown, under its own name, after the known ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.report.files import bounds, number, whole

LEAST_PROMPTS = 10
"""Over fewer an interval can be a single point by chance, and shows nothing whatever it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One column of the table of policies."""

    name: str
    label: str
    """What it is, in words."""
    short: str
    """The head of its column on a terminal."""
    unit: str = ""
    percent: bool = False
    """Stored as a share of 1, shown in percent; its differences are points."""
    better: int = 0
    """+1 where more is better, -1 where less is, 0 where neither is by itself."""
    outcome: bool = False
    """Whether a difference in it belongs into the verdict."""
    counted: str = "prompts"
    """What its n counts."""
    decimals: int | None = None
    """How finely it is written; unsaid, as its size asks for."""
    stem: str = ""
    """Its interval is `<stem>_ci95` and its count `<stem>_n`."""


def _overlap(name: str, short: str) -> Measure:
    return Measure(
        name=name,
        label=f"{short} against good answers",
        short=short,
        unit="%",
        percent=True,
        better=1,
        counted="good answers",
        stem="overlap",
    )


def _conduct(name: str, label: str, short: str, better: int) -> Measure:
    return Measure(name=name, label=label, short=short, unit="%", percent=True, better=better)


_KNOWN = (
    Measure(
        name="rule_accuracy",
        label="Held-out prompts answered right",
        short="right",
        unit="%",
        percent=True,
        better=1,
        outcome=True,
        stem="rule",
    ),
    Measure(
        name="win_rate",
        label="Wins against the reference",
        short="wins",
        unit="%",
        percent=True,
        better=1,
        outcome=True,
    ),
    Measure(
        name="win_rate_agreed",
        label="Wins where both orders agree",
        short="wins, agreed",
        unit="%",
        percent=True,
        better=1,
    ),
    Measure(
        name="preference_accuracy",
        label="Held-out pairs with the chosen answer preferred",
        short="prefers chosen",
        unit="%",
        percent=True,
        better=1,
        outcome=True,
        counted="pairs",
        stem="preference",
    ),
    Measure(
        name="score_heldout",
        label="Score from a reward model that training did not use",
        short="held-out score",
        better=1,
        outcome=True,
        decimals=2,
    ),
    Measure(name="score", label="Score from the reward model", short="score", better=1, outcome=True, decimals=2),
    Measure(
        name="preference_margin", label="Preference margin", short="margin", unit="nats", better=1, counted="pairs"
    ),
    Measure(name="kl_to_reference", label="KL to the reference", short="KL", unit="nats per response", stem="kl"),
    Measure(name="perplexity", label="Perplexity on held-out text", short="perplexity", better=-1, counted="texts"),
    Measure(name="response_tokens", label="Response length", short="length", unit="tokens"),
    Measure(name="eos_rate", label="Responses that end by themselves", short="ends", unit="%", percent=True, better=1),
    Measure(name="refusal_rate", label="Answers that decline", short="declines", unit="%", percent=True),
    Measure(name="entropy", label="Entropy", short="entropy", unit="nats per token", decimals=2),
    Measure(
        name="repetition", label="4-grams repeated within an answer", short="repeats", unit="%", percent=True, better=-1
    ),
    Measure(name="distinct_1", label="Different tokens among all", short="distinct-1", unit="%", percent=True),
    Measure(name="distinct_2", label="Different pairs of tokens among all", short="distinct-2", unit="%", percent=True),
    _overlap("bleu", "BLEU"),
    _overlap("chrf", "chrF"),
    _overlap("rouge_l", "ROUGE-L"),
    _conduct("refuses_harmful", "Harmful requests declined", "declines harmful", 1),
    _conduct("refuses_harmless", "Harmless requests declined", "declines harmless", -1),
    _conduct("admits_unknown", "Says so where it cannot be known", "admits unknown", 1),
    _conduct("doubts_known", "Says it cannot be known where it can", "doubts known", -1),
    _conduct("gives_in", "False claims agreed to", "gives in", -1),
)
_BY_NAME = {measure.name: measure for measure in _KNOWN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measured value with its interval and count, each None where it was not measured."""

    value: float | None
    bounds: tuple[float, float] | None
    n: int | None


def measure_named(name: str) -> Measure:
    """The measure called `name`, or a plain one for a name that is new here."""
    label = name.replace("_", " ")
    return _BY_NAME.get(name) or Measure(name=name, label=label[:1].upper() + label[1:], short=label)


def measured(rows: Iterable[Mapping[str, Any]]) -> list[Measure]:
    """The measures that at least one of `rows` has a number for: the known in their order, then the others."""
    rows = list(rows)
    present = {name: None for row in rows for name in row if number(row[name]) is not None}
    counts = {f"{_stem(measure_named(name))}_n" for row in rows for name in row}
    others = [name for name in present if name not in _BY_NAME and name not in counts]
    return [measure for measure in _KNOWN if measure.name in present] + [measure_named(name) for name in others]


def known_order(names: Iterable[str]) -> list[str]:
    """Each name once: the known in their order, then the others in theirs."""
    found = dict.fromkeys(names)
    return [*(name for name in _BY_NAME if name in found), *(name for name in found if name not in _BY_NAME)]


def cell(row: Mapping[str, Any], measure: Measure) -> Cell:
    """What `row` says about `measure`."""
    stem = _stem(measure)
    return Cell(
        value=number(row.get(measure.name)), bounds=bounds(row.get(f"{stem}_ci95")), n=whole(row.get(f"{stem}_n"))
    )


def figures(measure: Measure, *values: float | None) -> list[str]:
    """`values` in the measure's unit (which is not written) with equally many decimals; a dash for not measured."""
    known = [abs(v) for v in values if v is not None]
    largest = max(known, default=0.0)
    if measure.percent:
        form = ".1f"
    elif measure.decimals is not None:
        form = f",.{measure.decimals}f"
    elif 0 < largest < 0.001 or largest >= 1e9:
        form = ".2e"
    else:
        form = f",.{digits_for(largest)}f"
    scale = 100 if measure.percent else 1
    return ["–" if v is None else "0" if v == 0 and not measure.percent else format(scale * v, form) for v in values]


def plain(value: float) -> str:
    """A number with about three significant digits and no exponent where it can be avoided."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.001 or size >= 1e9:
        return f"{value:.2e}"
    return f"{value:,.{digits_for(size)}f}"


def count(value: int | None) -> str:
    """A count with thousands separated; a dash where it is not known."""
    return "–" if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """A time a person can compare at a glance: `8.4 s`, `12 min 05 s`, `3 h 20 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def digits_for(size: float) -> int:
    """Decimals that give a number of this size about three significant digits."""
    return next(digits for digits, least in enumerate((100, 10, 1, 0)) if size >= least)


def alike(measure: Measure, values: list[float]) -> list[str]:
    """`values` in the measure's unit with equally many decimals, enough that none rounds to a zero it is not.

    A lower bound of 0.3 points must not be written 0: the reader would take it for an interval that includes zero.
    """
    scaled = [100 * v if measure.percent else v for v in values]
    sizes = [abs(v) for v in scaled if v != 0]
    usual = 0 if measure.percent or not sizes else digits_for(max(sizes))
    least = usual if measure.decimals is None else measure.decimals
    decimals = next((d for d in range(least, 6) if all(size >= 0.5 * 10**-d for size in sizes)), 6)
    return ["0" if v == 0 else f"{v:,.{decimals}f}" for v in scaled]


def shown(around: tuple[float, float] | None, n: int | None) -> int:
    """The sign of a difference that its interval shows: 0 where it holds zero, is missing, or rests on too little."""
    if around is None or around[0] <= 0 <= around[1] or (n is not None and n < LEAST_PROMPTS):
        return 0
    return 1 if around[0] > 0 else -1


def over(rows: object, what: str) -> str:
    """How many a figure rests on, behind it in a sentence; empty where that is not known."""
    known = whole(rows)
    return "" if known is None else f" over {known:,} {what}"


def _stem(measure: Measure) -> str:
    return measure.stem or measure.name
