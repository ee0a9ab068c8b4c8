"""What is not a kill: a full disk, full memory, values that are no numbers, foreign state, a rank that dies.

Each failure is made at a named point, ends the run in one sentence with its code, leaves nothing half done behind, and
the same command goes on to the bits of an uninterrupted run. Runs are forked from a warm parent.
"""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
import torch

from pipeline import checkpoint
from pipeline.runtime import ROOT
from tests.e2e.oracle import account, debris, differences

pytestmark = pytest.mark.slow
RECIPE = ROOT / "recipes" / "tiny_ppo.yaml"
DEATHS = int(os.environ.get("TRIVET_RANK_DEATHS", "4"))
SECONDS = 60.0

WRITES = (
    "file.begun", "file.written", "file.flushed", "file.renamed", "file.written@9", "ledger.begun", "ledger.begun@2",
    "results.begun", "stage.begun", "metrics.begun", "metrics.torn", "metrics.written", "checkpoint.begun@2",
    "checkpoint.torn", "checkpoint.written", "checkpoint.hashed", "checkpoint.committed", "weights.begun",
    "weights.written", "stage.finished", "metrics.torn@2", "checkpoint.torn@2", "report.begun",
)  # fmt: skip
"""Where the disk fills up, one after another in the same run."""
MEMORY = {
    "model.begun": "loading a model",
    "rows.begun": "scoring held-out rows",
    "step.begun@3": "a training step",
    "weights.begun": "saving",
    "answers.begun": "sampling answers",
}
NUMBERS = {
    "loss:nan@3": "the loss became nan at step",
    "gradient:nan@2": "the gradient norm became nan at step",
    "weights:nan": "holds values that are not finite",
    "ppo.loss:nan@2": "the policy's loss became nan at optimiser step",
    "ppo.gradient:nan@2": "gradient norm became nan at optimiser step",
}


@pytest.fixture(scope="module")
def through(tmp_path_factory, run_in, warm):
    """Uninterrupted."""
    run = run_in(tmp_path_factory.mktemp("failures") / "runs" / "through", recipe=RECIPE)
    run.warm = warm
    run.go(launcher="forked")
    return run


@pytest.fixture
def failing(new_run, warm):
    """A run that is made to fail: gives its outcome."""
    run = new_run("failing", RECIPE)
    run.warm = warm

    def attempt(faults: str):
        run.faults = faults
        said = run.go(launcher="forked", code=None)
        run.faults = ""
        assert run.left_behind() == {}
        assert "Traceback" not in said, said
        # Not the one in the run directory, which may be what did not fit on its disk any more.
        return json.loads((run.folder.parent / f"{run.folder.name}.outcome.json").read_text())

    attempt.run = run
    return attempt


def finish(run, through):
    run.go(launcher="forked")
    found = differences(account(run.folder), account(through.folder))
    assert not found, "\n".join(found)
    assert debris(run.folder) == []


def test_a_disk_that_is_full_at_every_write(failing, through):
    run = failing.run
    for point in WRITES:
        name, _, time_ = point.partition("@")
        outcome = failing(f"{name}:full" + (f"@{time_}" if time_ else ""))
        assert outcome["code"] == 74, f"{point}: {outcome}"
        said = outcome["sentence"]
        assert "disk full while writing to " in said and "MB free" in said and "\n" not in said, point
        folder = said.partition("disk full while writing to ")[2].partition(" (")[0]
        assert str(run.folder.parent) in folder or folder in str(run.folder), f"{point}: {said}"
        assert not list(run.folder.parent.rglob("*.tmp")), f"{point}: what did not fit stays on the full disk"
        for saved in run.inside("*/checkpoints/checkpoint-*"):
            assert checkpoint.is_complete(saved), f"{point}: {saved} is half a checkpoint on a full disk"
    finish(run, through)


def test_memory_that_is_full_in_every_phase(failing, through):
    run = failing.run
    for point, phase in MEMORY.items():
        name, _, time_ = point.partition("@")
        outcome = failing(f"{name}:memory" + (f"@{time_}" if time_ else ""))
        assert outcome["code"] == 1, point
        assert f"during {phase}: its peak was" in outcome["sentence"], f"{point}: {outcome['sentence']}"
        assert "(1) --set " in outcome["sentence"]
    finish(run, through)


def test_values_that_are_no_numbers(failing, through):
    run = failing.run
    for fault, said in NUMBERS.items():
        outcome = failing(fault)
        assert outcome["code"] == 1 and said in outcome["sentence"], f"{fault}: {outcome}"
        assert "failed" in run.statuses().values()
        for weights in run.inside("*/checkpoints/*/*.safetensors"):
            assert all(torch.isfinite(tensor).all() for tensor in loaded(weights).values())
    finish(run, through)


def loaded(path):
    from safetensors.torch import load_file

    return load_file(path)


class Payload:
    """Pickled, a call that leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self._trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self._trace),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_with_a_payload_runs_nothing(failing, tmp_path, name):
    """As complete as ours, in a run that would go on from it."""
    trace = tmp_path / "pwned"
    run = failing.run
    run.options = ("--until", "sft")
    run.faults = "checkpoint.committed:kill@2"
    run.go(launcher="forked", code=None)
    run.faults = ""
    [folder] = run.inside("sft-*/checkpoints")
    saved, _ = checkpoint.newest_complete(folder)
    torch.save({"state": Payload(trace)}, saved / name)
    made_by = checkpoint.made_by(saved)
    (saved / checkpoint.MARKER).unlink()
    checkpoint.commit(saved, made_by)
    outcome = failing("")
    if name == "training_args.bin":  # written by the library and read by nobody
        assert outcome["code"] == 0
    else:
        assert outcome["code"] == 1 and "holds more than numbers" in outcome["sentence"], outcome
        shutil.rmtree(folder)
        assert failing("")["code"] == 0, "what the sentence says helps"
    assert not trace.exists()


DEATH_POINTS = (
    "step.begun:kill@5/1", "checkpoint.torn:kill/0", "checkpoint.written:kill@2/0", "step.taken:kill@3/1",
    "stage.begun:kill/1", "data.made:kill/1", "rows.begun:kill@2/1", "stage.finished:kill/1", "model.begun:kill/0",
    "step.begun:kill@9/0",
)  # fmt: skip


@pytest.fixture(scope="module")
def two_through(tmp_path_factory, run_in, warm):
    """Two ranks, uninterrupted."""
    run = run_in(tmp_path_factory.mktemp("ranks") / "runs" / "through", options=("--until", "dpo"))
    run.warm = warm
    assert [rank.wait(240) for rank in run.fork_ranks()] == [0, 0], run.said()
    return run


@pytest.mark.parametrize("fault", DEATH_POINTS[:DEATHS])
def test_a_rank_that_dies_ends_the_job_and_the_next_one_goes_on(new_run, warm, two_through, fault, tmp_path):
    run = new_run("dying", two_through.recipe, two_through.options)
    point, rank, passed = fault.partition(":")[0], fault[-1], tmp_path / "passed.txt"
    run.warm, run.faults = warm, f"{point}:note={passed}@*/{rank},{fault}"
    ranks = run.fork_ranks()
    assert all(each.wait(240) != 0 for each in ranks), run.said()
    seconds = time.time() - passed.stat().st_mtime
    assert seconds < SECONDS, f"the job went on for {seconds:.0f} s after the death"
    outcome = run.outcome()
    assert outcome["code"] == 1, outcome
    assert f"on rank {rank}: the worker was killed by SIGKILL" in outcome["sentence"], outcome
    assert run.left_behind() == {}
    run.faults = ""
    assert [each.wait(240) for each in run.fork_ranks()] == [0, 0], run.said()
    for stage in ("sft", "dpo"):
        assert run.weights(stage) == two_through.weights(stage)
        assert run.train_steps(stage) == two_through.train_steps(stage)


def test_the_resumed_run_is_compared_with_something_that_differs(two_through, through):
    """The control: one rank's bits are not two ranks'."""
    assert json.loads((two_through.folder / "sft" / "manifest.json").read_text())["world_size"] == 2
    assert two_through.weights("sft") != through.weights("sft")
