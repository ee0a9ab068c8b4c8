"""Metrics: an append-only `metrics.jsonl` that is the truth; Weights & Biases (`wandb_mirror`) is a mirror of it.

Every step stands in the file exactly once, whatever was killed in between: resuming drops the lines of steps that
will run again. The mirror can fail in any way without stopping a run. Only the first rank tracks. Layer 2.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artefact import Artefact
from pipeline.durable import full_disk_named, json_lines, write_text_atomically
from pipeline.faults import reach, write_torn

if TYPE_CHECKING:
    from pipeline.wandb_mirror import WandbMirror


class Tracker:
    """Records a stage's metrics.

    Args:
        path: the stage's `metrics.jsonl`.
        stage: its name, written into every line.
        mirror: where else the lines go, or None.
    """

    def __init__(self, path: Path, stage: str, mirror: WandbMirror | None = None):
        self._path = path
        self._stage = stage
        self._mirror = mirror

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one line per value; a value that is not finite is written as null."""
        lines = [
            {
                "stage": self._stage,
                "step": step,
                "split": split,
                "name": name,
                "value": value if math.isfinite(value) else None,
                "time": round(time.time(), 3),
            }
            for name, value in values.items()
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with (
            full_disk_named(self._path.parent, needs=len(text)),
            self._path.open("a", encoding="utf-8") as stream,
        ):
            reach("metrics.begun", self._path.parent)
            write_torn(stream, text, "metrics.torn")
        reach("metrics.written", self._path.parent)
        if self._mirror is not None:
            self._mirror.log(lines)

    def rewind(self, step: int, *, keep_held_out: bool | Collection[str] = False) -> None:
        """Forget everything after a step, and a torn last line: training goes on from there.

        Args:
            step: of the checkpoint; -1 without one.
            keep_held_out: whether held-out results up to the step stay, or the names of those that do: of a stage that
                measures while it trains. Others are written last, and will be again.
        """

        def stays(line: Mapping[str, Any]) -> bool:
            if line["split"] == "train":
                return True
            kept = keep_held_out if isinstance(keep_held_out, bool) else line["name"] in keep_held_out
            return kept and line["split"] == "eval"

        lines = [line for line in read_metrics(self._path) if line["step"] <= step and stays(line)]
        write_text_atomically(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        reach("metrics.rewound", self._path.parent)
        if self._mirror is not None:
            self._mirror.rewound(lines)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hand rows of one shape, such as samples, to the mirror; the stage itself keeps them in a file."""
        if self._mirror is not None and rows:
            self._mirror.table(name, rows)

    def made(self, made: Artefact, parents: Sequence[Artefact]) -> None:
        """Tell the mirror what the stage made and from what, before it is sealed; `finish` sends it."""
        if self._mirror is not None:
            self._mirror.made(made, parents)

    def finish(self) -> None:
        """Close the mirror; call once, when the stage's work is done."""
        if self._mirror is not None:
            self._mirror.finish(read_metrics(self._path))


class SilentTracker(Tracker):
    """The tracker of every rank but the first."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull), "")

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Nothing: the first rank speaks."""

    def rewind(self, step: int, *, keep_held_out: bool | Collection[str] = False) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a torn last one; empty when there is no file."""
    return read_lines(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of any JSONL that a stage writes as it goes, without a torn last one; empty when there is none."""
    if not path.is_file():
        return []
    lines = []
    for text in json_lines(path):
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
