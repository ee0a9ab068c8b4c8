"""metrics.jsonl has each step once whatever was killed; Weights & Biases may fail in any way without a run noticing."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import types

import pytest

from pipeline import wandb_mirror, wandb_sender
from pipeline.console import Console
from pipeline.errors import DiskError
from pipeline.recipe.schema import WandbSettings
from pipeline.tracking import SilentTracker, Tracker, read_metrics
from pipeline.wandb_mirror import WandbMirror


class Listener:
    """A stream that remembers what was said."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return False

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.fixture
def tracker(tmp_path):
    return Tracker(tmp_path / "metrics.jsonl", "sft")


def steps(tracker_or_path, split="train"):
    path = getattr(tracker_or_path, "_path", tracker_or_path)
    return [line["step"] for line in read_metrics(path) if line["split"] == split]


def test_a_line_says_all(tracker):
    tracker.log(3, "train", {"loss": 1.5, "learning_rate": 1e-4})
    lines = read_metrics(tracker._path)
    assert [set(line) for line in lines] == [{"stage", "step", "split", "name", "value", "time"}] * 2
    assert [(line["stage"], line["step"], line["split"], line["name"], line["value"]) for line in lines] == [
        ("sft", 3, "train", "loss", 1.5),
        ("sft", 3, "train", "learning_rate", 1e-4),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_null_and_the_file_stays_json(tracker, value):
    tracker.log(1, "train", {"loss": value, "grad_norm": 2.0})
    text = tracker._path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert [line["value"] for line in read_metrics(tracker._path)] == [None, 2.0]


def test_rewinding_forgets_later_steps_and_held_out_results(tracker):
    tracker.log(0, "eval", {"loss": 9.0})
    for step in (2, 4, 6, 8):
        tracker.log(step, "train", {"loss": float(step), "grad_norm": 1.0})
    tracker.log(8, "eval", {"loss": 3.0})
    tracker.rewind(4)
    assert [(line["split"], line["step"], line["name"]) for line in read_metrics(tracker._path)] == [
        ("train", 2, "loss"), ("train", 2, "grad_norm"), ("train", 4, "loss"), ("train", 4, "grad_norm"),
    ]  # fmt: skip
    tracker.rewind(0)
    assert read_metrics(tracker._path) == []


def test_rewinding_before_anything_was_written(tracker):
    tracker.rewind(0)
    assert read_metrics(tracker._path) == []
    assert read_metrics(tracker._path.parent / "none.jsonl") == []


@pytest.mark.parametrize("torn_at", range(1, 60, 7))
def test_a_torn_last_line_is_left_out_and_gone_after_rewinding(tracker, torn_at):
    tracker.log(2, "train", {"loss": 1.0})
    whole = tracker._path.read_bytes()
    tracker._path.write_bytes(whole + whole[:torn_at])
    assert steps(tracker) == [2]
    tracker.rewind(2)
    assert tracker._path.read_bytes() == whole
    tracker.log(4, "train", {"loss": 1.0})
    assert steps(tracker) == [2, 4]


def test_a_last_line_without_its_end_is_not_glued_to_the_next(tracker):
    tracker.log(2, "train", {"loss": 1.0})
    tracker._path.write_bytes(tracker._path.read_bytes()[:-1])
    tracker.rewind(2)
    tracker.log(4, "train", {"loss": 1.0})
    assert steps(tracker) == [2, 4]


def test_bytes_that_are_no_text_do_not_stop_the_reader(tracker):
    tracker.log(2, "train", {"loss": 1.0})
    tracker._path.write_bytes(tracker._path.read_bytes() + b"\xff\xfe{\x00\n")
    assert steps(tracker) == [2]


def test_killed_again_and_again_each_step_stands_once(tracker):
    """Saves every 4 steps, a line every 2; killed after 3, 7, 11, ... steps and resumed at the last save."""
    reached = 0
    for killed_after in (3, 7, 9, 9, 13, 16):
        start = reached // 4 * 4
        tracker.rewind(start)
        for step in range(start + 1, killed_after + 1):
            if step % 2 == 0:
                tracker.log(step, "train", {"loss": 1 / step})
        reached = killed_after
    assert steps(tracker) == [2, 4, 6, 8, 10, 12, 14, 16]


def test_a_full_disk_is_named(tmp_path, small_disk):
    tracker = Tracker(small_disk / "metrics.jsonl", "sft")
    with (small_disk / "filler").open("wb", buffering=0) as stream, pytest.raises(OSError):
        while True:
            stream.write(b"x" * 4096)
    with pytest.raises(DiskError, match=str(small_disk)):
        tracker.log(1, "train", {"loss": 1.0})


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silent = SilentTracker()
    silent.log(1, "train", {"loss": 1.0})
    silent.rewind(0)
    silent.finish()
    assert list(tmp_path.iterdir()) == []


# Weights & Biases ----------------------------------------------------------------------------------------------------


class FakeRun:
    starting_step = 0

    def __init__(self, wandb):
        self._wandb = wandb

    def log(self, values, step=None):
        self._wandb.act("log")
        self._wandb.logged.append((step, dict(values)))

    def finish(self):
        self._wandb.act("finish")
        self._wandb.finished += 1


class FakeWandb(types.ModuleType):
    """Stands in for the library; `failing` names the call that raises."""

    def __init__(self):
        super().__init__("wandb")
        self.failing = ""
        self.inits, self.logged, self.finished = [], [], 0

    def act(self, name):
        if name == self.failing:
            raise ConnectionError(f"{name} is down")

    def Table(self, columns, data):
        self.act("Table")
        return columns, data

    def Settings(self, **kwargs):
        return kwargs

    def init(self, **kwargs):
        self.act("init")
        self.inits.append(kwargs)
        return FakeRun(self)


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    return fake


def tracked(tmp_path, key="k", settings=None):
    """A tracker with a mirror, as the worker makes it, and what was said to the person."""
    heard = Listener()
    run_dir = tmp_path / "run"
    run_dir.mkdir(exist_ok=True)
    mirror = WandbMirror(settings or WandbSettings(project="p"), run_dir, "name", "sft", key, Console(heard))
    mirror.start({"name": "name"})
    return Tracker(tmp_path / "metrics.jsonl", "sft", mirror), heard


def run_stage(tracker):
    """What a stage does with its tracker."""
    tracker.rewind(0)
    for step in (2, 4):
        tracker.log(step, "train", {"loss": 1.0 / step})
    tracker.log(0, "eval", {"loss": 2.0})
    tracker.log(4, "eval", {"loss": 1.0})
    tracker.finish()


def test_online_every_line_is_mirrored_and_the_run_closed(tmp_path, wandb):
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    assert [(step, values) for step, values in wandb.logged if "sft/loss" in values] == [
        (2, {"sft/loss": 0.5}),
        (4, {"sft/loss": 0.25}),
    ]
    assert (4, {"sft/eval/loss": 1.0}) in wandb.logged
    assert wandb.finished == 1 and len(wandb.inits) == 1
    options = wandb.inits[0]
    assert (options["project"], options["group"], options["job_type"], options["mode"], options["resume"]) == (
        "p", "name", "sft", "online", "allow",
    )  # fmt: skip
    assert heard.text == ""


def test_the_run_id_survives_resuming_and_differs_between_stages_and_settings(tmp_path, wandb):
    for key in ("k", "k", "other"):
        tracked(tmp_path, key)
    ids = [options["id"] for options in wandb.inits]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_no_failure_of_the_mirror_reaches_the_run(tmp_path, wandb, monkeypatch, failing, mode):
    if mode == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.failing = failing
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    assert steps(tracker) == [2, 4] and steps(tracker, "eval") == [0, 4]
    assert heard.text.count("W&B failed") == 1
    assert f"{failing} is down" in heard.text and "the run goes on" in heard.text


@pytest.mark.parametrize("call", ["init", "log", "finish"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_service_that_never_answers_holds_nobody_up(tmp_path, wandb, monkeypatch, call, mode):
    """Its library would wait for ever: for a connection, for a line to be taken, for the last lines to arrive."""
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "0.3")
    monkeypatch.setenv(wandb_mirror.SECONDS, "0.3")
    released = threading.Event()
    monkeypatch.setattr(wandb, "act", lambda name: name == call and released.wait(30))
    started = time.monotonic()
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    assert time.monotonic() - started < 10
    assert steps(tracker) == [2, 4] and steps(tracker, "eval") == [0, 4]
    assert heard.text.count("W&B failed (TimeoutError: ") == 1 and "`trivet push` sends what is missing" in heard.text
    assert wandb.finished == 0
    released.set()


def test_a_blocked_line_does_not_hold_up_the_next_step(tmp_path, wandb, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(wandb, "act", lambda name: name == "log" and released.wait(30))
    tracker, heard = tracked(tmp_path)
    started = time.monotonic()
    for step in range(1, 101):
        tracker.log(step, "train", {"loss": 1.0})
    assert time.monotonic() - started < 10 and wandb.logged == [] and steps(tracker) == list(range(1, 101))
    released.set()
    tracker.finish()
    assert [step for step, _ in wandb.logged] == list(range(1, 101)), "what waited arrives, in order"
    assert wandb.finished == 1 and heard.text == ""


def test_what_waits_for_a_blocked_service_is_bounded_and_what_arrived_has_no_gap(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr(wandb_sender, "MOST_WAITING", 10)
    released = threading.Event()
    monkeypatch.setattr(wandb, "act", lambda name: name == "log" and released.wait(30))
    tracker, heard = tracked(tmp_path)
    for step in range(1, 31):
        tracker.log(step, "train", {"loss": 1.0})
    assert heard.text.count("W&B failed (TimeoutError: it has taken nothing for 10 lines") == 1
    released.set()
    tracker.finish()
    deadline = time.monotonic() + 10
    while len(wandb.logged) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [step for step, _ in wandb.logged] == list(range(1, 11))
    assert steps(tracker) == list(range(1, 31))


def test_what_a_killed_attempt_could_not_send_comes_before_what_the_next_one_logs(tmp_path, wandb, monkeypatch):
    """W&B goes on behind its last step, so a gap could never be filled afterwards."""
    first = Tracker(tmp_path / "metrics.jsonl", "sft")
    for step in (2, 4, 6, 8):
        first.log(step, "train", {"loss": 1.0 / step})
    monkeypatch.setattr(FakeRun, "starting_step", 3)
    tracker, heard = tracked(tmp_path)
    tracker.rewind(6)
    tracker.log(8, "train", {"loss": 1.0})
    tracker.finish()
    assert wandb.logged == [(4, {"sft/loss": 1 / 4}), (6, {"sft/loss": 1 / 6}), (8, {"sft/loss": 1.0})]
    assert heard.text == ""


def test_a_library_that_cannot_be_imported_is_no_reason_to_stop(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    assert "W&B failed (ModuleNotFoundError" in heard.text
    assert steps(tracker) == [2, 4]


def test_after_a_failure_the_mirror_stays_off(tmp_path, wandb):
    wandb.failing = "log"
    tracker, heard = tracked(tmp_path)
    tracker.log(2, "train", {"loss": 1.0})
    with pytest.raises(ConnectionError):
        tracker._mirror._sender.wait(10)
    wandb.failing = ""
    tracker.log(4, "train", {"loss": 1.0})
    tracker.log(6, "train", {"loss": 1.0})
    tracker.finish()
    assert wandb.logged == [] and wandb.finished == 0 and heard.text.count("W&B failed") == 1


def test_offline_writes_once_at_the_end_each_step_once(tmp_path, wandb, monkeypatch):
    """Three interrupted attempts and a last one: offline runs of one id overwrite each other, so only one is made."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for last in (2, 4, 4):
        tracker, _ = tracked(tmp_path)
        tracker.rewind(0)
        for step in range(2, last + 1, 2):
            tracker.log(step, "train", {"loss": 1.0 / step, "grad_norm": 1.0})
    assert wandb.inits == [] and wandb.logged == []
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    assert len(wandb.inits) == 1 and wandb.inits[0]["mode"] == "offline" and wandb.finished == 1
    assert wandb.logged == [
        (0, {"sft/eval/loss": 2.0}),
        (2, {"sft/loss": 0.5}),
        (4, {"sft/loss": 0.25, "sft/eval/loss": 1.0}),
    ]
    assert heard.text == ""


SAMPLES = [{"prompt": [{"role": "user", "content": "q"}], "score": 0.5}, {"prompt": [], "score": None}]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_samples_are_sent_as_one_table_at_the_end(tmp_path, wandb, monkeypatch, mode):
    if mode == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    tracker, _ = tracked(tmp_path)
    tracker.table("rollouts", SAMPLES)
    assert wandb.logged == []
    run_stage(tracker)
    columns, data = wandb.logged[-1][1]["sft/rollouts"]
    assert columns == ["prompt", "score"]
    assert data == [['[{"role": "user", "content": "q"}]', 0.5], ["[]", None]]


def test_a_table_that_cannot_be_sent_is_no_reason_to_stop(tmp_path, wandb):
    wandb.failing = "Table"
    tracker, heard = tracked(tmp_path)
    tracker.table("rollouts", SAMPLES)
    run_stage(tracker)
    assert "Table is down" in heard.text and steps(tracker) == [2, 4]


def test_disabled_means_not_even_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    assert heard.text == "" and steps(tracker) == [2, 4]


def test_without_a_key_one_sentence_and_no_network(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))

    def no_network(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    assert heard.text.count("\n") == 1
    assert "no API key" in heard.text and "wandb login" in heard.text and "WANDB_MODE=offline" in heard.text
    assert steps(tracker) == [2, 4]


def test_a_login_on_this_machine_is_found(tmp_path, wandb, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "0" * 40 + "\n")
    (tmp_path / ".netrc").chmod(0o600)
    tracked(tmp_path)
    assert len(wandb.inits) == 1


def test_the_key_is_nowhere_in_what_is_sent_or_written(tmp_path, wandb):
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    sent = json.dumps([wandb.inits, wandb.logged]) + heard.text + tracker._path.read_text()
    assert "0" * 40 not in sent


@pytest.mark.slow
def test_the_real_library_offline_writes_a_run_and_reaches_nobody(tmp_path, monkeypatch):
    """Not a fake: wandb itself, in offline mode, in a folder of its own."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker, heard = tracked(tmp_path)
    run_stage(tracker)
    assert heard.text == ""
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
