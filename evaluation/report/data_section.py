"""The section on a data set: what was read and dropped, how long rows are, in which scripts, how pairs compare.

From a stage's data report, in a manifest or just made; whatever a report lacks, an older one for instance, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evaluation.report.cleaning_section import CleaningFigures, cleaning_of
from evaluation.report.drops import Drop, drops_of
from evaluation.report.files import mapping, number, objects, text, whole
from evaluation.report.histograms import histogram
from evaluation.report.measures import count, plain

_LENGTHS = {
    "prompt_tokens": "Prompt",
    "response_tokens": "Answers",
    "chosen_tokens": "Chosen answer",
    "rejected_tokens": "Rejected answer",
}
_COUNTED = {
    "sources": ("By source", "Source"),
    "families": ("By family", "Family"),
    "faults": ("By fault of the rejected answer", "Fault"),
    "answers_per_row": ("By answers in a conversation", "Answers"),
}
_MOST = 40
"""Rows of a table; a data set of thousands of files says the rest in one line."""


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Lengths of one part of the rows, in tokens."""

    label: str
    mean: str
    middle: str
    high: str
    longest: str


@dataclass(frozen=True, slots=True)
class Share:
    """One line of a table of counts, with its share of the whole."""

    label: str
    rows: str
    percent: str


@dataclass(frozen=True, slots=True)
class ShareTable:
    """Rows by one property."""

    title: str
    head: str
    rows: tuple[Share, ...]
    further: int
    """Lines that are not shown."""
    unit: str = "Rows"
    """What is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFigures:
    """All that a data report says of its rows, as it is written."""

    facts: tuple[tuple[str, str], ...]
    lengths: tuple[LengthRow, ...]
    charts: tuple[tuple[str, Markup], ...]
    tables: tuple[ShareTable, ...]
    drops: tuple[Drop, ...]
    examples: tuple[str, ...]
    cleaning: CleaningFigures


def figures_of(report: Mapping[str, Any]) -> DataFigures:
    """What is to be shown of a data report."""
    statistics = mapping(report.get("statistics"))
    return DataFigures(
        facts=tuple(_facts(report, statistics)),
        lengths=tuple(_lengths(statistics)),
        charts=tuple(_charts(statistics)),
        tables=tuple(_tables(statistics)),
        drops=tuple(drops_of(report)),
        examples=tuple(_examples(report)),
        cleaning=cleaning_of(report),
    )


def _facts(report: Mapping[str, Any], statistics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rows to train on", count(whole(report.get("train_rows")))
    yield "rows held out", count(whole(report.get("eval_rows")))
    tokens = mapping(statistics.get("tokens"))
    if (all_ := whole(tokens.get("all"))) is not None:
        share = number(tokens.get("answers_share"))
        yield "tokens", f"{count(all_)}{f', {percent(share)} of them in answers' if share else ''}"
    cut = whole(report.get("prompts_truncated"))
    if cut is not None:
        yield "rows that lost their beginning", f"{count(cut)} (held-out rows included)" if cut else "none"
    if (rules := whole(statistics.get("with_rule"))) is not None:
        yield "prompts with a rule", count(rules)
    yield from _longer(mapping(statistics.get("longer_answer")))
    margins = mapping(statistics.get("margins"))
    if (stated := whole(margins.get("rows"))) is not None:
        yield "pairs that state a margin", f"{count(stated)}, mean {plain(number(margins.get('mean')) or 0)}"
    noise = mapping(report.get("label_noise"))
    if (voted := whole(noise.get("pairs"))) is not None:
        doubt = percent(number(noise.get("mean")) or 0)
        yield "pairs with their annotators' votes", f"{count(voted)}, of whom {doubt} would not have chosen so"
    calls = mapping(statistics.get("calls"))
    if (calling := whole(calls.get("rows"))) is not None:
        yield "rows with functions", f"{count(calling)}, {count(whole(calls.get('calls')))} calls in them"
    if aside := sum(drop.rows for drop in drops_of(report) if drop.set_aside):
        yield "rows set aside in quarantine.jsonl", count(aside)
    yield from cleaning_of(report).facts
    if (mixed := whole(mapping(statistics.get("scripts")).get("mixed_rows"))) is not None:
        yield "rows in more than one script", count(mixed)
    yield from _padding(mapping(report.get("padding")))


def _longer(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How far a model would come that goes by length alone."""
    counts = [whole(row.get(name)) for name in ("chosen", "rejected", "equal")]
    if None in counts or not sum(known := [c for c in counts if c is not None]):
        return
    chosen, _, equal = known
    right = (chosen + equal / 2) / sum(known)
    difference = number(row.get("mean_difference")) or 0.0
    longer = "longer" if difference > 0 else "shorter"
    won, alike = percent(chosen / sum(known)), percent(equal / sum(known))
    told = f"in {won} of pairs, equally long {alike}; going by length alone is right in {percent(right)}"
    yield "the longer answer is the chosen one", told
    yield "chosen answers are on average", f"{plain(abs(difference))} tokens {longer}" if difference else "as long"


def _padding(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    used = text(row.get("used"))
    shares = {
        "shuffled": number(row.get("shuffled")),
        "grouped": number(row.get("grouped")),
        "packed": number(mapping(row.get("packed")).get("padding")),
    }
    names = {"shuffled": "rows at random", "grouped": "group_by_length", "packed": "packing"}
    parts = [
        f"{percent(value)} with {names[name]}{' (in use)' if name == used else ''}"
        for name, value in shares.items()
        if value is not None
    ]
    if parts:
        yield f"padding in batches of {count(whole(row.get('batch_rows')))} rows", ", ".join(parts)
    packed = mapping(row.get("packed"))
    filled = number(packed.get("filled"))
    if filled is not None:
        sequences, longest = count(whole(packed.get("sequences"))), count(whole(packed.get("max_length")))
        name = "packed into" if used == "packed" else "would pack into"
        yield name, f"{sequences} sequences of up to {longest} tokens, {percent(filled)} filled"


def _lengths(statistics: Mapping[str, Any]) -> Iterator[LengthRow]:
    for name, label in _LENGTHS.items():
        row = mapping(statistics.get(name))
        if row:
            mean = number(row.get("mean"))
            others = [count(whole(row.get(key))) for key in ("p50", "p95", "max")]
            yield LengthRow(label, "–" if mean is None else plain(mean), *others)


def _charts(statistics: Mapping[str, Any]) -> Iterator[tuple[str, Markup]]:
    for name, label in _LENGTHS.items():
        bins = mapping(mapping(statistics.get(name)).get("histogram"))
        drawn = histogram(f"{label}: rows by tokens", whole(bins.get("width")), bins.get("counts"))
        if drawn:
            yield f"{label}, tokens", drawn


def _tables(statistics: Mapping[str, Any]) -> Iterator[ShareTable]:
    scripts = mapping(mapping(statistics.get("scripts")).get("rows"))
    if scripts:
        yield _table("By script", "Most letters are", scripts)
    for name, (title, head) in _COUNTED.items():
        counted = mapping(statistics.get(name))
        # One source, or one answer a row, is no news.
        if len(counted) > 1 or (counted and name == "faults"):
            yield _table(title, head, counted)
        if name == "sources":
            yield from _tokens_by_source(mapping(statistics.get("source_tokens")))


def _tokens_by_source(counted: Mapping[str, Any]) -> Iterator[ShareTable]:
    """What a mixture comes to in tokens, which is what a loss counts; of prompts, which are not trained, in all."""
    if len(counted) < 2:
        return
    of = "answers" if any(whole(mapping(row).get("answers")) for row in counted.values()) else "all"
    title = "Tokens of answers by source" if of == "answers" else "Tokens by source"
    yield _table(title, "Source", {name: mapping(row).get(of) for name, row in counted.items()}, "Tokens")


def _table(title: str, head: str, counted: Mapping[str, Any], unit: str = "Rows") -> ShareTable:
    known = [(label, rows) for label, value in counted.items() if (rows := whole(value)) is not None]
    total = sum(rows for _, rows in known) or 1
    shown = [Share(_readable(label), count(rows), f"{100 * rows / total:.1f}") for label, rows in known[:_MOST]]
    return ShareTable(title, head, tuple(shown), max(0, len(known) - _MOST), unit)


def _readable(label: str) -> str:
    """A name of ours without its underscores; a path or a `builtin:` name as it is."""
    return label if {"/", ".", ":"} & set(label) else label.replace("_", " ")


def _examples(report: Mapping[str, Any]) -> Iterator[str]:
    """Rows that fell out: of those that could not be encoded first, then of those that could not be read."""
    for source, row, reason in _tuples(report.get("dropped_examples"), 3):
        yield f"{source} row {row}: {text(reason).replace('_', ' ')}"
    for source in objects(report.get("sources")):
        for row, reason in _tuples(source.get("dropped_examples"), 2):
            yield f"{text(source.get('path'))} row {row}: {text(reason).replace('_', ' ')}"


def _tuples(value: object, size: int) -> Sequence[Sequence[Any]]:
    """The entries of a list that have as many parts."""
    return [one for one in value if isinstance(one, list) and len(one) == size] if isinstance(value, list) else []


def percent(share: float) -> str:
    """A share as a person writes it: `23 %`, and never 0 % for what is not nothing."""
    figure = 100 * share
    return f"{figure:.0f} %" if figure >= 9.5 or figure == 0 else f"{figure:.1f} %"
