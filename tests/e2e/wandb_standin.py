"""Stands in for W&B's library and its service, and stops answering where it is told to; found as `wandb.py`.

`STANDIN` is the folder that the service keeps its runs in, by id; `STANDIN_BLOCKS` is the call that never comes back
(`init`, `log`, `finish`), `log` from the `STANDIN_AT`-th on. As the service does, a run goes on behind its last step,
and steps that do not ascend are dropped.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

run = None
"""Libraries look for it to see whether this is really W&B."""
_FOLDER = Path(os.environ["STANDIN"])
_FOREVER = 3600.0
_calls = {"init": 0, "log": 0, "finish": 0}


def _answer(call: str) -> None:
    _calls[call] += 1
    if os.environ.get("STANDIN_BLOCKS") == call and _calls[call] >= int(os.environ.get("STANDIN_AT", "1")):
        (_FOLDER / f"blocked-{call}").touch()
        time.sleep(_FOREVER)


def Settings(**given: Any) -> dict[str, Any]:
    return given


def Table(**given: Any) -> dict[str, Any]:
    return given


class Artifact:
    def __init__(self, *given: Any, **named: Any):
        pass

    def add_file(self, *given: Any, **named: Any) -> None:
        pass


class Run:
    def __init__(self, path: Path):
        self._path = path
        self.summary: dict[str, Any] = {}
        self.starting_step = self._last() + 1

    def _last(self) -> int:
        return max((json.loads(line)["step"] for line in self._path.open()), default=-1) if self._path.exists() else -1

    def log(self, values: dict[str, Any], step: int) -> None:
        _answer("log")
        if step >= self._last():
            with self._path.open("a") as stream:
                stream.write(json.dumps({"step": step, "values": values}) + "\n")

    def use_artifact(self, artifact: Artifact) -> None:
        pass

    def log_artifact(self, artifact: Artifact, aliases: list[str]) -> None:
        pass

    def finish(self) -> None:
        _answer("finish")


def init(**options: Any) -> Run:
    _answer("init")
    return Run(_FOLDER / f"{options['id']}.jsonl")
