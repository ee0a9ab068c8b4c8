"""A tracked stage, killed five times, the last time while it writes its offline run: what `wandb sync` would find."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.runtime import ROOT
from pipeline.tracking import read_metrics
from pipeline.wandb_runs import drop_unsynced
from tests.pipeline.fake_cloud import records_of

pytestmark = pytest.mark.slow
STEPS = 400
STAGE = f"""
import sys, time
from pathlib import Path
from pipeline.console import Console
from pipeline.recipe.schema import WandbSettings
from pipeline.tracking import Tracker
from pipeline.wandb_mirror import WandbMirror

folder = Path(sys.argv[1])
mirror = WandbMirror(WandbSettings(project="p"), folder, "mine", "sft", "key", Console(None))
mirror.start({{}})
tracker = Tracker(folder / "metrics.jsonl", "sft", mirror)
saved = folder / "saved"
done = int(saved.read_text()) if saved.is_file() else 0
tracker.rewind(done or -1)
for step in range(done + 1, {STEPS} + 1):
    tracker.log(step, "train", {{"loss": 1 / step, "grad_norm": 2.0}})
    if step % 20 == 0:
        (folder / "new").write_text(str(step))
        (folder / "new").replace(saved)
    time.sleep(0.002)
print("trained", flush=True)
tracker.finish()
"""


def start(folder):
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    # As for a worker: a service of the process around it would keep the run of a killed one open.
    for name in ("WANDB_API_KEY", "WANDB_SERVICE"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", STAGE, str(folder)], env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def kill_when(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it was to be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def steps_of(path):
    """History steps and run ids in an offline file."""
    from wandb.proto import wandb_internal_pb2 as records

    steps, ids = [], set()
    for data in records_of(path):
        record = records.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            steps.append(record.history.step.num)
        elif record.WhichOneof("record_type") == "run":
            ids.add(record.run.run_id)
    return steps, ids


def test_five_kills_and_every_step_once(tmp_path):
    for lines in (30, 110, 190, 290):
        wanted = 2 * lines
        kill_when(lambda wanted=wanted: len(read_metrics(tmp_path / "metrics.jsonl")) >= wanted, start(tmp_path))
    assert list((tmp_path / "wandb").glob("offline-run-*")) == [], "nothing is written before the stage is through"
    kill_when(lambda: any((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")), start(tmp_path))
    torn = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(torn) == 1
    # Folders are named by the second.
    time.sleep(1.1)
    process = start(tmp_path)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "trained" in said
    (path,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert path.parent not in torn
    steps, ids = steps_of(path)
    assert steps == list(range(1, STEPS + 1)) and len(ids) == 1
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["name"] == "loss"] == list(range(1, STEPS + 1))


def test_what_has_been_synced_stays(tmp_path):
    """Only what nobody has sent is written anew."""
    names = {"offline-run-1-abc": True, "offline-run-2-abc": False, "offline-run-3-other": False}
    for name, synced in names.items():
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run-abc.wandb").touch()
        if synced:
            (tmp_path / "wandb" / name / "run-abc.wandb.synced").touch()
    drop_unsynced(tmp_path, "abc")
    left = {path.name for path in (tmp_path / "wandb").iterdir()}
    assert left == {"offline-run-1-abc", "offline-run-3-other"}
