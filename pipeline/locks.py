"""One process at a time in a run directory. The kernel drops the lock with its holder, so none is ever stale."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.durable import read_json, write_json_atomically
from pipeline.errors import BusyError

_HOLDER = ".holder.json"


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
        holder = _holder(folder)
        raise BusyError(
            f"{folder} is in use by process {holder['pid']} on {holder['host']} since {holder['since']} "
            f"({holder['command']}); wait for it, stop it, or choose another --output-dir"
        ) from error
    try:
        write_json_atomically(
            folder / _HOLDER,
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": " ".join(sys.argv)[:200],
            },
        )
        yield
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> dict[str, Any]:
    try:
        return dict(read_json(folder / _HOLDER))
    except (OSError, ValueError):
        return {"pid": "?", "host": "?", "since": "?", "command": "?"}
