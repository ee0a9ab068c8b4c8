"""Whole runs of the tiny recipe, started as a user starts them; one uninterrupted run is everyone's reference."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.peers import free_port
from pipeline.runtime import ROOT
from pipeline.tracking import read_metrics
from tests.e2e.forking import Forked, WarmParent

MARK = "TRIVET_TEST_MARK"
"""Environment variable that every process of a started run inherits, so that none can hide."""
_FOREIGN = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_",
    "ACCELERATE_",
    "TORCHELASTIC_",
    "WANDB_",
    "TRIVET_",
    "HF_",
    "PYTHON",
)


@dataclass
class Run:
    """A run directory and the ways to work on it."""

    folder: Path
    recipe: Path
    caches: Path
    options: tuple[str, ...] = ()
    warm: WarmParent | None = None
    """Where `forked` runs come from."""
    faults: str = ""
    """What is to fail on purpose."""
    variables: dict[str, str] = field(default_factory=dict)
    """Further ones of the environment."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    sessions: set[int] = field(default_factory=set)
    """Of forked runs, which cannot be told by their first environment."""

    def environment(self) -> dict[str, str]:
        """One thread (results depend on their number), caches of the tests' own, no hub, no settings of the machine."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        return {
            **kept,
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(self.caches / "hf"),
            "HF_HUB_OFFLINE": "1",
            "TRIVET_CACHE": str(self.caches / "trivet"),
            "TRIVET_EXIT_FILE": str(self.folder.parent / f"{self.folder.name}.outcome.json"),
            MARK: self.mark,
            **({"TRIVET_FAULT": self.faults} if self.faults else {}),
            **self.variables,
        }

    def command(self, launcher: str, *options: str) -> list[str]:
        """The command line; `launcher` is `python`, `accelerate` or `torchrun`."""
        before = {
            "python": [sys.executable],
            "accelerate": [sys.executable, "-m", "accelerate.commands.launch"],
            "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        }[launcher]
        return [*before, *self.arguments(*options)]

    def arguments(self, *options: str) -> list[str]:
        """What follows the launcher."""
        where = ["--output-dir", str(self.folder)]
        return [str(ROOT / "pipeline" / "run.py"), str(self.recipe), *where, *self.options, *options]

    def start(self, launcher: str, *options: str) -> subprocess.Popen[bytes] | Forked:
        """Start it in a session of its own; what it prints goes to `self.output`."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if launcher == "forked":
            return self.fork(self.output, {}, *options)
        with self.output.open("wb") as stream:
            return subprocess.Popen(
                self.command(launcher, *options),
                cwd=self.folder.parent,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def fork(self, output: Path, variables: Mapping[str, str], *options: str) -> Forked:
        """Fork it, or a rank of it, from the warm parent."""
        assert self.warm is not None
        environment = {**self.environment(), **variables}
        forked = self.warm.start(self.arguments(*options), environment, self.folder.parent, output)
        self.sessions.add(forked.pid)
        return forked

    def fork_ranks(self, *options: str) -> list[Forked]:
        """Fork two ranks of it, as a launcher would start them on one machine."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        common = {
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        }  # fmt: skip
        outputs = (self.output, self.output.with_suffix(".rank1.txt"))
        return [
            self.fork(output, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, *options)
            for rank, output in enumerate(outputs)
        ]

    def go_ranks(self, *options: str) -> None:
        """Run two forked ranks to the end."""
        codes = [rank.wait(420) for rank in self.fork_ranks(*options)]
        assert codes == [0, 0], f"exit codes {codes}\n{self.said()}\n{self.log()[-3000:]}"

    def go(self, *options: str, launcher: str = "python", code: int | None = 0) -> str:
        """Run to the end and return what was printed; `code` is the exit code that is expected, None for any."""
        process = self.start(launcher, *options)
        try:
            found = process.wait(420)
        finally:
            self.kill_all()
            process.wait()
        said = self.said()
        assert code is None or found == code, f"exit code {found}, expected {code}\n{said}\n{self.log()[-3000:]}"
        return said

    @property
    def output(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.output.txt"

    def said(self) -> str:
        """What has been printed so far."""
        return self.output.read_text(errors="replace") if self.output.is_file() else ""

    def log(self) -> str:
        path = self.folder / "logs" / "rank0.log"
        return path.read_text(errors="replace") if path.is_file() else ""

    def outcome(self) -> dict[str, Any]:
        """What the run left for job scripts."""
        found = json.loads((self.folder / "exit.json").read_text())
        assert found == json.loads((self.folder.parent / f"{self.folder.name}.outcome.json").read_text())
        return found

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def statuses(self) -> dict[str, str]:
        return {entry["name"]: entry["status"] for entry in self.json("run.json")["stages"]}

    def inside(self, pattern: str) -> list[Path]:
        """Files in the store, finished or not: `sft-*/checkpoints/checkpoint-2`."""
        return sorted(self.folder.parent.glob(f".store/{pattern}"))

    def weights(self, stage: str) -> str:
        """Hash over the bits of a stage's tensors, by name."""
        return tensor_hash(self.folder / stage)

    def train_steps(self, stage: str, name: str = "loss") -> list[int]:
        return [line["step"] for line in self.lines(stage, name)]

    def lines(self, stage: str, name: str = "loss", split: str = "train") -> list[dict[str, Any]]:
        lines = read_metrics(self.folder / stage / "metrics.jsonl")
        return [line for line in lines if line["split"] == split and line["name"] == name]

    def processes(self) -> dict[int, str]:
        """Every living process of this run: id to command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                marked = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if state not in "ZX" and (marked or int(session) in self.sessions):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def pids(self, role: str) -> list[int]:
        """Processes by their part: `supervisor` or `worker`."""
        sign = {"worker": "-m pipeline.worker", "supervisor": "pipeline/run.py"}[role]
        launcher = ("accelerate.commands", "torch.distributed.run")
        lines = self.processes().items()
        if any("warm_parent" in line for _, line in lines):
            return [pid for pid, _ in lines if (pid in self.sessions) == (role == "supervisor")]
        return [pid for pid, line in lines if sign in line and not any(name in line for name in launcher)]

    @staticmethod
    def wait_for(
        condition: Callable[[], Any], process: subprocess.Popen[bytes] | Forked, seconds: float = 240.0
    ) -> Any:
        """Poll until the condition holds and return what it gave; as it is then, if the process ends first."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            if process.poll() is not None:
                return condition()
            time.sleep(0.005)
        raise AssertionError("what was waited for did not come")

    def left_behind(self, seconds: float = 20.0) -> dict[int, str]:
        """This run's processes that are still alive after a while."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def kill_all(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def tensor_hash(artefact: Path) -> str:
    """SHA-256 over names, types, shapes and bits of all tensors of a policy."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    files = sorted(path for form in ("adapter", "model") for path in (artefact / form).glob("*.safetensors"))
    assert files, f"no weights in {artefact}"
    for path in files:
        with safe_open(path, framework="np") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def caches(tmp_path_factory) -> Path:
    """Caches of the embedded model and of the hub's library, filled by the first run."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture(scope="session")
def warm(tmp_path_factory, caches) -> Iterator[WarmParent]:
    """The parent of forked runs."""
    folder = tmp_path_factory.mktemp("warm")
    parent = WarmParent(Run(folder / "run", Path(), caches).environment(), folder / "parent.txt")
    yield parent
    parent.close()


@pytest.fixture
def new_run(tmp_path, caches) -> Iterator[Callable[..., Run]]:
    """Makes runs in a folder of the test's own; whatever they left running is killed in the end."""
    made: list[Run] = []

    def make(
        name: str = "run", recipe: Path = ROOT / "recipes" / "tiny_dpo.yaml", options: tuple[str, ...] = ()
    ) -> Run:
        made.append(Run(tmp_path / "runs" / name, recipe, caches, options))
        return made[-1]

    yield make
    for run in made:
        run.kill_all()


@pytest.fixture(scope="session")
def run_in(caches) -> Callable[..., Run]:
    """Makes runs in folders that outlive a test."""
    default = ROOT / "recipes" / "tiny_dpo.yaml"
    return lambda folder, options=(), recipe=default: Run(folder, recipe, caches, options)


@pytest.fixture(scope="session")
def chain(tmp_path_factory, caches) -> Run:
    """The tiny recipe from nothing to its end, uninterrupted, as the README starts it. Only to be read."""
    folder = tmp_path_factory.mktemp("reference") / "runs" / "tiny-dpo"
    run = Run(folder, ROOT / "recipes" / "tiny_dpo.yaml", caches)
    run.go(launcher="accelerate")
    return run
