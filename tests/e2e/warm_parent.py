"""A parent that has everything imported and forks runs on request: `python -P -m tests.e2e.warm_parent`.

A run started from it does what `python pipeline/run.py` does, supervisor and workers as processes of their own, without
the seconds of imports that each would begin with; that makes hundreds of kills affordable. What differs from processes
started afresh: imported modules are shared, so a run must not depend on the moment of their import; the tests that kill
freshly started processes cover that part.

Reads one JSON object a line and answers with one: `{"argv", "environment", "folder", "output"}` starts a run and gives
`{"pid"}`; `{"pid"}` gives `{"code"}`, null while it lives.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

MODULES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors.torch", "jinja2", "pyarrow",
    "transformers.models.llama.modeling_llama", "transformers.generation", "transformers.integrations.peft",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "peft.tuners.lora",
    "torch._dynamo", "torch.distributed", "filelock", "gguf",
    "pipeline.supervisor", "pipeline.worker", "pipeline.stages.sft", "pipeline.stages.reward", "pipeline.stages.ppo",
    "pipeline.stages.dpo", "evaluation.run", "evaluation.report.page", "evaluation.report.terminal", "pipeline.cli",
)  # fmt: skip
_NAME = 15
"""`prctl` option: the name of a process, as /proc/PID/comm shows it."""


class ForkedWorker:
    """Stands in for `subprocess.Popen` in the supervisor: forks where that would start a process."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: dict[str, str],
        pass_fds: Sequence[int],
    ):
        assert command[-2:] == ["-m", "pipeline.worker"] and stdin == subprocess.PIPE and stdout is stderr
        reads, writes = os.pipe()
        self.returncode: int | None = None
        self.pid = _forked("trivet-worker", lambda: _work(reads, stdout.fileno(), env, pass_fds))
        os.close(reads)
        self.stdin = os.fdopen(writes, "wb")

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _work(reads: int, output: int, environment: dict[str, str], pass_fds: Sequence[int]) -> None:
    """What a freshly started worker would find: its input, its log, its descriptors and no others, default signals."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(reads, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    _close_all_but({0, 1, 2, *pass_fds})
    _take_environment(environment)
    sys.stdin = os.fdopen(0, closefd=False)
    from pipeline import stopping, worker

    stopping.FLAG.asked = False
    worker.main()


def _run(order: dict[str, Any]) -> None:
    """The supervisor of a run, in a session of its own."""
    os.setsid()
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    _close_all_but({0, 1, 2})
    _take_environment(order["environment"])
    os.chdir(order["folder"])
    sys.argv = order["argv"]
    from pipeline import cli, processes

    forking = SimpleNamespace(Popen=ForkedWorker, PIPE=subprocess.PIPE, run=subprocess.run)
    processes.subprocess = forking  # type: ignore[attr-defined]
    cli.main(["run", *order["argv"][1:]])


def _forked(name: str, act: Callable[[], None]) -> int:
    """Fork a process that acts and never comes back."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    _end_with(name, act)


def _end_with(name: str, act: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_NAME, name.encode(), 0, 0, 0)
        act()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _close_all_but(kept: set[int]) -> None:
    """Close what starting a program would close."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor in kept:
            continue
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                os.close(descriptor)
        except OSError:
            continue


def _take_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    _take_path(environment.get("PYTHONPATH", ""))


def _take_path(path: str) -> None:
    """Modules on a path of its own come before ours and the libraries, as they would in a fresh process."""
    folders = [folder for folder in path.split(os.pathsep) if folder and folder not in sys.path]
    sys.path[:0] = folders
    names = {found.name.partition(".")[0] for folder in folders for found in Path(folder).iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]


def main() -> None:
    for name in MODULES:
        importlib.import_module(name)
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    assert len(threads) == 1, f"a fork would leave all but one of these threads behind: {threads}"
    gc.collect()
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    # What a forked run prints must not be taken for an answer.
    os.dup2(2, 1)
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    orders = os.fdopen(os.dup(0), "r")
    while line := orders.readline():
        order = json.loads(line)
        if "argv" in order:
            answer: dict[str, Any] = {"pid": _forked("trivet-super", lambda order=order: _run(order))}
        else:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
