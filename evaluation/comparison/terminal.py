"""The comparison on a terminal, for 80 columns and for a log file as much as for a screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from evaluation.comparison.by_value import ValueTable
from evaluation.comparison.costs import total
from evaluation.comparison.rows import table
from evaluation.comparison.seeds import Spread
from evaluation.comparison.view import Comparison
from evaluation.comparison.words import nothing_compared
from evaluation.report.measures import duration, figures, plain
from evaluation.report.terminal import STYLES, figure, say, tables


def print_comparison(found: Comparison, console: Console | None = None) -> None:
    """Print everything but the answers, on `console` or else on standard output."""
    console = console or Console(highlight=False)
    for compared, state in zip(found.runs, found.states, strict=True):
        say(console, f"{compared.label}: {state.text}", STYLES.get(state.tone, ""))
    runs = [compared.label for compared in found.runs]
    if found.differences:
        _print(console, "What differs", ["key", *(one.key for one in found.differences)], [
            [label, *(one.values[at] for one in found.differences)] for at, label in enumerate(runs)
        ])  # fmt: skip
    columns = [
        [_head(measure.short, measure.unit), *(figure(measure, cell) for cell in cells)]
        for measure, cells in table(found.rows)
    ]
    if columns:
        _print(console, "Policies", ["policy", *(row.name for row in found.rows)], columns)
    for table_of in found.by_value:
        _print_values(console, table_of)
    for policy, members in dict.fromkeys((one.policy, one.runs) for one in found.spreads):
        own = [one for one in found.spreads if (one.policy, one.runs) == (policy, members)]
        names = ["between seeds", "mean", "deviation", "lowest", "highest"]
        whose = f" ({', '.join(members)})" if len(found.seeds) > 1 else ""
        _print(console, f"{policy}, by seed alone{whose}", names, [_spread(one) for one in own])
    stages = ["stage", *(cost.stage for cost in found.costs), "all"]
    if found.costs:
        times = [
            [label, *(duration(cost.seconds[at]) for cost in found.costs), duration(total(found.runs)[at])]
            for at, label in enumerate(runs)
        ]
        _print(console, "Time", stages, times)
        _print_memory(console, found, runs)
    passed = [(frontier.metric, one) for frontier in found.frontiers for one in frontier.passed]
    if passed:
        console.print()
    for metric, one in passed:
        way = ", ".join(f"{plain(value)} at {plain(kl)}" for _, kl, value in one.points)
        watched = metric != "score" or one.kind == "dpo"
        by = "score by the model that is watched" if watched else "held-out score"
        say(console, f"{one.name}, {by} at nats: {way}")
    for i, sentence in enumerate(found.verdicts):
        if i == 0:
            console.print()
        say(console, sentence.text, STYLES.get(sentence.tone, ""))
    if not found.verdicts:
        console.print()
        say(console, nothing_compared(found.sweeps))
    for sentence in found.tuned_verdicts:
        say(console, sentence.text, STYLES.get(sentence.tone, ""))
    for note in found.notes:
        say(console, f"- {note}", "dim")


def _print_memory(console: Console, found: Comparison, runs: Sequence[str]) -> None:
    """The most that a process took, and behind it the GPU's where there was one; nothing where nothing is known."""
    known = [cost for cost in found.costs if any(peak is not None for peak in (*cost.process_gib, *cost.peak_gib))]
    if known:
        rows = [
            [label, *(_memory(cost.process_gib[at], cost.peak_gib[at]) for cost in known)]
            for at, label in enumerate(runs)
        ]
        _print(console, "Peak memory, GiB (of the GPU)", ["stage", *(cost.stage for cost in known)], rows)


def _memory(process: float | None, gpu: float | None) -> str:
    shown = "–" if process is None else plain(process)
    return shown if gpu is None else f"{shown} ({plain(gpu)})"


def _print_values(console: Console, table: ValueTable) -> None:
    """A line for each value of the keys, the keys' values before the figures."""
    rows = [table.reference, *table.rows] if table.reference else [*table.rows]
    names = [", ".join(row.values) or f"{table.reference_name}, where all start" for row in rows]
    columns = [
        [_head(measure.short, measure.unit), *(figure(measure, row.cells[at]) for row in rows)]
        for at, measure in enumerate(table.measures)
    ]
    if table.seeded:
        columns.insert(0, ["seeds", *(str(row.seeds) for row in rows)])
    keys = ", ".join(table.sweep.short_keys)
    over = "; of several seeds the mean, ± half their range" if table.seeded else ""
    _print(console, f"{table.policy} over {keys}{over}", [keys, *names], columns)


def _spread(one: Spread) -> list[str]:
    values = figures(one.measure, one.mean, one.deviation, min(one.values), max(one.values))
    return [_head(one.measure.short, one.measure.unit), *values]


def _head(short: str, unit: str) -> str:
    unit = "" if unit.startswith("nats") else unit
    return f"{short} {unit}".strip().replace(" ", "\n", 1)


def _print(console: Console, title: str, names: Sequence[str], columns: Sequence[Sequence[str]]) -> None:
    console.print()
    say(console, title, "bold")
    for one in tables(console, list(names), [list(column) for column in columns]):
        console.print(one)
