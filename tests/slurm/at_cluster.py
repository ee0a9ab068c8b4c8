"""Commands on a cluster of one node, and waiting for what they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime import ROOT
from pipeline.status import look
from tests.slurm.cluster import Cluster

SECONDS = 400.0
"""Patience with a loaded machine; on an idle one nothing takes more than a tenth of it."""


class At:
    """A cluster and a folder to run things in."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder

    def trivet(self, *arguments: str) -> str:
        """Run `trivet ARGUMENTS` to its good end; what it printed."""
        done = self._run(arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """Run `trivet ARGUMENTS`, which must not come to a good end; what it complained of."""
        done = self._run(arguments)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )

    def wait(self, what: str, run: Path, condition: Callable[[], Any]) -> None:
        """Poll until it holds; a failure tells everything."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"== {path}\n{path.read_text()[-2000:]}" for path in run.glob("logs/*"))
                states = self.cluster.ask("squeue", "--states=all") + self.cluster.ask("scontrol", "show", "jobs")
                raise AssertionError(f"{what} did not come\n{states}\n{logs}\n{self.cluster.logs()}")
            time.sleep(0.02)

    def shown(self, job: str, field: str) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{field}=(\S*)", self.cluster.ask("scontrol", "show", "job", job))
        return found[1] if found else ""

    def finished(self, run: Path) -> bool:
        """Whether every job of a run has come to a good end; fails at once where one has come to a bad one."""
        states = {job: state for _, job, state in look(run).jobs}
        bad = {job: state for job, state in states.items() if state in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")}
        if bad:
            logs = "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in run.glob("logs/*"))
            raise AssertionError(f"{bad}\n{logs}\n{self.cluster.logs()}")
        return set(states.values()) == {"COMPLETED"}
