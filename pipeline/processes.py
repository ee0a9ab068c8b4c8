"""Start a worker, hand signals on to it, and learn how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.assignment import Assignment
from pipeline.peers import Peers
from pipeline.runtime import ROOT, Ranks

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 15.0
"""How long a worker may go on after another rank's has failed: long enough to fail by itself and say why."""
_LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "deepspeed")


def run_worker(assignment: Assignment, ranks: Ranks, peers: Peers, port: int, log: Path) -> dict[str, Any]:
    """Run one stage in a fresh process on this rank and wait for every rank's.

    Args:
        assignment: what to do.
        ranks: this process among its peers.
        peers: the other ranks' supervisors.
        port: for the workers' rendezvous with one another.
        log: file that receives all output of the worker.

    Returns:
        `{"rank", "code", "sentence"}` of the first rank at fault, or of this rank with code 0.
    """
    descriptor, exit_file = tempfile.mkstemp(prefix="trivet-exit-", suffix=".json")
    os.close(descriptor)
    speaks = os.dup(1) if ranks.is_first else None
    assignment = replace(assignment, exit_file=exit_file, console=speaks)
    command = [sys.executable, "-P", "-m", "pipeline.worker"]
    try:
        with log.open("ab") as output:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment(port, assignment),
                pass_fds=() if speaks is None else (speaks,),
            )
        with _signals_handed_on(worker):
            assert worker.stdin is not None
            try:
                worker.stdin.write(assignment.to_json().encode())
                worker.stdin.close()
            except BrokenPipeError:
                pass
            mine = _wait(worker, peers, ranks, Path(exit_file))
        return _first_fault(mine, peers, ranks)
    finally:
        Path(exit_file).unlink(missing_ok=True)
        if speaks is not None:
            os.close(speaks)


def launched_by_a_launcher() -> bool:
    """Whether this process's parent is a launcher, with which it should die (a shell is not)."""
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return any(name in parent for name in _LAUNCHERS)


def _environment(port: int, assignment: Assignment) -> dict[str, str]:
    environment = dict(os.environ)
    environment.update(
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # Sets of names would otherwise be written in another order by every process.
        PYTHONHASHSEED="0",
        PYTHONUNBUFFERED="1",
        TOKENIZERS_PARALLELISM="false",
        TRL_EXPERIMENTAL_SILENCE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TRANSFORMERS_NO_ADVISORY_WARNINGS="1",
        TORCHELASTIC_USE_AGENT_STORE="False",
    )
    if "RANK" in environment:
        environment["MASTER_PORT"] = str(port)
    if assignment.settings.get("stage", {}).get("deepspeed") == "none":
        environment.pop("ACCELERATE_USE_DEEPSPEED", None)
    return environment


@contextmanager
def _signals_handed_on(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    """While the worker runs, a request to stop goes to it; it saves and ends with its own code."""
    handled = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in handled}

    def hand_on(number: int, frame: Any) -> None:
        # A terminal's Ctrl-C reaches the worker by itself.
        if number != signal.SIGINT and worker.poll() is None:
            worker.send_signal(signal.SIGTERM)

    for number in handled:
        signal.signal(number, hand_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(worker: subprocess.Popen[bytes], peers: Peers, ranks: Ranks, exit_file: Path) -> dict[str, Any]:
    """Wait for this rank's worker; once another's has failed, only for a while."""
    deadline: float | None = None
    while worker.poll() is None:
        time.sleep(_POLL_SECONDS)
        if deadline is None and any(outcome["code"] for outcome in peers.outcomes().values()):
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            worker.kill()
    outcome = {"rank": ranks.rank, "time": time.time(), **_ending(worker.returncode, exit_file)}
    peers.report(outcome)
    return outcome


def _ending(returncode: int, exit_file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(exit_file.read_text()))
    except (OSError, ValueError):
        if returncode < 0:
            name = signal.Signals(-returncode).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return {"code": 1, "sentence": f"the worker was killed by {name}{hint}"}
        return {"code": returncode or 1, "sentence": "the worker ended without a word"}


def _first_fault(mine: dict[str, Any], peers: Peers, ranks: Ranks) -> dict[str, Any]:
    """The outcome that explains the others: one with a reason of its own before broken connections, then the earliest."""
    if ranks.world_size == 1:
        return mine
    while len(outcomes := peers.outcomes()) < ranks.world_size:
        time.sleep(_POLL_SECONDS)
    faults = [outcome for outcome in outcomes.values() if outcome["code"]]
    return min(faults, key=lambda outcome: (outcome["code"] == 1, outcome["time"])) if faults else mine
