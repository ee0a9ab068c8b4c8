"""Start a worker, hand signals on to it, and learn how it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.assignment import Assignment
from pipeline.errors import PreemptedError, TrivetError
from pipeline.models.source import BaseIdentity, ready_folder
from pipeline.peers import GONE_WITHOUT_A_WORD, Peers
from pipeline.recipe.engines import USE_DEEPSPEED, USE_FSDP, stage_engine
from pipeline.runtime import PARENT, ROOT, Ranks
from pipeline.stopping import FLAG

_POLL_SECONDS = 0.05
_PIPE_BYTES = 65536
"""What a pipe holds, and more than a worker says at its end."""
_REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_GRACE_SECONDS = 15.0
"""How long a worker may go on after another rank's has failed: long enough to fail by itself and say why."""
_LAST_WORD_SECONDS = 15.0
"""How much longer to wait for the word of a rank that lives, whose worker cannot even be killed."""
_OF_PEERS = re.compile(r"closed by peer|Connection (reset|refused)|Broken pipe|[Tt]imed ?out|[Tt]imeout|SIGABRT")
"""What a worker says that has lost another rank's, or waited for it in vain. Libraries also give up by an abort."""
_HUNG = "the worker hung: it neither went on nor ended after another rank's had failed, and was killed"
_LAUNCHERS = ("accelerate", "torchrun", "torch.distributed", "deepspeed")


class StageFailed(TrivetError):
    """A process of ours ended with an error; carries its code and sentence."""

    def __init__(self, code: int, sentence: str):
        super().__init__(sentence)
        self.exit_code = code


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
    # Its last words come through a pipe: on a full disk a file could not be written, after a kill it would stay.
    hears, tells = os.pipe()
    os.set_blocking(hears, False)
    speaks = os.dup(1) if ranks.is_first else None
    assignment = replace(assignment, exit_descriptor=tells, console=speaks)
    command = [sys.executable, "-P", "-m", "pipeline.worker"]
    try:
        with log.open("ab") as output:
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_worker_environment(port, assignment),
                pass_fds=(tells,) if speaks is None else (tells, speaks),
            )
        with _requests_noted():
            assert worker.stdin is not None
            try:
                worker.stdin.write(assignment.to_json().encode())
                worker.stdin.close()
            except BrokenPipeError:
                pass
            mine = _wait(worker, peers, ranks, hears)
            # In here too: once a rank has died a launcher asks all to stop, and whose death it was is not known yet.
            return _first_fault(mine, peers, ranks)
    finally:
        for descriptor in filter(None, (hears, tells, speaks)):
            os.close(descriptor)


def prepare_base(base: BaseIdentity, log: Path) -> Path:
    """Fetch or build the base model in a process of its own, so that the supervisor stays light and its output clean.

    Raises:
        TrivetError: it cannot be had; with the code and sentence of the cause.
    """
    if folder := ready_folder(base):
        return folder
    command = [sys.executable, "-P", "-m", "pipeline.models.prepare"]
    with log.open("ab") as output:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(base)),
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=_environment(),
        )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = {"code": 1, "sentence": f"preparing {base.name} failed; see {log}"}
    if answer["code"]:
        raise StageFailed(answer["code"], answer["sentence"])
    return Path(answer["folder"])


def launched_by_a_launcher() -> bool:
    """Whether this process's parent is a launcher, with which it should die (a shell is not)."""
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return any(name in parent for name in _LAUNCHERS)


def _said_to_the_launcher(name: str) -> bool:
    """Whether a variable stood in the launcher's own environment, set by the user and not by the launcher."""
    try:
        variables = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return name in os.environ
    return any(variable.startswith(f"{name}=".encode()) for variable in variables)


def _environment() -> dict[str, str]:
    """The environment of every process we start: our modules found, the libraries quiet and repeatable."""
    # W&B's service of a program around us would keep a run open that a kill of ours has left, and refuse it afterwards.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return dict(
        inherited,
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # Sets of names would otherwise be written in another order by every process.
        PYTHONHASHSEED="0",
        PYTHONUNBUFFERED="1",
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_TELEMETRY="1",
        TRANSFORMERS_NO_ADVISORY_WARNINGS="1",
        TORCHELASTIC_USE_AGENT_STORE="False",
        **{PARENT: str(os.getpid())},
    )


def _worker_environment(port: int, assignment: Assignment) -> dict[str, str]:
    environment = _environment()
    if launched_by_a_launcher() and not _said_to_the_launcher("OMP_NUM_THREADS"):
        # Launchers write 1 where nobody said anything, which leaves all but one core of a process idle.
        local_ranks = int(environment.get("LOCAL_WORLD_SIZE", 1))
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    if "RANK" in environment:
        environment["MASTER_PORT"] = str(port)
    return _with_engine(environment, port, assignment.settings.get("stage", {}).get("deepspeed", "none"))


def _with_engine(environment: dict[str, str], port: int, deepspeed: str) -> dict[str, str]:
    """The environment in which accelerate finds the stage's engine and no other; evaluation has none."""
    engine = stage_engine(deepspeed, environment)
    if engine.kind == "none":
        return {name: value for name, value in environment.items() if name not in (USE_DEEPSPEED, USE_FSDP)}
    if engine.kind == "deepspeed":
        # It would make accelerate pass over DeepSpeed without a word; the stage itself says what it computes on.
        environment.pop("ACCELERATE_USE_CPU", None)
        if "RANK" not in environment:
            # DeepSpeed looks for MPI where no launcher has named the only process.
            alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
            environment |= alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return environment


@contextmanager
def _requests_noted() -> Iterator[None]:
    """While a worker runs, a request to stop is the worker's to act on: it is noted here, and handed on to all.

    One that came in a stage's last moments so still holds for the next stage.
    """
    before = {number: signal.getsignal(number) for number in _REQUESTS}
    for number in _REQUESTS:
        signal.signal(number, note_request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note_request(number: int, frame: Any) -> None:
    """A signal handler that only remembers."""
    FLAG.asked = True


def _wait(worker: subprocess.Popen[bytes], peers: Peers, ranks: Ranks, hears: int) -> dict[str, Any]:
    """Wait for this rank's worker; once another's has failed, only for a while.

    Whichever rank is asked to stop, all workers are: they save at one step, end with their own code, and none is left
    waiting for another.
    """
    deadline: float | None = None
    told = left_behind = False
    while worker.poll() is None:
        time.sleep(_POLL_SECONDS)
        if FLAG.asked:
            peers.ask_to_stop()
        if not told and peers.asked_to_stop() and worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
            told = True
        if deadline is None and peers.any_failed():
            deadline = time.monotonic() + _GRACE_SECONDS
        # Until a rank counts as gone, what waits for it had time enough to fail by itself.
        if (deadline is not None and time.monotonic() > deadline) or peers.gone():
            left_behind = True
            worker.kill()
    if FLAG.asked:
        peers.ask_to_stop()
    ending = _ending(worker.returncode, hears, peers.asked_to_stop(), left_behind=left_behind)
    # An abort is how a library gives up on a peer that is gone.
    slain = worker.returncode < 0 and worker.returncode != -signal.SIGABRT and not left_behind
    outcome = {"rank": ranks.rank, "slain": slain, "left_behind": left_behind, **ending}
    peers.report(outcome)
    return outcome


def _ending(returncode: int, hears: int, asked: bool, *, left_behind: bool) -> dict[str, Any]:
    try:
        return dict(json.loads(os.read(hears, _PIPE_BYTES)))
    except (OSError, ValueError):
        if asked and -returncode in _REQUESTS:
            # It had not come as far as listening for requests, so nothing was begun either.
            sentence = "asked to stop before it had begun; run the same command again to go on"
            return {"code": PreemptedError.exit_code, "sentence": sentence}
        if left_behind:
            return {"code": 1, "sentence": _HUNG}
        if returncode < 0:
            name = signal.Signals(-returncode).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return {"code": 1, "sentence": f"the worker was killed by {name}{hint}"}
        return {"code": returncode or 1, "sentence": "the worker ended without a word"}


def _first_fault(mine: dict[str, Any], peers: Peers, ranks: Ranks) -> dict[str, Any]:
    """The outcome that explains the others, once every rank has said how it ended, or is not going to."""
    if ranks.world_size == 1:
        return mine
    deadline: float | None = None
    while True:
        outcomes, gone = peers.outcomes(), peers.gone()
        missing = set(range(ranks.world_size)) - set(outcomes)
        if deadline is None and (gone or peers.any_failed()):
            deadline = time.monotonic() + _GRACE_SECONDS + _LAST_WORD_SECONDS
        if missing <= gone or (deadline is not None and time.monotonic() > deadline):
            break
        time.sleep(_POLL_SECONDS)
    faults = [outcome for outcome in outcomes.values() if outcome["code"]]
    faults += [_of_a_lost_rank(rank) if rank in gone else _of_a_mute_rank(rank) for rank in missing]
    return min(faults, key=_how_far_from_the_cause) if faults else mine


def _of_a_lost_rank(rank: int) -> dict[str, Any]:
    return {"rank": rank, "code": 1, "gone": True, "sentence": GONE_WITHOUT_A_WORD}


def _of_a_mute_rank(rank: int) -> dict[str, Any]:
    return {"rank": rank, "code": 1, "left_behind": True, "sentence": "its worker hung, and cannot be killed"}


def _how_far_from_the_cause(outcome: dict[str, Any]) -> tuple[int, int]:
    """A reason of its own comes first, then a death; what merely follows from another rank's end comes last.

    Among equals it is the one that was noticed first: a peer may well notice a broken connection, and say so, before
    the supervisor of the rank that died has looked. A worker that hangs explains those that waited for it in vain, and
    is itself explained by any error but theirs.
    """
    code, of_peers = outcome["code"], _OF_PEERS.search(outcome["sentence"])
    distances = (
        code not in (1, PreemptedError.exit_code),
        outcome.get("gone"),
        code != 1,
        outcome.get("slain"),
        not outcome.get("left_behind") and not of_peers,
        outcome.get("left_behind"),
        True,
    )
    return next(place for place, found in enumerate(distances) if found), outcome.get("order", 0)
