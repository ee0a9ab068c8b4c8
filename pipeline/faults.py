"""Failures on demand, at named points: killed, disk full, out of memory, slow, not a number. Layer 0, stdlib only.

Everything that must survive a failure passes a point here, and does nothing there unless `TRIVET_FAULT` said so when
the process began. What it may say, and what each point is for, stands in docs/faults.md.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pipeline.errors import RecipeError

T = TypeVar("T")

VARIABLE = "TRIVET_FAULT"
"""Environment variable that switches faults on; its value goes through `parse`."""
POINTS: Mapping[str, str] = {
    "stage.ordered": "a stage is to run, its worker not started yet",
    "stage.begun": "a worker holds its artefact's folder and has not touched it yet",
    "stage.finished": "a stage's results are written, its artefact is not sealed",
    "stage.sealed": "an artefact is sealed, its checkpoints still lie in it",
    "stage.linked": "a finished artefact is linked into the run directory, the ledger does not say so yet",
    "file.begun": "a small file (ledger, marker, manifest, progress) is about to be written aside",
    "file.written": "its bytes are written, not flushed",
    "file.flushed": "they are flushed, not renamed into place",
    "file.renamed": "they are in place, their folder is not flushed",
    "ledger.begun": "the ledger is about to change",
    "ledger.written": "the ledger has changed",
    "metrics.begun": "lines are about to be appended to metrics.jsonl",
    "metrics.torn": "half of their bytes are there",
    "metrics.written": "all of them are there",
    "metrics.rewound": "the lines of steps that will run again are gone",
    "data.begun": "a stage is about to read and tokenise its data",
    "data.made": "its data is tokenised",
    "model.begun": "a model is about to be loaded",
    "step.begun": "a training step is about to be computed",
    "step.taken": "an optimiser step has been taken, not logged and not saved",
    "checkpoint.begun": "a checkpoint is about to be written",
    "checkpoint.torn": "some of its files are there",
    "checkpoint.written": "all of them are there, none is hashed or flushed",
    "checkpoint.hashed": "they are flushed, the marker that makes them count is not there",
    "checkpoint.committed": "the marker is there, and so is the checkpoint before this one",
    "checkpoint.withdrawn": "the older checkpoint's marker is gone, its files are still there",
    "weights.begun": "a stage's weights are about to be written",
    "weights.written": "they are written",
    "rollout.begun": "a rollout is about to be sampled",
    "rollout.sampled": "its answers are there, not scored",
    "rollout.scored": "they are scored, nothing is learned from them yet",
    "rollout.learned": "the policy has learned from them, nothing is saved",
    "answers.begun": "answers are about to be sampled",
    "rows.begun": "rows are about to be scored or measured",
    "measured": "an intermediate result is there, not kept",
    "measured.kept": "it is kept",
    "results.begun": "results.json is about to be written",
    "report.begun": "all is done but the report",
    "report.written": "the report is written",
}
"""Name to the state in which a run passes it."""
VALUES: Mapping[str, str] = {
    "loss": "a training step's loss, of SFT, reward model and DPO",
    "gradient": "the norm of its gradient",
    "ppo.loss": "the policy's loss in a step of PPO",
    "ppo.gradient": "the norm of its gradient",
    "weights": "a saved tensor, as it is checked before it counts",
}
"""Values that `nan` can spoil: name to what they are."""
ANY = "*"
_ACTIONS = ("kill", "full", "memory", "sleep", "nan", "note")
_NEEDS_ARGUMENT = ("sleep", "note")
_FAULT = re.compile(
    r"(?P<point>[\w.*]+):(?P<action>[a-z]+)(?:=(?P<argument>[^@,]+))?(?:@(?P<at>[\d*]+))?(?:/(?P<rank>\d+))?"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is to go wrong."""

    point: str
    """A name of `POINTS` or `VALUES`, or `*` for every one."""
    action: str
    argument: str
    """Seconds to sleep, or the file to note points in."""
    at: int | None
    """At which time that this process comes by, from 1; None for every time."""
    rank: int | None
    """Of the only process in which it happens; None for all."""


@dataclass(slots=True)
class _Active:
    faults: tuple[Fault, ...]
    seen: Counter[Fault]


_ACTIVE: _Active | None = None


def arm() -> str:
    """Take over what the environment asks for; called once, as a process begins.

    Returns:
        What to tell the person: empty where nothing was asked for.

    Raises:
        RecipeError: the variable says something that cannot be understood.
    """
    global _ACTIVE
    text = os.environ.get(VARIABLE, "")
    rank = int(os.environ.get("RANK", 0))
    faults = tuple(fault for fault in parse(text) if fault.rank in (None, rank))
    _ACTIVE = _Active(faults, Counter()) if faults else None
    return f"{VARIABLE} is set: this run fails on purpose ({text})" if text else ""


def parse(text: str) -> list[Fault]:
    """Read `POINT:ACTION[=ARGUMENT][@TIME][/RANK]`, several separated by commas.

    Raises:
        RecipeError: naming what was not understood, and what there is.
    """
    found = []
    for part in filter(None, text.split(",")):
        match = _FAULT.fullmatch(part.strip())
        if match is None:
            raise RecipeError(
                f"{VARIABLE}: {part!r} is not of the form POINT:ACTION[=ARGUMENT][@TIME][/RANK], as in "
                "checkpoint.written:kill@2; unset it, or see docs/faults.md"
            )
        point, action, argument = match["point"], match["action"], match["argument"] or ""
        known = (ANY, *VALUES) if action == "nan" else (ANY, *POINTS)
        if action not in _ACTIONS:
            raise RecipeError(f"{VARIABLE}: no action {action!r}; there are {', '.join(_ACTIONS)}")
        if point not in known:
            raise RecipeError(f"{VARIABLE}: no point {point!r} for {action}; there are {', '.join(known)}")
        if bool(argument) != (action in _NEEDS_ARGUMENT) or (action == "sleep" and not _is_number(argument)):
            raise RecipeError(f"{VARIABLE}: {part!r}: sleep=SECONDS and note=FILE have an argument, the others none")
        at = match["at"] or ("*" if action == "note" else "1")
        if at != "*" and not at.isdecimal():
            raise RecipeError(f"{VARIABLE}: {part!r}: @TIME counts from 1, or is * for every time")
        rank = int(match["rank"]) if match["rank"] else None
        found.append(Fault(point, action, argument, None if at == "*" else int(at), rank))
    return found


def reach(point: str, folder: Path | None = None) -> None:
    """Come by a point: nothing happens unless a fault is armed for it.

    Args:
        point: a name of `POINTS`.
        folder: where bytes are being written, named in the error of a full disk.
    """
    if _ACTIVE is not None:
        for fault in _due(point, spoils=False):
            _commit(fault, point, folder)


def spoil(name: str, value: T) -> T:
    """A value on its way: itself, or not a number where a fault is armed for it.

    Args:
        name: of `VALUES`.
        value: a number or a tensor.
    """
    if _ACTIVE is not None and _due(name, spoils=True):
        spoilt: Any = value
        return spoilt * float("nan")
    return value


def write_torn(stream: TextIO, text: str, point: str) -> None:
    """Write a text, coming by a point when half of it has reached the file; in one piece where no fault is armed."""
    if _ACTIVE is None:
        stream.write(text)
        return
    half = len(text) // 2
    stream.write(text[:half])
    stream.flush()
    reach(point)
    stream.write(text[half:])


def _due(point: str, *, spoils: bool) -> list[Fault]:
    assert _ACTIVE is not None
    found = []
    for fault in _ACTIVE.faults:
        if fault.point in (ANY, point) and (fault.action == "nan") == spoils:
            _ACTIVE.seen[fault] += 1
            if fault.at in (None, _ACTIVE.seen[fault]):
                found.append(fault)
    return found


def _commit(fault: Fault, point: str, folder: Path | None) -> None:
    match fault.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), None if folder is None else str(folder))
        case "memory":
            # What torch raises where it is loaded; where it is not, nothing was going to fill a GPU.
            raise getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)("CUDA out of memory, on purpose")
        case "sleep":
            time.sleep(float(fault.argument))
        case "note":
            with open(fault.argument, "a", encoding="utf-8") as stream:
                stream.write(f"{point} {os.getpid()}\n")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None
