"""A recipe to submit, a Slurm that only writes down what it is asked, and a real one of one node."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline import cli
from tests.slurm.at_cluster import At
from tests.slurm.cluster import Cluster

REQUIRED = "TRIVET_REQUIRE_SLURM"
"""Environment variable: a machine that should have Slurm, and has not, is a failure."""
RECIPE = """\
name: tiny
model: {base: builtin:tiny-llama, adapter: {type: lora, r: 4, alpha: 8}}
data:
  sft:        {sources: [{path: DATA/sft.jsonl}]}
  preference: {sources: [{path: DATA/pairs.jsonl}]}
stages:
  sft: {global_batch_size: 8, max_steps: 1}
  dpo: {global_batch_size: 8, max_steps: 1}
evaluation: {tasks: [rules]}
"""
FAKE = """\
#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
{then}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a recipe and its data."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "sft.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    (data / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("DATA", str(data)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIVET_EXIT_FILE", raising=False)
    return tmp_path


class Fakes:
    """Programs that write down how they were called, first on the PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._log = folder / "calls"

    def add(self, name: str, then: str = "") -> None:
        """A program of that name; `then` is what it does besides, in Python."""
        path = self.folder / name
        path.write_text(FAKE.format(python=sys.executable, log=str(self._log), then=then))
        path.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        """Name and arguments of every call so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.is_file() else []

    def of(self, name: str) -> list[list[str]]:
        """Arguments of every call of one program."""
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def fakes(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("fakes")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")
    return Fakes(folder)


@pytest.fixture
def slurm(fakes):
    """sbatch gives numbers from 101 on; the queue is empty."""
    fakes.add("sbatch", f"print(100 + sum(1 for line in open({str(fakes._log)!r}) if line.startswith('[\"sbatch\"')))")
    fakes.add("squeue")
    fakes.add("scancel")
    return fakes


@pytest.fixture
def trivet(here, capsys):
    """Runs `trivet ARGUMENTS` inside this process: its code and what it printed."""

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out, said.err
        return ended.value.code, said.out, said.err

    return command


@pytest.fixture(scope="session")
def cluster():
    if reason := Cluster.missing():
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)
    # A short path, as one of the files is a socket.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        found = Cluster(Path(folder))
        found.start()
        yield found
        found.stop()


@pytest.fixture
def at(cluster, tmp_path, monkeypatch):
    """Commands and waiting, with the cluster's state in what a failure says."""
    for name, value in {**cluster.environment, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("TRIVET_EXIT_FILE", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRIVET_CACHE", os.environ["TRIVET_CACHE"])
    return At(cluster, tmp_path)
