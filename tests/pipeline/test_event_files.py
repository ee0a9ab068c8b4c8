"""`trivet push --to tensorboard`: TensorBoard's own reader finds each step once, however often it was pushed."""

from __future__ import annotations

import json
import math
import sys

import pytest

from tests.pipeline.fake_cloud import push

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder):
    """All scalars as TensorBoard reads them: name to (step, value, time)."""
    found = accumulators.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        name: [(event.step, event.value, event.wall_time) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def without_time(found):
    return {name: [(step, value) for step, value, _ in events] for name, events in found.items()}


def add_line(folder, step, value, time=None):
    line = {"stage": "sft", "step": step, "split": "train", "name": "loss", "value": value, "time": time}
    with (folder / "sft" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def test_what_is_on_disk_is_what_tensorboard_reads(run, capsys):
    add_line(run, 6, 0.125, time=1700000000.5)
    assert push(run, "--to", "tensorboard") == 0
    found = scalars(run / "tensorboard" / "sft")
    values = without_time(found)
    assert math.isnan(values["sft/loss"].pop(2)[1]), "what was not finite"
    assert values == {
        "sft/loss": [(1, 1.0), (2, 0.5), (4, 0.25), (5, pytest.approx(0.2)), (6, 0.125)],
        "sft/eval/loss": [(5, pytest.approx(0.2))],
        "sft/final/eval_loss": [(6, 1.5)],
    }
    assert found["sft/loss"][-1][2] == 1700000000.5, "when it was logged, not when it was pushed"
    assert without_time(scalars(run / "tensorboard" / "evaluation")) == {"evaluation/final/ppo/score": [(0, 0.5)]}
    assert "6 steps written to" in capsys.readouterr().out


def test_pushing_again_leaves_each_step_once_and_other_files_alone(run):
    push(run, "--to", "tensorboard")
    folder = run / "tensorboard" / "sft"
    (folder / "events.out.tfevents.1.mine").write_bytes(b"")
    (folder / "notes").write_text("kept")
    add_line(run, 6, 0.125)
    push(run, "--to", "tensorboard")
    assert [step for step, _, _ in scalars(folder)["sft/loss"]] == [1, 2, 3, 4, 5, 6]
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 3 and {"notes", "events.out.tfevents.1.mine"} < set(names)
    assert not list((run / "tensorboard").glob(".*")), "nothing is left aside"


def test_a_step_that_was_logged_twice_counts_as_logged_last(run):
    add_line(run, 5, 7.0)
    push(run, "--to", "tensorboard")
    assert without_time(scalars(run / "tensorboard" / "sft"))["sft/loss"][-1] == (5, 7.0)


def test_several_runs_into_one_folder(run, tmp_path, capsys):
    """Two runs with one name would be mixed up, and are refused."""
    other = tmp_path / "other"
    (other / "sft").mkdir(parents=True)
    (other / "sft" / "metrics.jsonl").write_text((run / "sft" / "metrics.jsonl").read_text())
    (other / "run.json").write_text(
        json.dumps({"name": "other", "stages": [{"name": "sft", "kind": "sft", "key": "k"}]})
    )
    place = tmp_path / "board"
    assert push(run, other, "--to", "tensorboard", "--output-dir", place) == 0
    assert sorted(path.name for path in place.iterdir()) == ["mine", "other"]
    assert scalars(place / "other" / "sft").keys() == {"sft/loss", "sft/eval/loss"}
    (other / "run.json").write_text((other / "run.json").read_text().replace("other", "mine"))
    assert push(run, other, "--to", "tensorboard", "--output-dir", place) == 2
    assert "several runs are called mine" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--project", "p"), ("--entity", "e"), ("--workspace",)])
def test_what_only_wandb_would_read_is_refused(run, capsys, option):
    assert push(run, "--to", "tensorboard", *option) == 2
    assert f"{option[0]} means nothing to --to tensorboard" in capsys.readouterr().err
    assert push(run, "--output-dir", "x") == 2
    assert "--output-dir means nothing to --to wandb" in capsys.readouterr().err


def test_without_the_library_one_sentence(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert push(run, "--to", "tensorboard") == 2
    said = capsys.readouterr().err
    assert 'pip install -e ".[tensorboard]"' in said and said.count("\n") == 1
    assert not (run / "tensorboard").exists()
