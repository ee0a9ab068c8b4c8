"""Two processes train what one does: same batches, losses and figures; and when one fails, all end, with a word."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline.artefact import open_artefact

pytestmark = pytest.mark.slow
EACH_STEP = (
    "--no-reuse",
    "--set",
    "evaluation.tasks=[]",
    "--set",
    "stages.sft.log_every=1",
    "--set",
    "stages.dpo.log_every=1",
)
TOLERANCE = 1e-4
SECONDS = 60.0


FROZEN_TRUNK = ("--set", "model.adapter.layers=top-1", "--set", "stages.dpo.epochs=2")
"""The lower layer once for policy and reference, and in DPO's two passes from the cache."""


@pytest.fixture(scope="module", params=[(), FROZEN_TRUNK], ids=["whole", "frozen-trunk"])
def both(tmp_path_factory, run_in, request, warm):
    """The same recipe on one process and on two; the second recipe in forked ones, which import nothing."""
    folder = tmp_path_factory.mktemp("ranks")
    options = (*EACH_STEP, *request.param)
    one, two = run_in(folder / "one" / "run", options), run_in(folder / "two" / "run", options)
    if not request.param:
        one.go()
        two.go(launcher="torchrun")
        return one, two
    one.warm = two.warm = warm
    one.go(launcher="forked")
    two.go_ranks()
    return one, two


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_losses_are_those_of_one_process_step_by_step(both, stage):
    one, two = ([(line["step"], line["value"]) for line in run.lines(stage)] for run in both)
    assert [step for step, _ in one] == [step for step, _ in two] == list(range(1, len(one) + 1))
    differences = [abs(a - b) for (_, a), (_, b) in zip(one, two, strict=True)]
    assert max(differences) < TOLERANCE, f"{one}\n{two}"
    assert max(value for _, value in one) - min(value for _, value in one) > 10 * TOLERANCE, "losses that could differ"


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_gradients_are_those_of_one_process(both, stage):
    one, two = ([line["value"] for line in run.lines(stage, "grad_norm")] for run in both)
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_every_step_sees_the_same_rows(both, stage):
    """Tokens seen so far, step by step: other rows in a global batch would have other lengths."""
    one, two = ([line["value"] for line in run.lines(stage, "num_tokens")] for run in both)
    assert one == two and len(set(one)) == len(one)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_held_out_figures_are_those_of_one_process(both, stage):
    one, two = (run.json("results.json")["stages"][stage]["metrics"] for run in both)
    assert set(one) == set(two)
    for name in one:
        assert two[name] == pytest.approx(one[name], abs=TOLERANCE), name


def test_two_processes_are_on_record_and_the_key_is_the_same(both):
    one, two = ([open_artefact(run.folder / stage).manifest for stage in ("sft", "dpo")] for run in both)
    assert [manifest.world_size for manifest in one + two] == [1, 1, 2, 2]
    assert [manifest.key for manifest in one] == [manifest.key for manifest in two]
    assert (both[1].folder / "logs" / "rank1.log").is_file()


def test_one_rank_speaks(both):
    said = both[1].said()
    assert said.count("sft: starts") == said.count("sft: done") == said.count("dpo: done") == 1


def test_bad_data_ends_all_ranks_with_one_sentence(new_run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"\n')
    run = new_run(options=("--set", f"data.sft.sources=[{{path: {path}}}]"))
    process = run.start("torchrun")
    assert process.wait(120) != 0
    assert run.said().count(f"{path}:2") == 1, run.said()
    assert run.outcome()["code"] == 65
    assert run.left_behind() == {}


def of_rank(run, role, rank):
    """The process id of a rank's supervisor or worker."""
    for pid in run.pids(role):
        try:
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return pid
        except OSError:
            continue
    return None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_launch_and_the_next_one_goes_on(new_run, rank, warm):
    run = new_run(options=("--until", "sft", "--set", "stages.sft.epochs=4"))
    process = run.start("torchrun")
    assert run.wait_for(lambda: run.inside("sft-*/checkpoints/checkpoint-4/COMPLETE.json"), process), run.said()
    os.kill(of_rank(run, "worker", rank), signal.SIGKILL)
    assert process.wait(SECONDS) != 0
    said = run.said()
    assert said.count("sft on rank") == 1, said
    assert f"sft on rank {rank}: the worker was killed by SIGKILL" in said
    assert run.outcome()["code"] == 1
    assert run.left_behind() == {}
    run.warm = warm
    run.go_ranks()
    assert "going on from step" in run.said() and run.train_steps("sft") == list(range(2, 33, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_supervisor_is_named_before_the_launcher_ends_the_others(new_run, rank):
    """It asks them to stop at once, and kills them half a minute later."""
    run = new_run(options=("--until", "sft", "--set", "stages.sft.epochs=4"))
    process = run.start("torchrun")
    assert run.wait_for(lambda: run.inside("sft-*/checkpoints/checkpoint-4/COMPLETE.json"), process), run.said()
    os.kill(of_rank(run, "supervisor", rank), signal.SIGKILL)
    assert process.wait(SECONDS) != 0
    outcome = run.outcome()
    assert outcome["code"] == 1 and f"rank {rank}" in outcome["sentence"], outcome
    assert "is gone without a word" in outcome["sentence"] and outcome["sentence"] in run.said()
    assert run.left_behind() == {}


def test_a_signal_to_one_rank_stops_all_at_the_same_step(new_run, warm):
    """As Slurm or a node's shutdown may do it: only the second rank's supervisor is asked."""
    run = new_run(options=("--until", "sft", "--set", "stages.sft.epochs=4"))
    run.warm = warm
    ranks = run.fork_ranks()
    assert run.wait_for(lambda: run.inside("sft-*/checkpoints/checkpoint-4/COMPLETE.json"), ranks[0]), run.said()
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [rank.wait(SECONDS) for rank in ranks] == [75, 75]
    outcome = run.outcome()
    assert outcome["code"] == 75 and "is saved, run the same command again" in outcome["sentence"]
    assert run.statuses()["sft"] == "interrupted"
    assert run.left_behind() == {}


def test_two_engines_in_one_run_killed_under_each_and_not_a_bit_of_difference(run_in, tmp_path, warm):
    """SFT under ZeRO-2, DPO under ZeRO-3, through the launcher; what no kill touched is forked."""
    options = ("--until", "dpo", "--set", "stages.sft.deepspeed=zero2", "--set", "stages.dpo.deepspeed=zero3")
    options += ("--set", "stages.sft.max_steps=4", "--set", "stages.dpo.max_steps=4")
    run, straight = (run_in(tmp_path / name / "run", options) for name in ("killed", "straight"))
    run.warm = straight.warm = warm
    straight.go_ranks()
    for stage, shards in (("sft", "mp_rank_00_model*"), ("dpo", "zero_pp_rank_1_*_model*")):
        process = run.start("torchrun")
        saved = f"{stage}-*/checkpoints/checkpoint-2"
        assert run.wait_for(lambda saved=saved: run.inside(f"{saved}/COMPLETE.json"), process), run.said()
        of_engine = run.inside(f"{saved}/global_step2/{shards}")
        os.kill(process.pid if stage == "dpo" else of_rank(run, "worker", 1), signal.SIGKILL)
        assert process.wait(SECONDS) != 0 and run.left_behind() == {}
        assert of_engine and not run.inside(f"{stage}-*/manifest.json"), f"killed in the middle of {stage}"
    run.go_ranks()
    assert "going on from step" in run.said()
    for stage in ("sft", "dpo"):
        assert run.weights(stage) == straight.weights(stage)
        for name in ("loss", "grad_norm"):
            mine, theirs = (
                [(line["step"], line["value"]) for line in each.lines(stage, name)] for each in (run, straight)
            )
            assert mine == theirs and [step for step, _ in mine] == [2, 4]
