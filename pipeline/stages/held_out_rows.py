"""What each held-out prompt gave in every measurement of a stage: the raw rows behind its means and intervals.

Written beside the metrics as the stage goes, under its `work` folder, and left in the artefact. Layer 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.context import StageContext
from pipeline.durable import full_disk_named, json_lines, write_text_atomically

HELD_OUT = "held_out.jsonl"
"""In the artefact: prompt by prompt the score and the divergence of every measurement."""


def append_rows(context: StageContext, counter: str, at: int, rows: Sequence[Mapping[str, float | None]]) -> None:
    """Add one measurement (first rank only).

    Args:
        context: of the stage.
        counter: what measurements are told apart by, `rollout` or `step`.
        at: its value.
        rows: what each prompt gave, in order.
    """
    path = context.work / HELD_OUT
    lines = [{counter: at, "prompt_id": prompt_id, **row} for prompt_id, row in enumerate(rows)]
    with full_disk_named(context.folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in lines))


def leave_rows(context: StageContext) -> None:
    """Put the rows into the artefact (first rank only); without held-out prompts there are none."""
    path = context.work / HELD_OUT
    if path.is_file():
        (context.folder / HELD_OUT).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")


def rewind_rows(path: Path, counter: str, reached: int) -> None:
    """Forget whatever a file of such rows holds of what will run again, and a torn last line.

    Args:
        path: its lines have the counter; a file that is not there is left so.
        counter: `rollout` or `step`.
        reached: in the checkpoint; -1 without one.
    """
    if not path.is_file():
        return
    kept = []
    for line in json_lines(path):
        try:
            if json.loads(line)[counter] <= reached:
                kept.append(line)
        except ValueError:
            break
    write_text_atomically(path, "".join(line + "\n" for line in kept))
