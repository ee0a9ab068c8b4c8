"""What every source holds is looked at before anything is trained, for each purpose that it will have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.readers import Reading
from pipeline import cli
from pipeline.errors import DataError
from pipeline.preflight import check_data
from pipeline.recipe import loads_recipe
from pipeline.supervisor import Supervisor

TEXT = """
name: x
model: {base: "builtin:tiny-llama"}
data:
  sft: {sources: [{path: "builtin:alpaca_sample"}, {path: SFT}]}
  preference: {sources: [{path: PAIRS}]}
stages: {sft: {}, dpo: {}}
"""
ANSWER, PAIR = {"instruction": "a", "output": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe(tmp_path: Path):
    """A recipe whose data sets begin with the given rows."""

    def load(sft: object = ANSWER, pairs: object = PAIR, *overrides: str):
        text = TEXT.replace("SFT", write(tmp_path / "sft.jsonl", sft))
        return loads_recipe(text.replace("PAIRS", write(tmp_path / "pairs.jsonl", pairs)), overrides=overrides).recipe

    return load


EVERY = ("sft", "dpo", "evaluation")


def test_sound_sources_pass_and_only_their_first_row_is_made(recipe, tmp_path, monkeypatch) -> None:
    made = recipe()
    write(tmp_path / "sft.jsonl", ANSWER, {"nonsense": 1})
    monkeypatch.setattr(Reading, "__iter__", lambda self: pytest.fail("read on"))
    check_data(made, EVERY)


@pytest.mark.parametrize(
    ("sft", "pairs", "told"),
    [
        (
            ANSWER,
            ANSWER,
            r"data\.preference\.sources\.0, of which stage dpo wants pairs: .*rows look like alpaca, which",
        ),
        ({"question": "a"}, PAIR, r"data\.sft\.sources\.1, of which stage sft wants demonstrations: .* `map:`"),
        ({"instruction": "a", "output": 3}, PAIR, r"data\.sft\.sources\.1, .*row 1 \(the very first row\)"),
    ],
)
def test_what_a_stage_cannot_use_is_named_with_key_and_stage(recipe, sft, pairs, told) -> None:
    with pytest.raises(DataError, match=told):
        check_data(recipe(sft, pairs), EVERY)


def test_only_what_will_run_is_asked(recipe) -> None:
    made = recipe(ANSWER, ANSWER)
    check_data(made, ["sft"])
    with pytest.raises(DataError, match="stage dpo"):
        check_data(made, ["dpo"])


def test_plain_text_trains_and_has_no_prompts_for_the_evaluation(recipe, tmp_path) -> None:
    settings = ("data.preference=null", "data.sft.sources.0.path=" + write(tmp_path / "t.jsonl", {"text": "Once."}))
    stages = ("stages={sft: {}}", *settings)
    check_data(recipe({"text": "Once."}, PAIR, *stages), ["sft"])
    with pytest.raises(DataError, match="of which the evaluation wants prompts"):
        check_data(recipe({"text": "Once."}, PAIR, *stages), ["sft", "evaluation"])
    check_data(recipe({"text": "Once."}, PAIR, *stages, "evaluation.tasks=[perplexity]"), ["sft", "evaluation"])


def test_a_run_stops_before_its_first_stage(tmp_path, tiny_folder, monkeypatch, capsys) -> None:
    def walk(self, *_):
        raise AssertionError("a stage was about to start")

    monkeypatch.setattr(Supervisor, "_walk", walk)
    text = TEXT.replace("SFT", write(tmp_path / "sft.jsonl", ANSWER))
    path = tmp_path / "r.yaml"
    codes = []
    for first in (ANSWER, PAIR):
        path.write_text(text.replace("PAIRS", write(tmp_path / "pairs.jsonl", first)))
        with pytest.raises((SystemExit, AssertionError)) as ended:
            cli.main(["run", str(path), "--output-dir", str(tmp_path / "out"), "--in-process"])
        codes.append(getattr(ended.value, "code", "walked"))
        said = capsys.readouterr().err
        if first is ANSWER:
            assert "data.preference.sources.0, of which stage dpo wants pairs" in said
            assert json.loads((tmp_path / "out" / "exit.json").read_text())["code"] == 65
    assert codes[0] == 65 and codes[1] != 65, "with pairs it goes on to the first stage"
