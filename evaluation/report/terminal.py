"""The closing words on the terminal: a table of the policies, the comparisons in words, and where to read on.

Made for 80 columns and for a log file as much as for a terminal: colour only adds, it never carries meaning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.report.frontier_section import frontiers_of
from evaluation.report.load import Run, load_run
from evaluation.report.measures import Cell, Measure, cell, figures, measured
from evaluation.report.outcomes import outcome_of
from evaluation.report.verdict import verdict
from evaluation.report.watched import watched
from evaluation.report.words import Sentence, state
from evaluation.report.worse_section import worse_section

STYLES = {
    "better": "green", "worse": "red", "failed": "bold red",
    **dict.fromkeys(("mixed", "caution", "unsure", "running"), "yellow"),
}  # fmt: skip

_PLAINER = str.maketrans({"±": "+-", "–": "-", "→": "->", "↵": "\\", "␣": "_", "█": "#", "·": "."})
_GAP = 2
_RULE = 1
"""The box puts a column of blanks of its own between two columns."""


def print_summary(run_dir: Path, console: Console | None = None) -> None:
    """Print what the run in `run_dir` shows, on `console` or else on standard output."""
    console = console or Console(highlight=False)
    run = load_run(run_dir)
    say(console, f"{run.name}: {state(run).text}", STYLES.get(state(run).tone, ""))
    for table in _tables(run, console):
        console.print()
        console.print(table)
    for i, sentence in enumerate(_sentences(run)):
        if i == 0:
            console.print()
        say(console, sentence.text, STYLES.get(sentence.tone, ""))
    if run.comparisons:
        many = len(run.comparisons)
        say(console, f"All {many} comparisons are in the report." if many > 1 else "The comparison is in the report.")
    if any(row.bounds for row in run.comparisons):
        alone = "; + or - alone, where one way only" if any(_one_way(shown) for shown in _cells(run)) else ""
        say(console, f"Brackets and ± are 95 % intervals over the prompts{alone}.", "dim")
    console.print()
    for path in (run_dir / "report.html", run_dir / "results.json"):
        if path.exists():
            say(console, f"{path.stem:<8}{_short(path)}")


def _sentences(run: Run) -> Iterator[Sentence]:
    """The verdict, what reward models and PPO say of themselves, and turns; without a verdict, all that stages say."""
    if run.comparisons:
        found = verdict(run, frontiers_of(run), worse_section(run))
        yield found.lead
        yield from (Sentence(text=f"- {sentence.text}", tone=sentence.tone) for sentence in found.plain)
    for stage in run.stages:
        if (stage.kind in ("reward", "ppo") or not run.comparisons) and (told := outcome_of(stage)):
            yield Sentence(text=f"{stage.name}: {told}", tone="plain")
        if (seen := watched(stage)) and seen.turned:
            yield Sentence(text=f"{stage.name}: {seen.told}", tone="worse")


def _tables(run: Run, console: Console) -> list[Table]:
    """One table where the width allows it, else several with the policies repeated: no column is squeezed or cut."""
    names = ["policy", *run.policies]
    return tables(console, names, [_column(run, measure) for measure in measured(run.policies.values())])


def tables(console: Console, names: list[str], columns: list[list[str]]) -> list[Table]:
    """Columns with their heads behind a first one, which every table repeats where one table would be too wide."""
    room = console.width - max(map(len, names)) - _GAP
    return [_table(console, [names, *group]) for group in _split(columns, room)]


def _cells(run: Run) -> Iterator[Cell]:
    return (cell(row, measure) for measure in measured(run.policies.values()) for row in run.policies.values())


def _column(run: Run, measure: Measure) -> list[str]:
    """Head and cells of one measure."""
    unit = "" if measure.unit.startswith("nats") else measure.unit
    head = f"{measure.short} {unit}".strip().replace(" ", "\n", 1)
    return [head, *(figure(measure, cell(row, measure)) for row in run.policies.values())]


def figure(measure: Measure, shown: Cell) -> str:
    """`52.0 ±7.9`: the value and half the width of its interval; `0.0 +45.9` where that goes one way only."""
    if shown.value is None or shown.bounds is None:
        return figures(measure, shown.value)[0]
    low, high = shown.bounds
    sign = "±" if not _one_way(shown) else "+" if shown.value == low else "-"
    value, spread = figures(measure, shown.value, (high - low) / (2 if sign == "±" else 1))
    return f"{value} {sign}{spread}"


def _one_way(shown: Cell) -> bool:
    """Whether nothing of the interval lies on one side of the value: 0 of 6, or 6 of 6."""
    return shown.bounds is not None and shown.bounds[0] != shown.bounds[1] and shown.value in shown.bounds


def _split(columns: list[list[str]], room: int) -> list[list[list[str]]]:
    """The columns in as few groups as fit into `room`, evenly filled where that fits too."""
    groups: list[list[list[str]]] = []
    for column in columns:
        if not groups or _width([*groups[-1], column]) > room:
            groups.append([])
        groups[-1].append(column)
    size = -(-len(columns) // max(1, len(groups)))
    even = [columns[start : start + size] for start in range(0, len(columns), max(1, size))]
    return even if all(_width(group) <= room for group in even) else groups


def _width(columns: list[list[str]]) -> int:
    return sum(max(len(line) for text in column for line in text.split("\n")) + _GAP + _RULE for column in columns)


def _table(console: Console, columns: list[list[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, _GAP, 0, 0), show_edge=False, header_style="bold")
    for i, (head, *_) in enumerate(columns):
        table.add_column(text_for(console, head), justify="right" if i else "left", vertical="bottom", overflow="fold")
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*(text_for(console, text) for text in row))
    return table


def say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence as it is, folded to the width."""
    console.print(text_for(console, text, style), overflow="fold")


def text_for(console: Console, text: str, style: str = "") -> Text:
    """`text` as it is, never read as markup, in characters that this console's encoding has."""
    printable = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    try:
        printable.encode(console.encoding)
    except UnicodeEncodeError:
        plainer = printable.translate(_PLAINER)
        printable = plainer.encode(console.encoding, "replace").decode(console.encoding)
    return Text(printable, style=style)


def _short(path: Path) -> str:
    """The path as one would type it here, when that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
