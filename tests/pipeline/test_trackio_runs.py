"""`trivet push --to trackio`: its database holds each step once, however often it was pushed, and nothing leaves."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys

import pytest

from pipeline import trackio_runs
from pipeline.runtime import ROOT
from tests.pipeline.fake_cloud import push

storage = pytest.importorskip("trackio.sqlite_storage")
KILLED_AT = {"cleared": "bulk_log", "half written": "_insert_trace_rows"}
"""State to the part of trackio's storage that is called in it."""


@pytest.fixture
def board(tmp_path, monkeypatch):
    """Trackio's folder, which it reads from the environment at import."""
    folder = tmp_path / "board"
    monkeypatch.setattr(storage, "TRACKIO_DIR", folder)
    for name in trackio_runs._ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def dialled(monkeypatch):
    """Addresses that something wanted to reach, those among them whose failure was swallowed."""
    found = []

    def refuse(*arguments, **_):
        found.append(arguments)
        raise OSError("refused")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return found


def stored(folder, project="p"):
    """Per run name: (step, values, time) of each row, as they lie in the database."""
    found = {}
    with sqlite3.connect(folder / f"{project}.db") as database:
        for name, step, values, time in database.execute("select run_name, step, metrics, timestamp from metrics"):
            found.setdefault(name, []).append((step, json.loads(values), time))
    return found


def steps(folder, name="mine/sft", project="p"):
    return [step for step, _, _ in stored(folder, project)[name]]


def add_line(folder, step, value, time=None):
    line = {"stage": "sft", "step": step, "split": "train", "name": "loss", "value": value, "time": time}
    with (folder / "sft" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def test_what_is_on_disk_is_what_trackio_holds(run, board, capsys):
    add_line(run, 6, 0.125, time=1700000000.5)
    assert push(run, "--to", "trackio") == 0
    found = stored(board)
    assert sorted(found) == ["mine/evaluation", "mine/ppo", "mine/sft"], "one run per stage that logged something"
    assert [(step, values) for step, values, _ in found["mine/sft"]] == [
        (1, {"sft/loss": 1.0}), (2, {"sft/loss": 0.5}), (3, {"sft/loss": "NaN"}), (4, {"sft/loss": 0.25}),
        (5, {"sft/loss": 0.2, "sft/eval/loss": 0.2}), (6, {"sft/loss": 0.125, "sft/final/eval_loss": 1.5}),
    ]  # fmt: skip
    assert found["mine/sft"][-1][2] == "2023-11-14T22:13:20.500000+00:00", "when it was logged, not when it was pushed"
    assert [(step, values) for step, values, _ in found["mine/evaluation"]] == [
        (0, {"evaluation/final/ppo/score": 0.5})
    ]
    assert steps(board, "mine/ppo") == [1, 2, 3, 4, 5], "its torn last line is left out"
    assert f"6 steps written to {board / 'p.db'}" in capsys.readouterr().out


def test_trackio_reads_it_back_in_order_grouped_and_with_the_recipe(run, board):
    """By the functions that its dashboard calls; what was not finite is no number to it, but a gap."""
    push(run, "--to", "trackio")
    ids = {record["name"]: record["id"] for record in storage.SQLiteStorage.get_run_records("p")}
    logs = storage.SQLiteStorage.get_logs("p", run_id=ids["mine/sft"])
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5]
    assert math.isnan(logs[2]["sft/loss"])
    config = storage.SQLiteStorage.get_run_config("p", run_id=ids["mine/ppo"])
    assert config["_Group"] == config["name"] == "mine" and config["stage"] == "ppo"
    assert config["tracking"] == {"wandb": {"project": "p", "entity": "e"}}


def test_the_ids_are_those_of_wandb(run, board, wandb):
    push(run, "--to", "trackio")
    push(run)
    ids = {record["name"]: record["id"] for record in storage.SQLiteStorage.get_run_records("p")}
    assert {one["options"]["name"]: one["options"]["id"] for one in wandb.runs.values()} == ids


def test_pushing_again_leaves_each_step_once_and_other_runs_alone(run, board):
    storage.SQLiteStorage.bulk_log("p", "mine/sft", [{"by": "hand"}], run_id="another")
    for _ in range(2):
        push(run, "--to", "trackio")
    assert steps(board) == [0, 1, 2, 3, 4, 5], "theirs has the same name and another id"
    add_line(run, 5, 7.0)
    add_line(run, 6, 0.125)
    push(run, "--to", "trackio")
    rows = stored(board)["mine/sft"]
    assert [step for step, _, _ in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert rows[0][1] == {"by": "hand"}
    assert rows[-2][1] == {"sft/loss": 7.0, "sft/eval/loss": 0.2}, "the later of two; the headline figure has moved on"


def test_two_runs_in_one_project_stay_apart(run, board, tmp_path, capsys):
    """Told apart by where they lie, even under one name."""
    other = tmp_path / "other"
    (other / "sft").mkdir(parents=True)
    (other / "sft" / "metrics.jsonl").write_text((run / "sft" / "metrics.jsonl").read_text())
    (other / "run.json").write_text((run / "run.json").read_text())
    assert push(run, other, "--to", "trackio", "--project", "both", "--json") == 0
    assert steps(board, project="both") == [1, 2, 3, 4, 5] * 2
    assert len(storage.SQLiteStorage.get_run_records("both")) == 4
    said = json.loads(capsys.readouterr().out)
    assert [(row["stage"], row["steps"]) for row in said] == [("sft", 5), ("ppo", 5), ("evaluation", 0), ("sft", 5)]
    assert {row["project"] for row in said} == {"both"} and {row["group"] for row in said} == {"mine"}


def test_no_secret_of_a_recipe_gets_there(run, board, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "quite-secret-1")
    (run / "recipe.yaml").write_text(
        "name: mine\ndata: {sources: ['https://me:pass-9@host/x', hf_abcdefghijklmnopqrst]}\nnotes: quite-secret-1\n"
    )
    push(run, "--to", "trackio")
    held = b"".join(path.read_bytes() for path in board.iterdir())
    assert b"[secret]" in held and b"mine/sft" in held
    assert not any(secret in held for secret in (b"quite-secret-1", b"pass-9", b"hf_abc"))


def test_nothing_is_dialled(run, board, dialled):
    assert push(run, "--to", "trackio") == 0
    assert dialled == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 9))
    assert dialled, "the record works"


@pytest.mark.parametrize("name", trackio_runs._ELSEWHERE)
def test_what_would_lead_elsewhere_is_refused(run, board, dialled, monkeypatch, capsys, name):
    monkeypatch.setenv(name, "someone/board")
    assert push(run, "--to", "trackio") == 2
    said = capsys.readouterr().err
    assert f"{name} is set" in said and said.count("\n") == 1
    assert dialled == [] and not board.exists()


@pytest.mark.parametrize("state", KILLED_AT)
def test_a_push_that_was_killed_is_made_whole_by_the_next(run, board, state):
    """`TRACKIO_DIR` is honoured on the way."""
    code = (
        "import os, signal, sys; from trackio.sqlite_storage import SQLiteStorage; from pipeline.cli import main\n"
        f"SQLiteStorage.{KILLED_AT[state]} = staticmethod(lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))\n"
        "main(['push', sys.argv[1], '--to', 'trackio'])"
    )
    push(run, "--to", "trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(board)}
    killed = subprocess.run([sys.executable, "-c", code, run], cwd=ROOT, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "mine/sft" not in stored(board), "it had begun"
    push(run, "--to", "trackio")
    assert {name: len(rows) for name, rows in stored(board).items()} == {
        "mine/sft": 5, "mine/ppo": 5, "mine/evaluation": 1
    }  # fmt: skip


def test_a_push_that_another_overtakes_writes_no_step_twice(run, board, monkeypatch):
    """Both have cleared before either writes."""
    write = storage.SQLiteStorage.bulk_log

    def overtaken(*arguments, **named):
        write(*arguments, **named)
        write(*arguments, **named)

    monkeypatch.setattr(storage.SQLiteStorage, "bulk_log", staticmethod(overtaken))
    assert push(run, "--to", "trackio") == 0
    assert steps(board) == [1, 2, 3, 4, 5]


def test_rows_that_could_not_be_replaced_are_an_error(run, board, monkeypatch, capsys):
    """trackio's storage keeps the failure of a deletion to itself, and ignores rows that are there already."""
    push(run, "--to", "trackio")
    monkeypatch.setattr(storage.SQLiteStorage, "delete_run", staticmethod(lambda *_, **__: False))
    assert push(run, "--to", "trackio") == 74
    said = capsys.readouterr().err
    assert "it holds 5 rows of this run where 0 were expected" in said and said.count("\n") == 1
    assert steps(board) == [1, 2, 3, 4, 5]


def test_a_database_that_cannot_be_written_is_one_sentence(run, board, tmp_path, monkeypatch, capsys):
    board.mkdir()
    (board / "p.db").write_bytes(b"no database" * 100)
    assert push(run, "--to", "trackio") == 74
    said = capsys.readouterr().err
    assert "p.db cannot be written (file is not a database)" in said and said.count("\n") == 1
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "file")
    (tmp_path / "file").touch()
    assert push(run, "--to", "trackio") == 74
    said = capsys.readouterr().err
    assert "another folder with TRACKIO_DIR" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("project", "said"), [("my.model", "would keep project 'my.model' as 'mymodel'"), ("a_system", "reserved suffix")]
)
def test_projects_that_trackio_would_mix_up_are_refused(run, board, capsys, project, said):
    assert push(run, "--to", "trackio", "--project", project) == 2
    assert said in capsys.readouterr().err and not board.exists()


@pytest.mark.parametrize("option", [("--output-dir", "x"), ("--entity", "e"), ("--workspace",)])
def test_what_only_others_would_read_is_refused(run, board, capsys, option):
    assert push(run, "--to", "trackio", *option) == 2
    assert f"{option[0]} means nothing to --to trackio" in capsys.readouterr().err


def test_without_the_library_or_with_another_release_one_sentence(run, board, monkeypatch, capsys):
    monkeypatch.setattr(trackio_runs, "_TESTED", "0.1")
    assert push(run, "--to", "trackio") == 2
    said = capsys.readouterr().err
    assert "may store runs otherwise than the tested 0.1" in said and said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "trackio", None)
    assert push(run, "--to", "trackio") == 2
    said = capsys.readouterr().err
    assert 'pip install -e ".[trackio]"' in said and said.count("\n") == 1
    assert not board.exists()
