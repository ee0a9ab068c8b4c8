"""Who holds a run directory, told from the note that a holder leaves in it. Layer 0, stdlib only."""

from __future__ import annotations

import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.durable import read_json, write_json_atomically
from pipeline.redaction import redacted

_NOTE = ".holder.json"


def note_holder(folder: Path) -> None:
    """Leave a note that this process holds the folder."""
    write_json_atomically(
        folder / _NOTE,
        {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": redacted(" ".join(sys.argv))[:200],
        },
    )


def forget_holder(folder: Path) -> None:
    """Take the note away."""
    (folder / _NOTE).unlink(missing_ok=True)


def holder_of(folder: Path) -> dict[str, Any]:
    """`pid`, `host`, `since` and `command` of who left the note, each a question mark where there is none."""
    unknown = {"pid": "?", "host": "?", "since": "?", "command": "?"}
    try:
        return {**unknown, **read_json(folder / _NOTE)}
    except (OSError, ValueError, TypeError):
        return unknown


def holder_is_gone(folder: Path) -> bool:
    """Whether nobody holds a run directory: released, or its holder ran on this machine and is gone without a word.

    Looks at what holders leave, not at the lock: taking it, be it for a moment, could turn a run away.
    """
    holder = holder_of(folder)
    elsewhere = holder["host"] not in ("?", socket.gethostname())
    return not elsewhere and not Path(f"/proc/{holder['pid']}").is_dir()
