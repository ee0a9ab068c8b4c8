"""One process at a time in a run directory, and one at a time at work on an artefact.

The kernel drops a lock with its holder, so none is ever stale.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.artefact import WORKING_NAMES
from pipeline.errors import BusyError
from pipeline.holders import forget_holder, holder_of, note_holder
from pipeline.run_dir import require_own_folder

WORK_LOCK = ".lock"
"""In an artefact's folder: held by whoever makes or withdraws it. Never deleted, or two could hold it."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a run directory for the length of the block.

    Raises:
        BusyError: another live process holds it; the message says which, since when and on which machine.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = holder_of(folder)
        raise BusyError(
            f"{folder} is in use by process {holder['pid']} on {holder['host']} since {holder['since']} "
            f"({holder['command']}); wait for it, stop it, or choose another --output-dir"
        ) from error
    try:
        note_holder(folder)
        yield
    finally:
        forget_holder(folder)
        lock.release()


@contextmanager
def work_on(folder: Path, patience: float) -> Iterator[None]:
    """Be the only one to change an artefact's folder for the length of the block.

    Args:
        folder: of the artefact; exists.
        patience: seconds to wait for another process, such as the worker of a killed run, to be gone.

    Raises:
        BusyError: another live process is at work on it.
        TrivetError: it is a link to another folder.
    """
    require_own_folder(folder)
    lock = FileLock(folder / WORK_LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise BusyError(
            f"another process is working on {folder}; wait for it, or give this run its own store with --store"
        ) from error
    try:
        yield
    finally:
        lock.release()


def tidy(folder: Path) -> None:
    """Remove what a sealed artefact's worker had left to remove when it was killed, unless one is at it just now."""
    left = [folder / name for name in WORKING_NAMES - {WORK_LOCK} if (folder / name).is_dir()]
    if not left:
        return
    try:
        with work_on(folder, patience=0.0):
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
    except BusyError:
        return


def clear(folder: Path, keep: Set[str]) -> None:
    """Delete everything in a folder but the given names."""
    for path in folder.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
