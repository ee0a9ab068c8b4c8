"""The hook that makes runs fail on purpose: what it understands, what it does, and that it does nothing unasked."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from pipeline import faults
from pipeline.errors import RecipeError
from pipeline.runtime import ROOT

DOCUMENT = (ROOT / "docs" / "faults.md").read_text()


@pytest.fixture
def arm(monkeypatch):
    def armed(text, **environment):
        for name, value in {faults.VARIABLE: text, **environment}.items():
            monkeypatch.setenv(name, value)
        return faults.arm()

    monkeypatch.setattr(faults, "_ACTIVE", None)
    return armed


def test_nothing_happens_unasked(arm):
    assert arm("") == "" and faults._ACTIVE is None
    for point in faults.POINTS:
        faults.reach(point)
    assert faults.spoil("loss", 1.5) == 1.5


def test_an_armed_run_says_so(arm):
    assert arm("file.written:sleep=0") == "TRIVET_FAULT is set: this run fails on purpose (file.written:sleep=0)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kill", "not of the form POINT:ACTION"),
        ("file.written", "not of the form"),
        ("file.writen:kill", "no point 'file.writen' for kill; there are *, stage.ordered"),
        ("loss:kill", "no point 'loss' for kill"),
        ("file.written:nan", "no point 'file.written' for nan; there are *, loss"),
        ("file.written:explode", "no action 'explode'; there are kill, full"),
        ("file.written:sleep", "sleep=SECONDS"),
        ("file.written:sleep=long", "sleep=SECONDS"),
        ("file.written:kill=9", "the others none"),
        ("file.written:kill@1*", "@TIME counts from 1"),
        ("file.written:kill,", None),
    ],
)
def test_what_it_cannot_understand_is_a_sentence(arm, text, said):
    if said is None:
        assert [fault.action for fault in faults.parse(text)] == ["kill"]
        return
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        arm(text)
    assert "\n" not in str(caught.value) and faults._ACTIVE is None


def test_it_happens_at_the_asked_time_and_once(arm, tmp_path):
    arm("file.written:full@2")
    faults.reach("file.written")
    faults.reach("file.flushed")
    with pytest.raises(OSError) as caught:
        faults.reach("file.written", tmp_path)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    faults.reach("file.written")


def test_any_point_and_every_time(arm, tmp_path):
    arm(f"*:note={tmp_path / 'passed'},file.begun:full@*")
    faults.reach("ledger.begun")
    for _ in range(2):
        with pytest.raises(OSError):
            faults.reach("file.begun")
    faults.spoil("loss", 1.0)
    names = ("ledger.begun", "file.begun", "file.begun")
    assert (tmp_path / "passed").read_text() == "".join(f"{name} {os.getpid()}\n" for name in names)


def test_one_rank_of_several(arm):
    arm("step.begun:full/1", RANK="0")
    faults.reach("step.begun")
    arm("step.begun:full/1", RANK="1")
    with pytest.raises(OSError):
        faults.reach("step.begun")


def test_memory_and_time(arm):
    import torch

    arm("model.begun:memory,step.begun:sleep=0.05")
    with pytest.raises(torch.OutOfMemoryError):
        faults.reach("model.begun")
    started = time.monotonic()
    faults.reach("step.begun")
    assert time.monotonic() - started >= 0.05


def test_values_are_spoilt_not_points(arm):
    import torch

    arm("loss:nan@2")
    value = torch.ones(2)
    assert faults.spoil("loss", value) is value
    assert faults.spoil("gradient", 1.0) == 1.0
    assert torch.isnan(faults.spoil("loss", value)).all()
    assert math.isfinite(faults.spoil("loss", 1.0))


def test_a_text_is_torn_in_the_middle(arm, tmp_path):
    path = tmp_path / "lines"
    arm("metrics.torn:full")
    with path.open("w") as stream, pytest.raises(OSError):
        faults.write_torn(stream, "0123456789", "metrics.torn")
    assert path.read_text() == "01234"
    with path.open("w") as stream:
        faults.write_torn(stream, "0123456789", "metrics.torn")
    assert path.read_text() == "0123456789"


def test_a_kill_is_a_kill():
    code = "from pipeline import faults; faults.arm(); faults.reach('measured'); print('on')"
    for text, expected in (("measured:kill", -signal.SIGKILL), ("measured:kill@2", 0)):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={faults.VARIABLE: text}, capture_output=True)
        assert (done.returncode, done.stdout) == (expected, b"" if expected else b"on\n")


def test_the_command_line_refuses_what_it_cannot_understand_and_ignores_it_elsewhere(tmp_path):
    command = [sys.executable, "pipeline/run.py", "recipes/tiny_dpo.yaml", "--output-dir", str(tmp_path / "run")]
    environment = {faults.VARIABLE: "here:kill", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("TRIVET_FAULT: no point 'here'")
    assert not (tmp_path / "run").exists()
    done = subprocess.run([*command, "--plan"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_document_names_every_point_value_and_action():
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \|$", DOCUMENT, flags=re.MULTILINE))
    told = {name: text for name, text in rows.items() if name not in faults._ACTIONS}
    assert told == {**faults.POINTS, **faults.VALUES}
    assert set(rows) - set(told) == set(faults._ACTIONS)


def test_every_point_stands_in_the_code():
    """Which of them a run passes is checked on a whole chain."""
    texts = [path.read_text() for top in ("pipeline", "evaluation", "data_prep") for path in (ROOT / top).rglob("*.py")]
    source = "\n".join(text for text in texts if "POINTS: Mapping" not in text)
    used = set(re.findall(r"(?:reach|spoil)\(\s*\"([\w.]+)\"", source)) | set(
        re.findall(r", \"(metrics\.torn)\"", source)
    )
    assert used == {*faults.POINTS, *faults.VALUES}
