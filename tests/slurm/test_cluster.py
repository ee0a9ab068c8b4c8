"""The real thing: Slurm on one node takes a recipe's jobs, interrupts them, and ends up with a direct run's bits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime import ROOT
from pipeline.slurm.record import read_jobs
from pipeline.status import look
from pipeline.tracking import read_metrics
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm
RECIPE = ROOT / "recipes" / "tiny_dpo.yaml"
LONGER = ("--set", "stages.sft.epochs=5", "--set", "stages.dpo.epochs=5", "--set", "evaluation.tasks=[rules]")
SFT_ALONE = "stages={sft: {learning_rate: 1.0e-2, global_batch_size: 8, precision: fp32, save_every: 2, epochs: 5}}"
SECONDS = 400.0
"""Patience with a loaded machine; on an idle one nothing takes more than a tenth of it."""


@pytest.fixture(scope="module")
def cluster():
    if reason := Cluster.missing():
        pytest.skip(reason)
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


class At:
    """A cluster and a folder to run things in."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder

    def trivet(self, *arguments: str) -> str:
        """Run `trivet ARGUMENTS` to its end; what it printed."""
        command = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

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


def begun(run: Path, kind: str) -> bool:
    """Whether a stage has begun to save steps."""
    return any(run.parent.glob(f".store/{kind}-*/checkpoints/checkpoint-*"))


def weights(run: Path, stage: str) -> bytes:
    [path] = (run / stage / "adapter").glob("*.safetensors")
    return path.read_bytes()


def test_stopped_by_signal_and_by_requeueing_the_chain_ends_like_a_direct_run(at):
    """In a folder whose name is a trap for shells and for Slurm."""
    run, direct = at.folder / 'a b$(touch pwned)"#%j' / "run", at.folder / "direct" / "run"
    said = at.trivet("submit", str(RECIPE), "--output-dir", str(run), "--cpus-per-task", "1", *LONGER)
    jobs = {job.name: job.job_id for job in read_jobs(run)}
    assert list(jobs) == ["sft", "dpo", "evaluation"] and f"job {jobs['dpo']}, after {jobs['sft']}" in said
    # As Slurm does some time before the limit.
    at.wait("SFT's first steps", run, lambda: begun(run, "sft"))
    at.cluster.ask("scancel", "--signal=USR1", "--batch", jobs["sft"])
    at.wait("SFT's second attempt", run, lambda: at.shown(jobs["sft"], "Restarts") == "1")
    # As an operator does, or a preemption.
    at.wait("DPO's first steps", run, lambda: begun(run, "dpo"))
    at.cluster.ask("scontrol", "requeue", jobs["dpo"])
    at.trivet("run", str(RECIPE), "--output-dir", str(direct), *LONGER)
    at.wait("the end of all jobs", run, lambda: at.finished(run))
    assert at.shown(jobs["dpo"], "Restarts") == "1"
    log = (run / "logs" / f"slurm-sft-{jobs['sft']}.log").read_text()
    assert "asked to stop; requeued to go on" in log and "sft: going on from step" in log
    for stage in ("sft", "dpo"):
        assert weights(run, stage) == weights(direct, stage), f"{stage} differs from a direct run"
    mine, theirs = (json.loads((each / "results.json").read_text())["evaluation"] for each in (run, direct))
    assert mine["policies"] == theirs["policies"] and list(mine["policies"]) == ["base", "sft", "dpo"]
    assert not list(at.folder.rglob("pwned"))
    assert "nothing to submit" in at.trivet("submit", str(RECIPE), "--output-dir", str(run), *LONGER)


def test_two_processes_of_a_job_find_each_other_and_stop_together(at):
    run = at.folder / "runs" / "two"
    options = ("--set", SFT_ALONE, "--set", "evaluation.tasks=[]", "--gpus-per-node", "2", "--cpus-per-task", "1")
    at.trivet("submit", str(RECIPE), "--output-dir", str(run), *options)
    [job] = read_jobs(run)
    at.wait("the first steps", run, lambda: begun(run, "sft"))
    at.cluster.ask("scancel", "--signal=USR1", "--batch", job.job_id)
    at.wait("the end", run, lambda: at.finished(run))
    assert at.shown(job.job_id, "Restarts") == "1"
    assert (run / "logs" / "rank1.log").is_file()
    losses = [
        (line["split"], line["step"]) for line in read_metrics(run / "sft" / "metrics.jsonl") if line["name"] == "loss"
    ]
    assert len(losses) == len(set(losses)) > 0


def test_a_failure_cancels_what_comes_after(at):
    """Exit code, sentence in the log, and no job that waits for ever."""
    run, data = at.folder / "runs" / "bad", at.folder / "rows.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"\n')
    at.trivet("submit", str(RECIPE), "--output-dir", str(run), "--set", f"data.sft.sources=[{{path: {data}}}]")
    jobs = {job.name: job.job_id for job in read_jobs(run)}
    at.wait("the end of SFT", run, lambda: at.shown(jobs["sft"], "JobState") == "FAILED")
    assert at.shown(jobs["sft"], "ExitCode") == "65:0"
    assert f"{data}:2" in (run / "logs" / f"slurm-sft-{jobs['sft']}.log").read_text()
    at.wait(
        "the others' end", run, lambda: {at.shown(jobs[n], "JobState") for n in ("dpo", "evaluation")} == {"CANCELLED"}
    )
