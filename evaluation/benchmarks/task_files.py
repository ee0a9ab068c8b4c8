"""Local rows as task files of the harness: JSON Lines, and a definition that takes all but the data from its own.

The same folder serves the harness's command line (`lm_eval --include_path FOLDER --tasks trivet_hellaswag`), so that
every figure can be checked without this project.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from evaluation.benchmarks.local import LocalTask
from pipeline.durable import write_text_atomically
from pipeline.errors import TrivetError

PREFIX = "trivet_"
"""Before a task's name in the harness, where its data is local."""


def write_tasks(folder: Path, tasks: Sequence[LocalTask]) -> str:
    """Write every task's rows and definition into `folder`, which is made.

    Returns:
        SHA-256 over all rows.

    Raises:
        TrivetError: this version of the harness has no such task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    definitions = _definitions([task.task for task in tasks])
    digest = hashlib.sha256()
    for task in tasks:
        files = {}
        for split, rows in task.splits.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            digest.update(f"{task.task} {split}\n{text}".encode())
            path = folder / f"{task.task}.{split}.jsonl"
            write_text_atomically(path, text)
            files[split] = str(path.resolve())
        definition: dict[str, Any] = {
            "include": str(definitions[task.task]),
            "task": f"{PREFIX}{task.task}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
            **task.changes,
        }
        write_text_atomically(folder / f"{PREFIX}{task.task}.yaml", yaml.safe_dump(definition, sort_keys=False))
    return digest.hexdigest()


@cache
def _index() -> Any:
    """Every task of the harness; thousands of small files are read for it."""
    from lm_eval.tasks import TaskManager

    return TaskManager().task_index


def _definitions(names: Sequence[str]) -> dict[str, Path]:
    """The harness's own definition of each task."""
    index = _index()
    unknown = [name for name in names if name not in index or index[name].yaml_path is None]
    if unknown:
        raise TrivetError(
            f"lm-eval has no task {unknown[0]}: the data may be of another edition, or lm-eval of another version than "
            "the pinned one; `pip install -e '.[eval]' -c constraints.txt` brings that"
        )
    return {name: Path(index[name].yaml_path) for name in names}
