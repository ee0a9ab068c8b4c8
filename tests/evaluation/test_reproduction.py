"""The command that makes a run again: the right code, the right recipe, and a word on what cannot be had again."""

from __future__ import annotations

import json
import shlex

import lxml.html
import pytest
from synthetic_run import write, write_run

from evaluation.report.load import load_run
from evaluation.report.page import render
from evaluation.report.reproduction import reproduction
from pipeline.cli import _parser


@pytest.fixture
def demo(tmp_path):
    write_run(tmp_path / "demo")
    return tmp_path / "demo"


def changed(folder, stage, **values):
    path = folder / stage / "manifest.json"
    write(path, {**json.loads(path.read_text()), **values})


def again(folder):
    return reproduction(load_run(folder))


def test_commit_pins_and_recipe_make_a_run_again(demo):
    found = again(demo)
    assert found.commands == (
        "git checkout cf85b4b",
        "pip install -e . -c constraints.txt",
        "trivet run recipe.yaml --output-dir runs/demo-again --no-reuse",
    )
    shown = lxml.html.fromstring(render(load_run(demo))).get_element_by_id("environment").find("pre").text_content()
    assert shown.strip().split("\n") == list(found.commands)


def test_the_command_is_one_that_the_command_line_takes(demo):
    write(demo / "run.json", {**json.loads((demo / "run.json").read_text()), "name": "two words"})
    (demo / "results.json").unlink()
    words = shlex.split(again(demo).commands[-1])
    options = _parser().parse_args(words[1:])
    assert (words[0], options.recipe, options.output_dir) == ("trivet", "recipe.yaml", "runs/two words-again")
    assert options.no_reuse and not options.force and not options.overrides


@pytest.mark.parametrize(
    ("called", "reward"),
    [
        (["trivet", "run", "x.yaml", "--force", "dpo", "--reward", "my rewards.py:short"], "my rewards.py:short"),
        (["trivet", "run", "x.yaml", "--reward=mine.py:f", "--set", "seed=3"], "mine.py:f"),
        (["trivet", "run", "x.yaml", "--reward"], None),
        ("trivet run 'unclosed", None),
    ],
)
def test_of_the_last_call_only_the_reward_is_kept(demo, called, reward):
    """Everything else is in the resolved recipe, or belongs to that call alone."""
    write(demo / "run.json", {**json.loads((demo / "run.json").read_text()), "command": called})
    words = shlex.split(again(demo).commands[-1])
    assert (words[words.index("--reward") + 1] if "--reward" in words else None) == reward
    assert not {"--force", "--set", "seed=3", "dpo"} & set(words)


def test_several_processes_are_launched(demo):
    for stage in ("sft", "dpo"):
        changed(demo, stage, world_size=4)
    found = again(demo)
    assert found.commands[-1].startswith("accelerate launch --num_processes 4 pipeline/run.py recipe.yaml ")
    assert "Not every stage was made by 4 processes: evaluation by 1." in found.notes
    changed(demo, "evaluation", world_size=4)
    assert not any("processes" in note for note in again(demo).notes)


def test_what_no_checkout_brings_back_is_said(demo):
    dirty = "Made by code with uncommitted changes, which no commit holds: sft, dpo, evaluation."
    assert dirty in again(demo).notes
    for stage in ("sft", "dpo", "evaluation"):
        changed(demo, stage, code={"commit": "cf85b4b", "dirty": False})
    assert not any("commit" in note for note in again(demo).notes), "nothing to say of a clean checkout"
    changed(demo, "sft", code={"commit": "0123456789abcdef", "dirty": False})
    assert "Taken over from earlier runs, by code at another commit: sft at 0123456789ab." in again(demo).notes
    assert again(demo).commands[0] == "git checkout cf85b4b"
    changed(demo, "evaluation", code={})
    assert again(demo).commands[0].startswith("pip install")
    assert any("not recorded" in note for note in again(demo).notes)


def test_files_of_ones_own_are_named(demo):
    assert not any("Data must lie" in note for note in again(demo).notes)
    changed(demo, "dpo", data={"preference": {"sources": [{"path": "my/pairs.jsonl"}]}})
    assert "Data must lie where the recipe names it: my/pairs.jsonl." in again(demo).notes


def test_nothing_is_promised_of_a_run_without_recipe_or_artefacts(demo):
    (demo / "recipe.yaml").unlink()
    assert again(demo) is None
    render(load_run(demo))
