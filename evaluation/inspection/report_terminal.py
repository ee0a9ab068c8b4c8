"""Data reports on the terminal: facts, lengths as bars, tables; for 80 columns and for log files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from evaluation.inspection.report import grouped
from evaluation.inspection.stage_rows import StageRows
from evaluation.report.data_section import DataFigures, ShareTable, figures_of
from evaluation.report.files import mapping
from evaluation.report.measures import count
from evaluation.report.terminal import say, text_for

_BAR = 28
_LINES = 12
"""Lines of a histogram and of a table; `--json` and `--html` have all."""


def print_reports(found: list[StageRows], console: Console | None = None) -> None:
    """Print the reports, on `console` or else on standard output; one that holds for several stages once."""
    console = console or Console(highlight=False)
    for index, (rows, stages) in enumerate(grouped(found)):
        if index:
            console.print()
        _print_report(rows, stages, console)


def _print_report(rows: StageRows, stages: tuple[str, ...], console: Console) -> None:
    figures = figures_of(rows.report)
    say(console, f"data.{rows.data}, used by {', '.join(stages)}", "bold")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", overflow="fold")
    facts.add_column(overflow="fold")
    for source in rows.report["sources"]:
        told = f"{count(source['rows_read'])} rows read as {source['format']}: {source['recognised_by']}; "
        facts.add_row(text_for(console, source["path"]), text_for(console, told + account_of(source)))
    for name, fact in figures.facts:
        facts.add_row(text_for(console, name), text_for(console, fact))
    console.print(facts)
    console.print()
    _drops(figures, console)
    _cleaning(figures, console)
    _lengths(rows, figures, console)
    for table in figures.tables:
        _shares(table, console)


def account_of(source: Mapping[str, Any]) -> str:
    """What became of the rows of a source, in words; read = kept + dropped + set aside."""
    left_out = [
        f"{count(rows)} {what}"
        for what, by_reason in (("dropped", source["dropped"]), ("set aside", source["quarantined"]))
        if (rows := sum(by_reason.values()))
    ]
    account = ", ".join((f"{count(source['kept'])} kept", *left_out))
    return f"{account}; {count(source['train'])} to train on, {count(source['held_out'])} held out"


def _cleaning(figures: DataFigures, console: Console) -> None:
    """Which rule took what out of which source, and which evaluation sets were compared with."""
    if figures.cleaning.taken_out:
        table = _table(console, "Taken out of training", "rows", "why", "source")
        for row in figures.cleaning.taken_out[:_LINES]:
            table.add_row(*(text_for(console, cell) for cell in (count(row.rows), row.told, row.source)))
        console.print(table)
        if (further := len(figures.cleaning.taken_out) - _LINES) > 0:
            say(console, f"  and {further:,} further", "dim")
        console.print()
    if figures.cleaning.kept_apart:
        table = _table(console, "Kept apart from evaluation sets", "set", "texts", "rows taken out")
        for each in figures.cleaning.kept_apart:
            table.add_row(*(text_for(console, cell) for cell in (each.name, each.texts, each.rows_dropped)))
        console.print(table)
        console.print()


def _drops(figures: DataFigures, console: Console) -> None:
    if not figures.drops:
        return
    table = _table(console, "Not trained on", "rows", "why")
    for drop in figures.drops:
        style = "" if drop.on_purpose else "yellow"
        told = f"{drop.told}{' (as the recipe says)' if drop.on_purpose else ''}"
        table.add_row(text_for(console, count(drop.rows), style), text_for(console, told, style))
    console.print(table)
    console.print()
    for example in figures.examples[:3]:
        say(console, f"  for instance {example}", "dim")


def _lengths(rows: StageRows, figures: DataFigures, console: Console) -> None:
    table = _table(console, "Tokens", "", "mean", "median", "95 %", "longest")
    for row in figures.lengths:
        table.add_row(*(text_for(console, cell) for cell in (row.label, row.mean, row.middle, row.high, row.longest)))
    console.print(table)
    console.print()
    statistics = rows.report["statistics"]
    for name, head in (
        ("prompt_tokens", "prompt"), ("response_tokens", "answers"), ("chosen_tokens", "chosen"),
        ("rejected_tokens", "rejected"),
    ):  # fmt: skip
        bins = mapping(mapping(statistics.get(name)).get("histogram"))
        if bins:
            _bars(head, int(bins["width"]), list(bins["counts"]), console)


def _bars(head: str, width: int, counts: list[int], console: Console) -> None:
    """A histogram lying on its side, neighbouring bins joined until it is short enough."""
    joined = -(-len(counts) // _LINES)
    counts = [sum(counts[at : at + joined]) for at in range(0, len(counts), joined)]
    width *= joined
    table = _table(console, None, f"{head} tokens", "rows", "")
    for index, rows in enumerate(counts):
        low = index * width
        bar = "█" * max(round(_BAR * rows / max(counts)), 1) if rows else ""
        table.add_row(f"{low:,} to {low + width - 1:,}", count(rows), text_for(console, bar, "green"))
    console.print(table)
    console.print()


def _shares(table: ShareTable, console: Console) -> None:
    drawn = _table(console, table.title, table.head, table.unit.lower(), "%")
    for row in table.rows[:_LINES]:
        drawn.add_row(text_for(console, row.label), row.rows, row.percent)
    console.print()
    console.print(drawn)
    further = table.further + len(table.rows) - _LINES
    if further > 0:
        say(console, f"  and {further:,} further", "dim")


def _table(console: Console, title: str | None, *heads: str) -> Table:
    """Titles and columns as everywhere on the terminal: the first column on the left, figures on the right."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0),
        show_edge=False,
    )  # fmt: skip
    for index, head in enumerate(heads):
        is_words = head in ("why", "source", "") or (index == 0 and head != "rows")
        table.add_column(text_for(console, head), justify="left" if is_words else "right", overflow="fold")
    return table
