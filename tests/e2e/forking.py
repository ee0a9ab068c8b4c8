"""Runs forked from a warm parent, with the few methods of `subprocess.Popen` that tests use."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime import ROOT

_POLL_SECONDS = 0.005
_WARM = {
    "PYTHONPATH": str(ROOT),
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Arrow's allocator would start a thread, which no fork takes along.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class WarmParent:
    """The process that runs are forked from; started once, as it imports everything.

    Args:
        environment: what libraries find when they are imported.
        log: takes what it prints.
    """

    def __init__(self, environment: Mapping[str, str], log: Path):
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.e2e.warm_parent"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                cwd=ROOT,
                env={**environment, **_WARM},
            )
        assert self._answer(), log.read_text()

    def start(self, argv: Sequence[str], environment: Mapping[str, str], folder: Path, output: Path) -> Forked:
        """Fork a run: `argv` as `python` would be given it, beginning with the script."""
        order = {"argv": list(argv), "environment": dict(environment), "folder": str(folder), "output": str(output)}
        return Forked(self, self.ask(order)["pid"], list(argv))

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {}


class Forked:
    """A forked run's supervisor."""

    def __init__(self, parent: WarmParent, pid: int, argv: list[str]):
        self._parent = parent
        self.pid = pid
        self.args = argv
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._parent.ask({"pid": self.pid})["code"]
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        assert self.returncode is not None
        return self.returncode
