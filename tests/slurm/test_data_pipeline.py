"""Data cleaned by an array of tasks on a real Slurm, where datatrove is installed too: the rows of a local run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("datatrove")
pytestmark = pytest.mark.slurm

RECIPE = """
name: x
model: {base: "builtin:tiny-llama"}
data:
  sft: {sources: [{path: FOLDER}], eval_fraction: 0.2, clean: {refusals: drop, personal_data: mask, min_words: 2}}
stages: {sft: {}}
"""


def rows_in(output: Path) -> dict[str, list[str]]:
    """Lines by file."""
    found = sorted((output / "rows").rglob("*.jsonl.gz"))
    return {path.name: gzip.decompress(path.read_bytes()).decode().splitlines() for path in found}


def test_an_array_of_tasks_gives_the_rows_of_one_machine(at):
    data = at.folder / "rows"
    data.mkdir()
    for part in range(3):
        rows = [
            {"instruction": f"Question {part}, {n}?", "output": f"Write to ann{n}@firma-meier.de."} for n in range(40)
        ]
        rows += [{"instruction": f"Refused {part}?", "output": "As an AI language model, I cannot help with that."}]
        (data / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = at.folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("FOLDER", str(data)))
    apart, here = at.folder / "apart", at.folder / "here"
    command = ("data", "pipeline", str(recipe), "--data", "sft", "--output")
    refused = at.refused(*command, str(apart), "--slurm", "nowhere")
    assert "sbatch refused" in refused and "PARTITION" in refused and "Traceback" not in refused
    said = at.trivet(*command, str(apart), "--slurm", "all", "--time", "00:10:00", "--memory", "1")
    assert "submitted 3 tasks" in said
    at.wait("the tasks' end", apart, lambda: not at.cluster.ask("squeue", "-h").strip())
    assert len(list((apart / "log" / "completions").iterdir())) == 3, at.cluster.logs()
    account = at.trivet(*command, str(apart))
    assert account.replace(str(apart), "") == at.trivet(*command, str(here)).replace(str(here), "")
    assert "123 rows read, 123 kept" in account and "refusals 2" in account  # the third is held out
    assert rows_in(apart) == rows_in(here) and len(rows_in(here)) == 3
    assert all("ann1@" not in line for lines in rows_in(here).values() for line in lines)
