"""W&B out of reach from the start: training is the same, the run is done, and a later push holds each step once.

The library itself, against a port where nobody listens. What happens when it fails later, or never ends, is tried with
a stand-in (`tests/pipeline/test_tracking.py`), since no service of theirs can be had here.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.peers import free_port
from pipeline.runtime import ROOT
from tests.pipeline.fake_cloud import records_of

pytestmark = pytest.mark.slow
RECIPE = ROOT / "recipes" / "tiny_dpo.yaml"
PART = ("--until", "sft")


def test_the_run_goes_on_and_a_later_push_has_it_all(new_run, warm):
    plain = new_run("plain", RECIPE, (*PART, "--no-reuse"))
    plain.warm = warm
    plain.go(launcher="forked")
    run = new_run("tracked", RECIPE, (*PART, "--no-reuse", "--set", "tracking.wandb={project: p}"))
    run.warm = warm
    nowhere = f"http://127.0.0.1:{free_port()}"
    run.variables = {"WANDB_BASE_URL": nowhere, "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}
    said = run.go(launcher="forked")
    assert "W&B failed" in said and "the run goes on, tracked in metrics.jsonl" in said
    assert run.outcome()["code"] == 0 and run.left_behind() == {}
    assert run.weights("sft") == plain.weights("sft")
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
