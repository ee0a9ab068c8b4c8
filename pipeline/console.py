"""What a person sees while a run goes on: sentences always, a live line on a terminal, else one line an interval.

Library chatter goes to the log file; only these lines reach the terminal, and no secret does. Layer 0.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from pipeline.redaction import redacted

QUIET_SECONDS = 15.0
"""Without a terminal, progress is said at most once in so many seconds."""


class Console:
    """Speaks for one process; a silent one (every rank but the first) swallows everything."""

    def __init__(self, stream: TextIO | None, prefix: str = ""):
        self._stream = stream
        self._prefix = prefix
        self._live = bool(stream and stream.isatty())
        self._line_open = False
        self._started: dict[str, tuple[float, int]] = {}
        self._last = 0.0

    def say(self, text: str) -> None:
        """Print a sentence on a line of its own."""
        self._clear()
        self._write(f"{self._prefix}{text}\n")

    def progress(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` units of a task are finished; time left is counted from the first call."""
        now = time.monotonic()
        started, first = self._started.setdefault(task, (now, done))
        is_last = done >= total
        if not is_last and not self._live and (done == first or now - self._last < QUIET_SECONDS):
            return
        self._last = now
        text = f"{self._prefix}{task} {done}/{total}" + (f"  {detail}" if detail else "")
        if is_last:
            self._started.pop(task)
            self._clear()
            self._write(f"{text}  in {duration(now - started)}\n")
            return
        if done > first:
            text += f"  {duration((now - started) / (done - first) * (total - done))} left"
        if self._live:
            self._write(f"\r\x1b[2K{text[: _columns(self._stream) - 1]}")
            self._line_open = True
        else:
            self._write(text + "\n")

    def _clear(self) -> None:
        if self._line_open:
            self._write("\r\x1b[2K")
            self._line_open = False

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(redacted(text))
            self._stream.flush()
        except (BrokenPipeError, OSError):
            # A closed terminal or pipe must never stop a training run.
            self._stream = None


def terminal_console(prefix: str = "") -> Console:
    """A console on this process's standard output."""
    return Console(sys.stdout, prefix)


def inherited_console(descriptor: int | None, prefix: str) -> Console:
    """A console on a file descriptor handed down by the parent process; silent without one."""
    return Console(None if descriptor is None else os.fdopen(descriptor, "w", encoding="utf-8"), prefix)


def _columns(stream: TextIO | None) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream else 80
    except OSError:
        return 80


def duration(seconds: float) -> str:
    """A length of time as a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
