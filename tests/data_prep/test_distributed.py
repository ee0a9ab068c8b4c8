"""Rows cleaned file by file in tasks of datatrove: the same rows as in one place, every one accounted for."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep import data_sets
from data_prep.distributed import job as job_module
from data_prep.distributed.job import begin, job_of
from pipeline import cli
from pipeline.errors import DataError
from pipeline.recipe import loads_recipe

DIRTY = Path(__file__).parents[1] / "data" / "dirty_pairs.jsonl"
CLEAN = (
    "{refusals: drop, truncated: drop, personal_data: mask, secrets: drop, label_conflicts: drop, min_words: 2, "
    "near_duplicates: {of: prompts}}"
)
RECIPE = """
name: x
model: {base: "builtin:tiny-llama"}
data:
  preference: {sources: [SOURCES], eval_fraction: 0.2, eval_limit: 1000, clean: CLEAN}
stages: {dpo: {}}
"""
WORDS = ("the", "old", "bridge", "over", "a", "river", "is", "closed", "in", "winter", "and", "nobody", "knows", "why")


def recipe_text(*paths: Path, more: str = "") -> str:
    sources = ", ".join(f"{{path: {path}{more}}}" for path in paths)
    return RECIPE.replace("SOURCES", sources).replace("CLEAN", CLEAN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files of pairs: every fault of the dirty rows, copies, and calls by telephone."""
    rng = random.Random(5)
    rows = [json.loads(line) for line in DIRTY.read_text(encoding="utf-8").splitlines()]
    for number in range(120):
        asked = " ".join(rng.choices(WORDS, k=8)) + f", or call 650-253-{rng.randint(1000, 1012)}"
        rows.append({"prompt": asked, "chosen": f"Yes, it is so, {number}.", "rejected": "No."})
    rows += rng.sample(rows, 20)
    rng.shuffle(rows)
    made = tmp_path / "pairs"
    made.mkdir()
    for number in range(5):
        part = rows[number::5]
        (made / f"{number}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
    return made


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIVET_EXIT_FILE", raising=False)

    def run(text: str, *arguments: str) -> tuple[int, str, str]:
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", "pipeline", "x.yaml", *arguments])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def content(records: list[Any]) -> list[tuple[Any, ...]]:
    return [(record.prompt, record.chosen, record.rejected, record.margin) for record in records]


def test_the_rows_are_those_of_one_machine(command, folder: Path, tmp_path: Path) -> None:
    """Rules that ask of one row there, all others where the result is read: as if it had never been divided."""
    pytest.importorskip("datatrove")
    code, out, _ = command(recipe_text(folder), "--output", "out", "--tasks", "3", "--json")
    assert code == 0
    account = json.loads(out)
    whole = data_sets.preference_pairs(loads_recipe(recipe_text(folder)).recipe.data, 17)
    again = data_sets.preference_pairs(loads_recipe(recipe_text(tmp_path / "out" / "rows" / "0")).recipe.data, 17)
    assert len(whole.train) > 40 and len(whole.held_out) > 10
    assert content(again.train) == content(whole.train)
    assert sorted(map(repr, content(again.held_out))) == sorted(map(repr, content(whole.held_out)))
    # Each rule took out the same rows, in one of the two places.
    there, here = account["cleaned"], again.report["dropped"]
    together = {rule: there.get(rule, 0) + here.get(rule, 0) for rule in {*there, *here}}
    assert together == whole.report["dropped"]
    assert there["refusals"] == whole.report["dropped"]["refusals"] and "near_duplicate" in here
    source = whole.report["sources"][0]
    assert (account["rows_read"], account["kept"]) == (source["rows_read"], source["kept"])
    assert account["records"] == account["train"] + account["held_out"] + sum(there.values())
    lines = [json.loads(line) for path in (tmp_path / "out/dropped").iterdir() for line in path.open()]
    assert len(lines) == sum(there.values()) - there.get("prompt_is_held_out", 0)
    files = sorted(path.name for path in (tmp_path / "out/rows/0").iterdir())
    assert files == ["00000.jsonl.gz", "00001.jsonl.gz", "00002.jsonl.gz"]


def test_what_is_done_is_not_done_again_and_another_job_is_refused(command, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    text = recipe_text(folder)
    first = command(text, "--output", "out", "--tasks", "2")
    assert first[0] == 0 and "to go on with them: --set data.preference.sources='[{path: out/rows/0}]'" in first[1]
    (tmp_path / "out" / "log" / "completions" / "00001").unlink()
    kept, lost = (tmp_path / "out" / "rows" / "0" / f"0000{number}.jsonl.gz" for number in (0, 1))
    before = lost.read_bytes()
    lost.write_bytes(b"")
    kept.write_bytes(b"untouched")
    assert command(text, "--output", "out", "--tasks", "2") == first
    assert kept.read_bytes() == b"untouched" and gzip.decompress(lost.read_bytes()) == gzip.decompress(before)
    for was, becomes in (("min_words: 2", "min_words: 3"), ("eval_fraction: 0.2", "eval_fraction: 0.1")):
        code, _, err = command(text.replace(was, becomes), "--output", "out", "--tasks", "2")
        assert code == 65 and "out: holds what other settings, files or tasks made" in err
    assert command(text, "--output", "out", "--tasks", "3")[0] == 65
    (folder / "0.jsonl").write_text((folder / "0.jsonl").read_text() + "\n")
    assert command(text, "--output", "out", "--tasks", "2")[0] == 65


def test_a_job_knows_its_files_by_what_is_in_them(folder: Path, tmp_path: Path) -> None:
    """Not by their times, which a copy changes, and a clock."""
    job = job_of(loads_recipe(recipe_text(folder)).recipe.data, "preference")
    begin(job, tmp_path / "out", 2)
    path = folder / "0.jsonl"
    os.utime(path, (1, 1))
    begin(job, tmp_path / "out", 2)
    content = path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 2):
        path.write_bytes(content[:place] + b"~" + content[place + 1 :])
        with pytest.raises(DataError, match="other settings, files or tasks made"):
            begin(job, tmp_path / "out", 2)
    path.write_bytes(content)
    begin(job, tmp_path / "out", 2)


def test_a_large_file_is_read_in_pieces_from_its_first_byte_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "large"
    content = bytearray(2 * job_module._PIECES * job_module._PIECE_BYTES)
    known = set()
    for place in (None, 0, len(content) - 1, 5 * job_module._PIECE_BYTES // 2):
        path.write_bytes(content)
        if place is not None:
            with path.open("r+b") as stream:
                stream.seek(place)
                stream.write(b"x")
        known.add(job_module._sample(path))
    assert len(known) == 4


def test_a_bad_row_stops_it_in_a_sentence_or_is_set_aside(command, folder: Path, tmp_path: Path) -> None:
    """The control: datatrove's own reader would have gone on without the row, and here without the rest of the file."""
    pytest.importorskip("datatrove")
    path = folder / "3.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b'{"prompt": "caf\xe9"}\n', *lines[4:9], b"{broken\n", *lines[9:]]))
    code, out, err = command(recipe_text(folder), "--output", "strict")
    assert code == 65 and out == "" and len(err.splitlines()) == 1
    assert f"{path}:5: byte 0xe9 at column 16" in err
    code, out, _ = command(recipe_text(folder, more=", on_bad_row: quarantine"), "--output", "out", "--json")
    account = json.loads(out)
    assert code == 0 and account["quarantined"] == {"not_utf8": 1, "broken_json": 1}
    assert account["rows_read"] == account["kept"] + sum(account["dropped"].values()) + 2
    bad = [json.loads(line) for line in (tmp_path / "out" / "quarantine" / "00003.jsonl").read_text().splitlines()]
    assert [(row["source"], row["row"]) for row in bad] == [(str(path), 5), (str(path), 11)]


def test_several_processes_and_several_sources(command, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "Why is it so?", "chosen": "For a reason.", "rejected": "Er."}\n')
    one = command(recipe_text(folder, other), "--output", "one")
    two = command(recipe_text(folder, other), "--output", "two", "--workers", "2")
    assert one[0] == two[0] == 0 and one[1] == two[1].replace("two/", "one/")
    assert "[{path: one/rows/0}, {path: one/rows/1}]" in one[1]
    for path in sorted((tmp_path / "one" / "rows").rglob("*.gz")):
        same = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert gzip.decompress(path.read_bytes()) == gzip.decompress(same.read_bytes())
    # Those that end in a worker end in its sentence too.
    (folder / "2.jsonl").write_text("{}\n{broken\n")
    code, _, err = command(recipe_text(folder, other), "--output", "three", "--workers", "2")
    assert code == 65 and len(err.splitlines()) == 1 and "2.jsonl" in err


def test_a_slurm_array_is_what_was_asked_for(folder: Path, tmp_path: Path) -> None:
    """The script that would be submitted; no cluster has run it."""
    pytest.importorskip("datatrove")
    from data_prep.distributed.executors import slurm_executor

    job = job_of(loads_recipe(recipe_text(folder)).recipe.data, "preference")
    executor = slurm_executor(job, tmp_path / "out", 5, 2, partition="cpu", time="01:00:00", memory=8)
    script = executor.get_launch_file_contents(executor.get_sbatch_args(5), "launch_pickled_pipeline x.pik")
    for line in ("partition=cpu", "time=01:00:00", "mem-per-cpu=8G", "array=0-4%2", "job-name=trivet-data"):
        assert f"#SBATCH --{line}\n" in script
    assert "qos" not in script and f'export PATH="{Path(sys.executable).parent}:$PATH"' in script


def test_without_datatrove_it_says_what_to_install(command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data_prep.distributed

    monkeypatch.setitem(sys.modules, "data_prep.distributed.executors", None)
    monkeypatch.delattr(data_prep.distributed, "executors", raising=False)
    code, _, err = command(recipe_text(folder), "--output", "out")
    assert code == 2 and "needs datatrove" in err and "pip install 'trivet[datatrove]'" in err


def test_mistakes_are_sentences(command, folder: Path) -> None:
    pytest.importorskip("datatrove")
    assert "the recipe has no data.sft" in command(recipe_text(folder), "--output", "out", "--data", "sft")[2]
    both = recipe_text(folder).replace(
        "  preference:", "  sft: {sources: [{path: builtin:alpaca_sample}]}\n  preference:"
    )
    assert "--data: the recipe has two data sets" in command(both, "--output", "out")[2]
    code, _, err = command(recipe_text(folder).replace(str(folder), "hub:owner/name"), "--output", "out")
    assert code == 65 and "files are what is divided" in err
