"""What is to be done with the rows of a data set, file by file; and what became of them.

`steps` does it, `executors` says where. Nothing here needs datatrove.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.data_sets import held_out_fraction, spec_of
from data_prep.readers import SourceSpec
from data_prep.readers.containers import local_files
from data_prep.readers.formats import Purpose
from pipeline.durable import read_json, sha256_json, write_json_atomically
from pipeline.errors import DataError
from pipeline.recipe.cleaning_settings import CleanSettings, DecontaminateSettings
from pipeline.recipe.schema import DataSettings

_PIECES, _PIECE_BYTES = 64, 2**16
"""Of a file that are read to know it by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of a recipe's source."""

    spec: SourceSpec
    source: int
    """Place of the source in the recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done with the rows of one data set."""

    purpose: Purpose
    files: tuple[SourceFile, ...]
    clean: CleanSettings
    decontaminate: DecontaminateSettings | None
    eval_fraction: float
    held_out_fraction: float


def job_of(data: DataSettings, name: str) -> Job:
    """What a recipe says of one data set.

    Args:
        data: of the recipe.
        name: `sft` or `preference`, which is there.

    Raises:
        DataError: a source is missing, or on the hub.
    """
    settings = data.preference if name == "preference" else data.sft
    assert settings is not None
    files: list[SourceFile] = []
    for number, source in enumerate(settings.sources):
        found = local_files(source.path)
        if found is None:
            raise DataError(
                f"{source.path}: is on the hub, and files are what is divided; fetch it and name its folder"
            )
        inside = not source.path.startswith("builtin:") and Path(source.path).expanduser().is_dir()
        names = [f"{source.path.rstrip('/')}/{path.name}" for path in found] if inside else [source.path]
        files += [SourceFile(spec=replace(spec_of(source), path=path), source=number) for path in names]
    return Job(
        purpose="pairs" if name == "preference" else "demonstrations",
        files=tuple(files),
        clean=settings.clean,
        decontaminate=data.decontaminate,
        eval_fraction=settings.eval_fraction,
        held_out_fraction=held_out_fraction(data),
    )


def share_of(files: Sequence[SourceFile], rank: int, world_size: int) -> Sequence[SourceFile]:
    """The files of one task: neighbours, so that the outputs in their order hold the rows in theirs."""
    return files[rank * len(files) // world_size : (rank + 1) * len(files) // world_size]


def begin(job: Job, output: Path, tasks: int) -> None:
    """Claim an output folder: tasks that are complete in it are not done again.

    Raises:
        DataError: another job has begun there.
    """
    paths = [path for file in job.files for path in local_files(file.spec.path) or ()]
    about = {
        "purpose": job.purpose,
        "specs": [[file.source, asdict(file.spec)] for file in job.files],
        "files": [[str(path), path.stat().st_size, _sample(path)] for path in paths],
        "clean": job.clean.model_dump(mode="json"),
        "decontaminate": job.decontaminate and job.decontaminate.model_dump(mode="json"),
        "fractions": [job.eval_fraction, job.held_out_fraction],
        "tasks": tasks,
    }
    key = sha256_json(about)
    claimed = output / "job.json"
    if claimed.is_file() and read_json(claimed).get("key") != key:
        raise DataError(
            f"{output}: holds what other settings, files or tasks made; name another --output, or delete that folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_json_atomically(claimed, {"key": key})


def _sample(path: Path) -> str:
    """Hash of pieces spread evenly over a file, its beginning and end among them; of all of it where it is small.

    Whole files are too large to be read by every task, and their times change with every copy.
    """
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as stream:
        for piece in range(_PIECES):
            stream.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
            digest.update(stream.read(_PIECE_BYTES))
    return digest.hexdigest()


def account_of(output: Path) -> dict[str, Any]:
    """What became of all rows, over the tasks that are complete; every figure is checked against the others."""
    read = [file for path in sorted(output.glob("account/read-*.json")) for file in read_json(path)["files"]]
    cleaned: Counter[str] = Counter()
    for path in output.glob("account/clean-*.json"):
        cleaned.update(read_json(path)["counts"])
    account = {name: sum(file[name] for file in read) for name in ("rows_read", "kept", "records")}
    for name in ("dropped", "quarantined"):
        counts: Counter[str] = Counter()
        for file in read:
            counts.update(file[name])
        account[name] = dict(counts)
    assert account["rows_read"] == account["kept"] + sum(
        (*account["dropped"].values(), *account["quarantined"].values())
    )
    assert account["records"] == cleaned.total()
    left_out = {reason: rows for reason, rows in cleaned.items() if rows and reason not in ("train", "held_out")}
    return account | {"cleaned": left_out, "train": cleaned["train"], "held_out": cleaned["held_out"]}
