"""W&B out of reach at the start, in mid-run and at the end: training is the same, and a later push has each step once.

The library itself, against a port where nobody listens; and a stand-in for library and service that never comes back
from a call, in the place of the library on the run's own path, since no service of theirs can be had here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.peers import free_port
from pipeline.runtime import ROOT
from pipeline.tracking import read_metrics
from pipeline.wandb_runs import series
from tests.e2e.oracle import account, differences
from tests.pipeline.fake_cloud import push, records_of

pytestmark = pytest.mark.slow
RECIPE = ROOT / "recipes" / "tiny_dpo.yaml"
PART = ("--until", "sft", "--no-reuse")
TRACKED = (*PART, "--set", "tracking.wandb={project: p}")
LATE = Counter({(0, "sft/eval/loss"): 1})
"""Logged last and of the first step: the service takes it only where nothing of a later step has come before."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory, run_in, warm):
    """Not tracked."""
    run = run_in(tmp_path_factory.mktemp("plain") / "runs" / "plain", options=PART)
    run.warm = warm
    run.go(launcher="forked")
    return run


@pytest.fixture
def tracked(new_run, warm):
    run = new_run("tracked", RECIPE, TRACKED)
    run.warm = warm
    return run


def test_the_run_goes_on_and_a_later_push_has_it_all(tracked, plain):
    run = tracked
    nowhere = f"http://127.0.0.1:{free_port()}"
    run.variables = {"WANDB_BASE_URL": nowhere, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}
    said = run.go(launcher="forked")
    assert "W&B failed" in said and "the run goes on, tracked in metrics.jsonl" in said
    assert run.outcome()["code"] == 0 and run.left_behind() == {}
    assert differences(account(run.folder), account(plain.folder)) == []
    steps = sorted({line["step"] for split in ("train", "eval") for line in run.lines("sft", split=split)})
    assert steps and steps == sorted({0, *plain.train_steps("sft")})
    assert pushed(run.folder) == steps


def pushed(folder):
    """Steps of the SFT stage that a push in offline mode writes down."""
    from wandb.proto import wandb_internal_pb2 as records

    command = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()", "push", str(folder)]
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, timeout=300)
    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in records_of(path):
            record = records.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                found.append(record.history.step.num)
    return found


@pytest.fixture
def service(tmp_path, monkeypatch):
    """The stand-in's folder; what is pushed from here goes there too, and is answered."""
    folder = tmp_path / "service"
    folder.mkdir()
    (tmp_path / "path").mkdir()
    library = shutil.copy(Path(__file__).with_name("wandb_standin.py"), tmp_path / "path" / "wandb.py")
    monkeypatch.setenv("STANDIN", str(folder))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    spec = importlib.util.spec_from_file_location("wandb", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return folder


def arrived(service) -> Counter[tuple[int, str]]:
    """How often each value has come to the service, by its step and name there."""
    lines = [json.loads(line) for path in service.glob("*.jsonl") for line in path.read_text().splitlines()]
    return Counter((line["step"], name) for line in lines for name in line["values"])


def logged(run) -> Counter[tuple[int, str]]:
    """The same of what the run has logged."""
    lines = read_metrics(run.folder / "sft" / "metrics.jsonl")
    return Counter((line["step"], series("sft", line["split"], line["name"])) for line in lines)


def attempt(run, service, tmp_path, call, at=1, *options, **expected):
    run.variables = {
        "STANDIN": str(service), "STANDIN_BLOCKS": call, "STANDIN_AT": str(at), "PYTHONPATH": str(tmp_path / "path"),
        "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "1", "TRIVET_WANDB_SECONDS": "1",
    }  # fmt: skip
    return run.go(*options, launcher="forked", **expected)


@pytest.mark.parametrize(("call", "at"), [("init", 1), ("log", 1), ("log", 4), ("finish", 1)])
def test_blocked_for_good_training_is_the_same_and_a_push_has_each_step_once(
    tracked, plain, service, tmp_path, call, at
):
    run = tracked
    said = attempt(run, service, tmp_path, call, at)
    assert (service / f"blocked-{call}").is_file(), "it was never blocked"
    assert "W&B failed (TimeoutError" in said and "the run goes on, tracked in metrics.jsonl" in said
    assert run.outcome()["code"] == 0 and run.left_behind() == {}
    assert differences(account(run.folder), account(plain.folder)) == []
    before = arrived(service)
    assert push(run.folder) == 0
    found = logged(run)
    assert len(found) > 10 and set(found.values()) == {1}
    assert arrived(service) == (found - LATE if before else found)
    assert {"init": not before, "log": len(before) < len(found) - 1, "finish": before == found - LATE}[call]


def test_blocked_killed_and_reachable_again_there_is_no_gap(tracked, plain, service, tmp_path):
    """The second attempt goes on behind a checkpoint; what the first had logged and could not send comes before."""
    run = tracked
    run.faults = "checkpoint.committed:kill@3"
    attempt(run, service, tmp_path, "log", 2, code=None)
    before = arrived(service)
    run.faults = ""
    said = attempt(run, service, tmp_path, "")
    assert "W&B failed" not in said and "going on from step" in said
    assert differences(account(run.folder), account(plain.folder)) == []
    assert arrived(service) == logged(run) - LATE and 0 < len(before) < len(arrived(service))
