"""The real thing: Slurm on one node takes a recipe's jobs, interrupts them, and ends up with a direct run's bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runtime import ROOT
from pipeline.slurm.record import read_jobs
from pipeline.tracking import read_metrics

pytestmark = pytest.mark.slurm
RECIPE = ROOT / "recipes" / "tiny_dpo.yaml"
LONGER = ("--set", "stages.sft.epochs=5", "--set", "stages.dpo.epochs=5", "--set", "evaluation.tasks=[rules]")
SFT_ALONE = "stages={sft: {learning_rate: 1.0e-2, global_batch_size: 8, precision: fp32, save_every: 2, epochs: 5}}"


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
    again = (run / "logs" / f"slurm-dpo-{jobs['dpo']}.log").read_text()
    assert again.count("dpo: starts") == 2 and "dpo: going on from step" in again
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


def test_an_array_goes_on_from_the_stage_that_its_runs_share(at):
    stem = at.folder / "runs" / "swept"
    options = ("--cpus-per-task", "1", "--array-over", "stages.dpo.beta=0.1,0.9", "--set", "evaluation.tasks=[]")
    at.trivet("submit", str(RECIPE), "--output-dir", str(stem), *options)
    runs = [stem.with_name(f"swept-{index}") for index in (0, 1)]
    jobs = [{job.name: job.job_id for job in read_jobs(run)} for run in runs]
    assert list(jobs[0]) == ["sft", "all"] and list(jobs[1]) == ["all"]
    assert [each["all"].partition("_")[2] for each in jobs] == ["0", "1"]
    for run in runs:
        at.wait("the end of all jobs", run, lambda run=run: at.finished(run))
        assert json.loads((run / "exit.json").read_text())["code"] == 0
    assert len(list(stem.parent.glob(".store/sft-*"))) == 1
    assert weights(runs[0], "sft") == weights(runs[1], "sft") and weights(runs[0], "dpo") != weights(runs[1], "dpo")
    assert "dpo.beta" in at.trivet("compare", *map(str, runs))


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
