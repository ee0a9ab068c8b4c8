"""What the cache keeps of records that have more than text: calls, votes, groups, and rows that were set aside."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep import build, cache, data_sets
from data_prep.chat import ChatFormatter
from pipeline.models.load import load_tokenizer
from pipeline.recipe import loads_recipe

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ASKED = [{"role": "user", "content": "Weather in Oslo?"}]
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
PAIR = {
    "prompt": ASKED, "chosen": [CALLED], "rejected": [{"role": "assistant", "content": "No idea."}],
    "tools": [TOOL], "label_noise": 0.25, "group": "g", "margin": 0.5, "split": "train",
}  # fmt: skip
TALK = {
    "messages": [
        *ASKED, CALLED, {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ],
    "tools": [TOOL], "split": "train",
}  # fmt: skip
RECIPE = """
name: x
model: {base: "builtin:tiny-llama"}
data:
  sft: {sources: [{path: FILE, on_bad_row: quarantine}], max_length: 4096}
  preference: {sources: [{path: FILE, on_bad_row: quarantine}], max_length: 4096}
  split: {sft: 0.5, dpo: 0.5}
stages: {sft: {}, dpo: {}}
"""


@pytest.fixture
def encode(tmp_path: Path, monkeypatch, tiny_folder):
    """Encodes rows through a cache of its own; gives (function, list of reads)."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_BYTES", 1)
    reads: list[str] = []
    for name in ("read_demonstrations", "read_pairs"):
        original = getattr(data_sets, name)
        monkeypatch.setattr(data_sets, name, lambda spec, f=original: reads.append(spec.path) or f(spec))
    formatter = ChatFormatter(load_tokenizer(tiny_folder, "auto"))

    def run(of: str, row: dict[str, Any], part: str | None = None, aside: Path | None = None):
        path = tmp_path / f"{of}.jsonl"
        path.write_text("".join(f"{line}\n" for line in (json.dumps(row), '{"broken', json.dumps({**row, "n": 1}))))
        data = loads_recipe(RECIPE.replace("FILE", str(path))).recipe.data
        return getattr(build, f"encode_{of}")(data, formatter, 17, part, aside)

    return run, reads


@pytest.mark.parametrize(("of", "row"), [("pairs", PAIR), ("demonstrations", TALK)])
def test_a_cached_record_keeps_its_functions_and_votes(encode, of, row) -> None:
    run, reads = encode
    first, second = run(of, row), run(of, row)
    assert len(reads) == 1 and second == first
    [record] = second[0].records
    if of == "pairs":
        assert record.chosen_calls[0].name == "weather" and not record.rejected_calls
        assert (record.label_noise, record.group, record.margin) == (0.25, "g", 0.5)
        assert json.loads(record.prompt[0].tools[0])["function"]["name"] == "weather"
    else:
        assert record.messages[1].tool_calls[0].id == record.messages[2].call_id == "c1"
        assert record.messages[0].tools
    assert second[2]["statistics"]["calls"] == {"rows": 1, "calls": 1}
    # A tuple that came back as a list would still render alike, and would no longer be a key of anything.
    assert hash(record) == hash(first[0].records[0])


def test_rows_set_aside_are_written_from_the_cache_too(encode, tmp_path) -> None:
    run, reads = encode
    run("pairs", PAIR)
    (tmp_path / "stage").mkdir()
    run("pairs", PAIR, aside=tmp_path / "stage")
    [line] = (tmp_path / "stage" / "quarantine.jsonl").read_text().splitlines()
    assert len(reads) == 1 and json.loads(line)["reason"] == "broken_json" and json.loads(line)["row"] == 2


def test_parts_of_one_data_set_are_kept_apart(encode) -> None:
    run, reads = encode
    whole = run("demonstrations", TALK)
    parts = []
    for part in ("sft", "dpo"):
        try:
            parts.append(len(run("demonstrations", TALK, part)[0].records))
        except build.DataError:
            parts.append(0)
    assert len(whole[0].records) == 1 and sorted(parts) == [0, 1] and len(reads) == 3


def test_what_a_killed_process_left_beside_the_entries_goes_after_a_day(encode, tmp_path) -> None:
    run, _ = encode
    folder = tmp_path / "cache" / "data"
    folder.mkdir(parents=True)
    for name, age in ((".old.arrow.7.tmp", 2 * 24 * 3600), (".new.arrow.8.tmp", 60)):
        (folder / name).write_text("half")
        os.utime(folder / name, (time.time() - age,) * 2)
    run("pairs", PAIR)
    assert {path.suffix for path in folder.iterdir()} == {".arrow", ".tmp"}
    assert not (folder / ".old.arrow.7.tmp").exists() and (folder / ".new.arrow.8.tmp").exists()
