"""What benchmarks gave, as it lies in the run directory: `benchmarks/figures.json`, `benchmarks/questions.jsonl`.

An entry is one policy on one benchmark; asking again replaces it. Light: the report reads it without torch or numpy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.durable import json_lines, read_json, write_json_atomically, write_text_atomically

FOLDER = "benchmarks"
"""In the run directory."""
FIGURES = f"{FOLDER}/figures.json"
QUESTIONS = f"{FOLDER}/questions.jsonl"
Entry = dict[str, Any]


def read_entries(run_dir: Path) -> list[Entry]:
    """All entries of a run, in the order they were first made; none without the file."""
    path = run_dir / FIGURES
    return list(read_json(path)["entries"]) if path.is_file() else []


def keep(run_dir: Path, entry: Entry, questions: Sequence[Mapping[str, Any]]) -> None:
    """Put an entry and the values of its questions in the place of an earlier one of the same policy and benchmark."""
    same = _of(entry["benchmark"], entry["policy"])
    entries = read_entries(run_dir)
    places = [index for index, one in enumerate(entries) if same(one)]
    if places:
        entries[places[0]] = entry
    else:
        entries.append(entry)
    path = run_dir / QUESTIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*(line for line in _lines(path) if not same(line)), *questions]
    write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
    # Last, so that figures never stand without their questions.
    write_entries(run_dir, entries)


def write_entries(run_dir: Path, entries: Sequence[Entry]) -> None:
    """Put all entries of a run down."""
    write_json_atomically(run_dir / FIGURES, {"entries": list(entries)})


def values_by_question(run_dir: Path, benchmark: str, policy: str, metric: str) -> dict[tuple[str, str], float]:
    """A policy's value of each question, by task and number."""
    same = _of(benchmark, policy)
    return {
        (line["task"], line["question"]): float(line["value"])
        for line in _lines(run_dir / QUESTIONS)
        if same(line) and line["metric"] == metric
    }


def _of(benchmark: str, policy: str) -> Any:
    return lambda row: (row["benchmark"], row["policy"]) == (benchmark, policy)


def _lines(path: Path) -> Iterable[Mapping[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in json_lines(path)]
