"""Benchmarks from the files that their publishers give away, as rows of the data sets that the harness names.

One function per benchmark: from its folder to the harness's tasks with their splits. No network, no torch.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.durable import json_lines
from pipeline.errors import DataError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTask:
    """One task of the harness with its rows."""

    task: str
    """As the harness calls it."""
    splits: Mapping[str, Sequence[Row]]
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What its definition must not expect of files: splits that are not there."""


def mmlu(folder: Path) -> list[LocalTask]:
    """`test/SUBJECT_test.csv` and `dev/SUBJECT_dev.csv`: question, four choices, letter, without a header."""

    def row(cells: Sequence[str]) -> Row:
        question, *choices, answer = cells
        return {"question": question, "choices": choices, "answer": "ABCD".index(answer)}

    def split(subject: str, name: str) -> list[Row]:
        return [row(cells) for cells in _csv(folder / name / f"{subject}_{name}.csv", 6)]

    return _by_subject("mmlu_", _subjects(folder, "test", "_test.csv"), ("test", "dev"), split)


def cmmlu(folder: Path) -> list[LocalTask]:
    """`test/SUBJECT.csv` and `dev/SUBJECT.csv`, with a header."""

    def split(subject: str, name: str) -> list[Row]:
        return _named_csv(folder / name / f"{subject}.csv", ("Question", "A", "B", "C", "D", "Answer"))

    return _by_subject("cmmlu_", _subjects(folder, "test", ".csv"), ("test", "dev"), split)


def ceval(folder: Path) -> list[LocalTask]:
    """`val/SUBJECT_val.csv` and `dev/SUBJECT_dev.csv`, with a header; the test part has no answers."""

    def split(subject: str, name: str) -> list[Row]:
        return _named_csv(folder / name / f"{subject}_{name}.csv", ("question", "A", "B", "C", "D", "answer"))

    return _by_subject("ceval-valid_", _subjects(folder, "val", "_val.csv"), ("val", "dev"), split)


def hellaswag(folder: Path) -> list[LocalTask]:
    """JSON Lines. A context that is not divided into its two sentences is asked as it is."""

    def row(found: Row) -> Row:
        whole = found.get("context", found.get("ctx", ""))
        divided = {"ctx_a": found.get("ctx_a", whole), "ctx_b": found.get("ctx_b", "")}
        return {
            **divided,
            **{name: found[name] for name in ("activity_label", "endings")},
            "label": str(found["label"]),
        }

    rows = _rows(_one(folder, "*.jsonl*"), row)
    return [LocalTask(task="hellaswag", splits={"validation": rows}, changes={"training_split": None})]


def gsm8k(folder: Path) -> list[LocalTask]:
    """`test*.jsonl` and `train*.jsonl`, which has the worked examples."""

    def row(found: Row) -> Row:
        return {name: found[name] for name in ("question", "answer")}

    splits = {name: _rows(_one(folder, f"{name}*.jsonl*"), row) for name in ("test", "train")}
    return [LocalTask(task="gsm8k", splits=splits)]


def truthfulqa(folder: Path) -> list[LocalTask]:
    """`mc_task*.json`; the true answer of the first kind of question stands first, as the harness expects."""

    def targets(found: Mapping[str, int]) -> Row:
        ordered = sorted(found.items(), key=lambda pair: -pair[1])
        return {"choices": [text for text, _ in ordered], "labels": [label for _, label in ordered]}

    def row(found: Row) -> Row:
        return {
            "question": found["question"],
            **{name: targets(found[name]) for name in ("mc1_targets", "mc2_targets")},
        }

    rows = _rows(_one(folder, "mc_task*.json"), row)
    return [LocalTask(task=f"truthfulqa_{kind}", splits={"validation": rows}) for kind in ("mc1", "mc2")]


def humaneval(folder: Path) -> list[LocalTask]:
    """`*.jsonl` or `*.jsonl.gz`."""
    names = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
    rows = _rows(_one(folder, "*.jsonl*"), lambda found: {name: found[name] for name in names})
    return [LocalTask(task="humaneval", splits={"test": rows})]


def ifeval(folder: Path) -> list[LocalTask]:
    """`*.jsonl`; arguments that a row does not have are null, as in the published data set."""
    names = ("key", "prompt", "instruction_id_list", "kwargs")
    rows = _rows(_one(folder, "*.jsonl*"), lambda found: {name: found[name] for name in names})
    arguments = sorted({name for row in rows for given in row["kwargs"] for name in given})
    for row in rows:
        row["kwargs"] = [{name: given.get(name) for name in arguments} for given in row["kwargs"]]
    return [LocalTask(task="ifeval", splits={"train": rows})]


def bbh(folder: Path) -> list[LocalTask]:
    """`TASK.json` with a list of `examples`, asked with the harness's three worked examples each."""
    tasks = []
    for path in sorted(folder.glob("*.json")):
        rows = [{name: row[name] for name in ("input", "target")} for row in _json(path)["examples"]]
        tasks.append(LocalTask(task=f"bbh_cot_fewshot_{path.stem}", splits={"test": rows}))
    return tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark: what people call it, where its files lie, what the harness calls it, its headline figure."""

    title: str
    folder: str
    wanted: str
    """Files that it needs, for whoever lacks them."""
    read: Callable[[Path], list[LocalTask]]
    hub: tuple[str, ...]
    """The harness's own tasks, which fetch their data from the hub."""
    metrics: tuple[str, ...]
    """As the harness writes them, with the filter unless that is none."""
    apart: bool = False
    """Tasks measure different things, so each has figures of its own."""


BENCHMARKS: Mapping[str, Benchmark] = {
    "mmlu": Benchmark(
        title="MMLU", folder="mmlu", wanted="test/*_test.csv and dev/*_dev.csv", read=mmlu, hub=("mmlu",),
        metrics=("acc",),
    ),
    "cmmlu": Benchmark(
        title="CMMLU", folder="cmmlu", wanted="test/*.csv and dev/*.csv", read=cmmlu, hub=("cmmlu",), metrics=("acc",),
    ),
    "ceval": Benchmark(
        title="C-Eval", folder="ceval", wanted="val/*_val.csv and dev/*_dev.csv", read=ceval, hub=("ceval-valid",),
        metrics=("acc",),
    ),
    "hellaswag": Benchmark(
        title="HellaSwag", folder="hellaswag", wanted="one *.jsonl", read=hellaswag, hub=("hellaswag",),
        metrics=("acc_norm",),
    ),
    "gsm8k": Benchmark(
        title="GSM8K", folder="gsm8k", wanted="test*.jsonl and train*.jsonl", read=gsm8k, hub=("gsm8k",),
        metrics=("exact_match,strict-match", "exact_match,flexible-extract"),
    ),
    "truthfulqa": Benchmark(
        title="TruthfulQA", folder="truthfulqa", wanted="mc_task*.json", read=truthfulqa,
        hub=("truthfulqa_mc1", "truthfulqa_mc2"), metrics=("acc",), apart=True,
    ),
    "humaneval": Benchmark(
        title="HumanEval", folder="human_eval", wanted="one *.jsonl.gz", read=humaneval, hub=("humaneval",),
        metrics=("pass_at_1",),
    ),
    "ifeval": Benchmark(
        title="IFEval", folder="ifeval", wanted="one *.jsonl", read=ifeval, hub=("ifeval",),
        metrics=("prompt_level_strict_acc", "prompt_level_loose_acc"),
    ),
    "bbh": Benchmark(
        title="BIG-Bench Hard", folder="bbh", wanted="*.json", read=bbh, hub=("bbh",),
        metrics=("exact_match,get-answer",),
    ),
}  # fmt: skip


def local_tasks(name: str, data: Path) -> list[LocalTask]:
    """A benchmark's tasks from its folder below `data`.

    Raises:
        DataError: its files are not there, or are not what they should be.
    """
    known = BENCHMARKS[name]
    folder = data / known.folder
    if not folder.is_dir():
        raise DataError(f"{known.title}: there is no folder {folder}; put {known.wanted} there, or leave {name} out")
    try:
        tasks = known.read(folder)
    except (KeyError, ValueError, TypeError, csv.Error, OSError, EOFError) as error:
        raise DataError(
            f"{known.title}: {folder} is not as published ({type(error).__name__}: {error}); it needs {known.wanted}"
        ) from error
    if not tasks:
        raise DataError(f"{known.title}: nothing to ask in {folder}; put {known.wanted} there, or leave {name} out")
    return tasks


def _subjects(folder: Path, split: str, end: str) -> list[str]:
    return sorted(path.name.removesuffix(end) for path in (folder / split).glob(f"*{end}"))


def _by_subject(
    prefix: str, subjects: Sequence[str], names: Sequence[str], split: Callable[[str, str], list[Row]]
) -> list[LocalTask]:
    """One task per subject, each with its splits."""
    return [
        LocalTask(task=f"{prefix}{subject}", splits={name: split(subject, name) for name in names})
        for subject in subjects
    ]


def _csv(path: Path, width: int) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = [row for row in csv.reader(stream) if row]
    bad = next((number for number, row in enumerate(rows, start=1) if len(row) != width), None)
    if bad is not None:
        raise ValueError(f"{path.name}: row {bad} has {len(rows[bad - 1])} cells, expected {width}")
    return rows


def _named_csv(path: Path, names: Sequence[str]) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return [{name: row[name] for name in names} for row in csv.DictReader(stream)]


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{len(found)} files match {pattern}, expected one")
    return found[0]


def _rows(path: Path, row: Callable[[Row], Row]) -> list[Row]:
    return [row(found) for found in _records(path)]


def _records(path: Path) -> Iterable[Row]:
    if path.suffix == ".json":
        return list(_json(path))
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as stream:
            return [json.loads(line) for line in stream if line.strip()]
    return [json.loads(line) for line in json_lines(path)]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
