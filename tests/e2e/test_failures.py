"""What is not a kill: a full disk, full memory, values that are no numbers, foreign state, a rank that dies.

Each failure is made at a named point, ends the run in one sentence with its code, leaves nothing half done behind, and
the same command goes on to the bits of an uninterrupted run. Runs are forked from a warm parent.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from pipeline import checkpoint
from pipeline.artefact import is_sealed
from pipeline.runtime import ROOT
from tests.e2e.oracle import account, debris, differences

pytestmark = pytest.mark.slow
RECIPE = ROOT / "recipes" / "tiny_ppo.yaml"
DEATHS = int(os.environ.get("TRIVET_RANK_DEATHS", "4"))
SIGNALS = int(os.environ.get("TRIVET_RANK_SIGNALS", "1"))
MOMENTS_SEED = os.environ.get("TRIVET_KILLS_SEED", "0")
SECONDS = 60.0

WRITES = (
    "file.begun", "file.written", "file.flushed", "file.renamed", "file.written@9", "ledger.begun", "ledger.begun@2",
    "results.begun", "stage.begun", "metrics.begun", "metrics.torn", "metrics.written", "checkpoint.begun@2",
    "checkpoint.torn", "checkpoint.written", "checkpoint.hashed", "checkpoint.committed", "weights.begun",
    "weights.written", "stage.finished", "metrics.torn@2", "checkpoint.torn@2", "report.begun",
)  # fmt: skip
"""Where the disk fills up, one after another in the same run."""
SIZED = ("file.", "metrics.begun", "metrics.torn", "checkpoint.begun", "checkpoint.torn", "checkpoint.written",
         "checkpoint.hashed", "weights.")  # fmt: skip
"""Of these, where it is known how much is to be written."""
MEMORY = {
    "model.begun": "loading a model",
    "rows.begun": "scoring held-out rows",
    "step.begun@3": "a training step",
    "weights.begun": "saving",
    "answers.begun": "sampling answers",
}
NUMBERS = {
    "loss:nan@6": "the loss became nan at step",
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
        assert name.startswith(SIZED) == (" needed)" in said), f"{point}: {said}"
        assert ", 0 bytes needed" not in said, f"{point}: {said}"
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
        sentence = outcome["sentence"]
        assert outcome["code"] == 1 and said in sentence, f"{fault}: {outcome}"
        if fault.startswith(("loss", "gradient")):
            assert f" in {run.folder.parent}" in sentence and "is the last complete one" in sentence, sentence
            assert "It was computed on rows builtin:alpaca_sample:" in sentence, sentence
        if fault.startswith("ppo."):
            assert "(rollout " in sentence and "answers to the prompts of rows builtin:" in sentence, sentence
            assert "is the last complete one" in sentence or "no checkpoint is complete yet" in sentence, sentence
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


SUPERVISOR, WORKER = "supervisor", "worker"
MOMENTS = max(2, DEATHS - len(DEATH_POINTS))


def fallen(run, ranks, role, rank):
    """Kill a rank's supervisor or worker, wait for all to end, and return how long that took; None: there was none."""
    supervisor = ranks[rank].pid
    try:
        workers = [pid for pid in run.processes() if pid != supervisor and os.getsid(pid) == supervisor]
        if any(each.poll() is not None for each in ranks) or (role == WORKER and not workers):
            return None
        os.kill(workers[0] if role == WORKER else supervisor, signal.SIGKILL)
    except ProcessLookupError:
        return None
    began = time.monotonic()
    assert all(each.wait(240) != 0 for each in ranks), run.said()
    return time.monotonic() - began


def spent(run):
    """Seconds that a run's stages took."""
    return sum(entry["seconds"] or 0 for entry in run.json("run.json")["stages"])


def require_named(run, role, rank, seconds):
    assert seconds < SECONDS, f"the job went on for {seconds:.0f} s after the death"
    outcome = run.outcome()
    how = "the worker was killed by SIGKILL" if role == WORKER else "is gone without a word"
    assert outcome["code"] == 1 and f"rank {rank}" in outcome["sentence"] and how in outcome["sentence"], outcome
    assert run.left_behind() == {}


def require_same_bits(run, two_through, *, saved_between=False):
    """Go on to the end; a save between logged steps, as a request to stop makes one, is logged too."""
    run.faults = ""
    assert [each.wait(240) for each in run.fork_ranks()] == [0, 0], run.said()
    for stage in ("sft", "dpo"):
        assert run.weights(stage) == two_through.weights(stage)
        mine, theirs = run.train_steps(stage), two_through.train_steps(stage)
        assert mine == (sorted({*mine, *theirs}) if saved_between else theirs)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_supervisor_dies_is_named_too(new_run, warm, two_through, rank, tmp_path):
    """The second rank's is missed; without the first, which served the store, the second says so in its place."""
    run = new_run("orphaned", two_through.recipe, two_through.options)
    passed = tmp_path / "passed.txt"
    run.warm, run.faults = warm, f"step.taken:note={passed}@3/{rank}"
    ranks = run.fork_ranks()
    assert run.wait_for(passed.is_file, ranks[0]), run.said()
    seconds = fallen(run, ranks, SUPERVISOR, rank)
    assert seconds is not None, "it was there"
    require_named(run, SUPERVISOR, rank, seconds)
    require_same_bits(run, two_through)


def test_a_rank_that_hangs_is_named(new_run, warm, two_through):
    """The other waits for it as long as the recipe says, and ends; then its worker is killed, which does not end."""
    patience = ("--set", "rank_timeout=20")
    run = new_run("hanging", two_through.recipe, (*two_through.options, *patience))
    run.warm, run.faults = warm, "step.begun:sleep=900@5/1"
    ranks = run.fork_ranks()
    assert all(each.wait(240) != 0 for each in ranks), run.said()
    outcome = run.outcome()
    assert outcome["code"] == 1 and "on rank 1: the worker hung" in outcome["sentence"], outcome
    assert run.left_behind() == {}
    require_same_bits(run, two_through)


@pytest.mark.parametrize("number", range(MOMENTS))
def test_a_rank_that_dies_at_any_moment(new_run, warm, two_through, number):
    """Workers and supervisors of both ranks, at moments drawn from a whole run's."""
    run, drawn = new_run("dying", two_through.recipe, two_through.options), random.Random(f"{MOMENTS_SEED}:{number}")
    run.warm = warm
    role, rank = (WORKER, SUPERVISOR)[number % 2], drawn.randrange(2)
    ranks = run.fork_ranks()
    assert run.wait_for(lambda: "sft: starts" in run.said(), ranks[0]), run.said()
    time.sleep(drawn.uniform(0, spent(two_through)))
    if role == WORKER:
        # Between stages there is none.
        run.wait_for(lambda: len(run.processes()) >= 4, ranks[0])
    seconds = fallen(run, ranks, role, rank)
    if seconds is not None:
        require_named(run, role, rank, seconds)
    require_same_bits(run, two_through)


@pytest.mark.parametrize("number", range(SIGNALS))
def test_a_signal_to_the_second_rank_alone_stops_both(new_run, warm, two_through, number):
    """At moments drawn from the first nine tenths of a run: both end with 75, nothing is marked done that is not."""
    run, drawn = new_run("asked", two_through.recipe, two_through.options), random.Random(f"{MOMENTS_SEED}:{number}")
    run.warm = warm
    ranks = run.fork_ranks()
    assert run.wait_for(lambda: "sft: starts" in run.said(), ranks[0]), run.said()
    time.sleep(drawn.uniform(0, 0.9 * spent(two_through)))
    os.kill(ranks[1].pid, drawn.choice((signal.SIGTERM, signal.SIGUSR1)))
    assert [each.wait(SECONDS) for each in ranks] == [75, 75], f"{run.said()}\n{run.log()[-3000:]}"
    assert run.outcome()["code"] == 75 and "run the same command again" in run.outcome()["sentence"]
    for name, status in run.statuses().items():
        sealed = bool(run.inside(f"{name}-*")) and is_sealed(run.inside(f"{name}-*")[0])
        assert sealed == (status in ("done", "skipped")), f"{name} is {status}"
    require_same_bits(run, two_through, saved_between=True)


def test_the_resumed_run_is_compared_with_something_that_differs(two_through, through):
    """The control: one rank's bits are not two ranks'."""
    assert json.loads((two_through.folder / "sft" / "manifest.json").read_text())["world_size"] == 2
    assert two_through.weights("sft") != through.weights("sft")
