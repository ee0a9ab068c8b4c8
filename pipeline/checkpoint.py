"""Commit protocol for checkpoints inside a stage: a checkpoint counts only once its marker is in place.

The trainer's own writer fills `checkpoint-N`; after a barrier the first process hashes and flushes every file and
renames `COMPLETE.json` into place. Older checkpoints go only then. Resuming takes the newest complete one whose
hashes still match; everything else is debris of an interrupted save. A marker, not a rename of the folder: with
several writers a rename can strand shards of slower ranks. Layer 0, stdlib only.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.durable import (
    file_size,
    free_bytes,
    fsync_path,
    full_disk_named,
    read_json,
    require_room,
    sha256_file,
    size_told,
    write_json_atomically,
)
from pipeline.errors import DiskError, TrivetError
from pipeline.faults import reach

MARKER = "COMPLETE.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_CAREFUL, _CARELESS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Variables by which torch's loader reads numbers alone whatever its caller says, or the contrary."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def commit(checkpoint: Path, made_by: Mapping[str, Any] | None = None) -> None:
    """Declare a fully written checkpoint complete: hash, flush, then write the marker.

    Call on one process, after a barrier that says every process has written its part.

    Args:
        checkpoint: the folder.
        made_by: what its parts depend on besides the step, such as the number of processes.
    """
    try:
        with full_disk_named(checkpoint, needs=_bytes(checkpoint)):
            files = {}
            for path in _files(checkpoint):
                fsync_path(path)
                size = path.stat().st_size
                files[path.relative_to(checkpoint).as_posix()] = {"bytes": size, "sha256": sha256_file(path)}
            for folder in {path.parent for path in _files(checkpoint)} | {checkpoint.parent}:
                fsync_path(folder)
            reach("checkpoint.hashed", checkpoint)
        marker = {"step": step_of(checkpoint), "made_by": dict(made_by or {}), "files": files}
        write_json_atomically(checkpoint / MARKER, marker)
    except DiskError:
        # What cannot be completed must not fill the disk; the checkpoint before it is still there.
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise
    reach("checkpoint.committed", checkpoint)


def made_by(checkpoint: Path) -> dict[str, Any]:
    """What `commit` was told of a complete checkpoint's makers; empty where it was told nothing."""
    return dict(read_json(checkpoint / MARKER)["made_by"])


def is_complete(checkpoint: Path) -> bool:
    """Whether the marker is there and every file it names is unchanged.

    Raises:
        DiskError: the disk does not answer, so that nobody can tell.
    """
    try:
        marker = read_json(checkpoint / MARKER)
        return (
            marker["step"] == step_of(checkpoint)
            and isinstance(marker["made_by"], dict)
            and all(
                file_size(checkpoint / name) == expected["bytes"]
                and sha256_file(checkpoint / name) == expected["sha256"]
                for name, expected in marker["files"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Missing, torn or damaged, be it a file or the marker itself.
        return False


def newest_complete(folder: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint to resume from, if any, and the newer ones passed over because they are incomplete.

    Order is by step number, never by time: clocks and copies lie.
    """
    passed_over: list[Path] = []
    for checkpoint in sorted(all_checkpoints(folder), key=step_of, reverse=True):
        if is_complete(checkpoint):
            return checkpoint, passed_over
        passed_over.append(checkpoint)
    return None, passed_over


def newest_marked(folder: Path) -> Path | None:
    """The newest checkpoint whose marker stands, to be named; `newest_complete` looks whether it is whole."""
    marked = [path for path in all_checkpoints(folder) if (path / MARKER).is_file()]
    return max(marked, key=step_of, default=None)


def keep_only(folder: Path, keep: Path | None) -> None:
    """Delete every checkpoint but one. The marker goes first, so that a kill leaves no half-deleted "complete" one."""
    for checkpoint in all_checkpoints(folder):
        if keep is None or checkpoint.name != keep.name:
            (checkpoint / MARKER).unlink(missing_ok=True)
            reach("checkpoint.withdrawn", checkpoint)
            shutil.rmtree(checkpoint, ignore_errors=True)


def will_fit(folder: Path, expected: int) -> str:
    """Look, before a stage trains, whether the disk takes its checkpoints (first process only).

    Args:
        folder: of its checkpoints; where there is one already, its size says more than what is expected.
        expected: bytes of one.

    Returns:
        A warning where it takes one and not two, which lie beside each other for a moment; else nothing.

    Raises:
        DiskError: it does not even take one.
    """
    older = [_bytes(path) for path in all_checkpoints(folder)]
    size = max(older, default=expected)
    require_room(folder, size)
    beside = size if older else 2 * size
    if (free := free_bytes(folder)) >= beside:
        return ""
    return (
        f"{size_told(free)} are free in {folder}: the first checkpoint of about {size_told(size)} fits, the next one, "
        "which is written before that goes, may not; free some space, or point output_dir to another disk"
    )


@contextmanager
def being_written(checkpoint: Path, expected: int | None = None) -> Iterator[None]:
    """While one process writes its part: a full disk is named, and what did not fit is taken off it again.

    Args:
        checkpoint: its folder.
        expected: bytes of the whole of it, where no older one shows how many. Said by the first process alone, which
            looks whether they fit before anything is written; the others' parts would be counted twice.

    Raises:
        DiskError: the disk is full, or would be; older checkpoints stay as they are.
    """
    older = [path for path in all_checkpoints(checkpoint.parent) if path != checkpoint]
    needs = max(map(_bytes, older), default=expected)
    try:
        with full_disk_named(checkpoint.parent, needs=needs):
            reach("checkpoint.begun", checkpoint)
            if expected is not None and needs is not None:
                require_room(checkpoint.parent, needs)
            yield
            reach("checkpoint.written", checkpoint)
    except DiskError:
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise


@contextmanager
def being_read(checkpoint: Path | None) -> Iterator[None]:
    """While state is loaded from a checkpoint, which holds numbers and nothing that is run, whoever loads it.

    Raises:
        TrivetError: it holds something else; nothing of it has run.
    """
    before = {name: os.environ.pop(name, None) for name in (_CAREFUL, _CARELESS)}
    os.environ[_CAREFUL] = "1"
    try:
        yield
    except Exception as error:
        if checkpoint is None or type(error).__name__ != "UnpicklingError":
            raise
        what = _GLOBAL.search(str(error))
        raise TrivetError(
            f"{checkpoint} holds more than numbers{f' ({what[1]})' if what else ''}, which could run code when it is "
            f"loaded, so it was not loaded; no run of ours wrote that. Delete {checkpoint.parent} and run the same "
            "command again to begin the stage anew"
        ) from error
    finally:
        os.environ.pop(_CAREFUL, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def all_checkpoints(folder: Path) -> list[Path]:
    """Every folder named like a checkpoint, complete or not."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]


def step_of(checkpoint: Path) -> int:
    """The optimiser step in a checkpoint's name."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named like a checkpoint")
    return int(match[1])


def _bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in _files(checkpoint))


def _files(checkpoint: Path) -> list[Path]:
    found = [Path(root) / name for root, _, names in os.walk(checkpoint) for name in names]
    return sorted(path for path in found if path.name != MARKER and not path.name.endswith(".tmp"))
