"""An inspection on the terminal: what it shows in sentences, then rows turn by turn.

Made for 80 columns and for a log file as much as for a terminal: what is trained is said in a column of its own, colour
only adds to it.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from data_prep.pieces import Piece
from evaluation.inspection.sequences import ShownRow, ShownSequence
from evaluation.inspection.view import Inspection, Run, runs
from evaluation.report.terminal import say, text_for

_STYLES = {"trained": "bold green", "context": "", "special": "magenta", "template": "cyan"}
_MARKS = {"sft": "trained", "dpo": "compared", "reward": "scored", "ppo": ""}
"""What the column beside answers says, by kind of stage."""


def print_inspection(inspection: Inspection, console: Console | None = None, *, ids: bool = False) -> None:
    """Print it, on `console` or else on standard output.

    Args:
        inspection: of a stage.
        console: where to.
        ids: write each token's id behind it.
    """
    console = console or Console(highlight=False)
    say(console, f"{inspection.recipe}, stage {inspection.found.stage} ({inspection.found.kind})", "bold")
    say(console, f"base {inspection.base}, chat template: {inspection.chat_template}", "dim")
    console.print()
    for finding in inspection.findings:
        say(console, finding.text, "yellow" if finding.tone == "worse" else "")
    for row in inspection.rows:
        console.print()
        for part in _row(inspection, row, console, ids):
            console.print(part)


def _row(inspection: Inspection, row: ShownRow, console: Console, ids: bool) -> Iterator[RenderableType]:
    origin = f"{row.origin.source} row {row.origin.row}"
    notes = "".join(f", {name} {value}" for name, value in row.notes)
    yield text_for(console, f"row {row.number:,} of {inspection.total:,}: {origin}{notes}", "bold")
    for sequence in row.sequences:
        yield text_for(console, _size(inspection, sequence))
        if row.cut:
            yield text_for(console, f"  [{row.cut:,} tokens cut off here to fit]", "yellow")
        yield _turns(inspection, sequence, console, ids)
        if inspection.found.kind == "ppo":
            yield text_for(console, "  [the policy writes on from here]", "green")


def _size(inspection: Inspection, sequence: ShownSequence) -> str:
    if inspection.found.kind == "ppo":
        return f"{sequence.name}: {len(sequence.ids):,} tokens"
    mark = _MARKS[inspection.found.kind]
    return f"{sequence.name}: {len(sequence.ids):,} tokens, {sequence.trained:,} {mark}"


def _turns(inspection: Inspection, sequence: ShownSequence, console: Console, ids: bool) -> Table:
    table = Table.grid(padding=(0, 1))
    for width in (2, 9, 8):
        table.add_column(min_width=width, no_wrap=True)
    table.add_column(overflow="fold")
    for run in runs(sequence):
        mark = _MARKS[inspection.found.kind] if run.trained else ""
        style = _STYLES["trained"] if run.trained else "dim"
        table.add_row("", text_for(console, run.role, "bold"), Text(mark, style), _written(run, console, ids))
    return table


def _written(run: Run, console: Console, ids: bool) -> Text:
    """The run's text, line breaks shown as such, and with ids the spaces too: a plain one parts tokens then."""
    written = Text()
    for index, piece in enumerate(run.pieces):
        last = index == len(run.pieces) - 1
        text, breaks = _visible(piece)
        if ids:
            text = text.replace(" ", "␣")
        written.append(text_for(console, text, _STYLES[piece.kind]))
        if ids:
            written.append(f"[{'+'.join(map(str, piece.ids))}] ", "dim")
        written.append("" if last else breaks)
    return written


def _visible(piece: Piece) -> tuple[str, str]:
    """A piece with its line breaks as signs, each but the last followed by a break; and the break after it."""
    text = piece.text.replace("\r", "").replace("\t", "    ").replace("\n", "↵\n")
    return text.removesuffix("\n"), "\n" if text.endswith("\n") else ""
