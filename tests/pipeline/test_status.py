"""`trivet status`: what a run directory and Slurm tell of a run that is done, going on, killed or not begun."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime

import pytest

from pipeline import cli, status
from pipeline.slurm import scheduler


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run with a finished stage, one at step 30 of 100 that began 60 s ago, and one to come."""
    began, now = datetime.fromtimestamp(time.time() - 60, UTC).isoformat(timespec="seconds"), time.time()
    store, run = tmp_path / "runs" / ".store", tmp_path / "runs" / "x"
    for name in ("sft", "dpo", "evaluation"):
        (store / name / "work").mkdir(parents=True)
    (run / "slurm").mkdir(parents=True)
    (store / "sft" / "manifest.json").write_text(json.dumps({"seconds": 125.0}))
    lines = [(8, now - 900, "train"), (10, now - 50, "train"), (30, now - 10, "train"), (99, now, "eval")]
    text = "".join(json.dumps({"step": s, "time": t, "split": kind, "name": "loss"}) + "\n" for s, t, kind in lines)
    (store / "dpo" / "metrics.jsonl").write_text(text + '{"step": 31, "ti')
    (store / "dpo" / "work" / "steps.json").write_text('{"steps": 100}')
    entries = [("sft", "skipped", None), ("dpo", "running", began), ("evaluation", "pending", None)]
    rows = [
        {"name": name, "status": state, "reason": "r", "started": at, "seconds": None, "artefact": str(store / name)}
        for name, state, at in entries
    ]
    (run / "run.json").write_text(json.dumps({"stages": rows}))
    (run / ".holder.json").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    monkeypatch.setattr(status, "is_sealed", lambda path: path.name == "sft")
    monkeypatch.setattr(scheduler, "is_there", lambda: False)
    monkeypatch.chdir(tmp_path)
    return run


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", *arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_a_run_that_goes_on(folder, capsys):
    """20 steps in 40 s of this attempt, 70 to go; an earlier attempt and held-out figures count for nothing."""
    code, out, err = said(capsys, "runs/x")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert 60 <= int(lines[3].pop(5)) <= 70
    assert lines == [
        ["runs/x"], ["stage", "state", "step", "time", "left"], ["sft", "done", "2", "min"],
        ["dpo", "running", "30", "of", "100", "s", "2", "min"], ["evaluation", "pending"],
    ]  # fmt: skip
    found = json.loads(said(capsys, "--json")[1])
    assert found["folder"] == "runs/x", "the newest is the default"
    assert found["stages"][1]["seconds_left"] == pytest.approx(140, abs=1e-6)
    assert found["exit"] is None and found["jobs"] == []


def test_a_run_that_was_killed_is_not_going_on(folder, capsys):
    (folder / ".holder.json").write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}))
    (folder / "exit.json").write_text('{"code": 75, "sentence": "asked to stop"}')
    out = said(capsys, "runs/x")[1]
    assert "dpo         killed" in out and "last attempt ended with code 75: asked to stop" in out


def test_the_newest_run_is_the_one_begun_last_whatever_clocks_say(folder, capsys):
    """And how it ended is what was said last, in the one place for it."""
    ledger = json.loads((folder / "run.json").read_text())
    for name, order in (("a", 3), ("b", 12), ("c", 5)):
        (folder.parent / name).mkdir()
        (folder.parent / name / "run.json").write_text(json.dumps({**ledger, "order": order, "stages": []}))
        os.utime(folder.parent / name / "run.json", (100.0 - order, 100.0 - order))
    assert json.loads(said(capsys, "--json")[1])["folder"] == "runs/b"
    (folder.parent / "b" / "slurm").mkdir()
    (folder.parent / "b" / "exit.json").write_text('{"code": 75, "sentence": "asked to stop"}')
    os.utime(folder.parent / "b" / "exit.json", (1, 1))
    (folder.parent / "b" / "slurm" / "exit-6.json").write_text('{"code": 0, "sentence": ""}')
    assert json.loads(said(capsys, "--json")[1])["exit"]["code"] == 75


def test_a_run_on_another_machine_is_believed(folder, capsys):
    (folder / ".holder.json").write_text(json.dumps({"pid": 2**22 + 1, "host": "elsewhere"}))
    assert "dpo         running" in said(capsys, "runs/x")[1]


def test_its_slurm_jobs(folder, capsys, monkeypatch):
    rows = [{"name": "sft", "job_id": "6"}, {"name": "dpo", "job_id": "7"}, {"name": "all", "job_id": "8_2"}]
    (folder / "slurm" / "jobs.json").write_text(json.dumps({"jobs": rows}))
    (folder / "slurm" / "exit-6.json").write_text('{"code": 0, "sentence": ""}')
    monkeypatch.setattr(scheduler, "is_there", lambda: True)
    monkeypatch.setattr(scheduler.shutil, "which", lambda name: name)
    answers = {"squeue": "7 RUNNING\n", "sacct": "8_2|CANCELLED by 0\n"}
    asked = []

    def called(command):
        asked.append(command)
        return type("Done", (), {"returncode": 0, "stdout": answers[command[0]]})

    monkeypatch.setattr(scheduler, "_called", called)
    out = said(capsys, "runs/x")[1]
    assert out.splitlines()[-1] == "Slurm: sft 6 ended with code 0, dpo 7 RUNNING, all 8_2 CANCELLED"
    assert asked[1][-1] == "--jobs=6,8_2", "the accounting is asked for what has left the queue"
    (folder / "run.json").unlink()
    assert "nothing has run yet" in said(capsys, "runs/x")[1]


def test_no_run_is_a_sentence(folder, capsys, tmp_path):
    code, _, err = said(capsys, "runs/y")
    assert code == 2 and err == "runs/y: is no run directory (it has no run.json); beside it: runs/x\n"
    (folder / "run.json").unlink()
    code, _, err = said(capsys)
    assert code == 2 and "there is no run in runs/" in err
