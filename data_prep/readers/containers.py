"""A source's path -> its raw rows, wherever they lie: file, folder, hub data set or bundled sample.

First step from a recipe to records; `formats` turns each raw row into a record. Paths are understood as:

    builtin:NAME              the file NAME.* that comes with the project
    hub:OWNER/NAME[#CONFIG]   a data set on the hub; the prefix may be left out where no local path has that name
    anything else             a local file (its suffix says what it is) or a folder of such files
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.readers.faults import BadRow, OnBad
from data_prep.readers.files import READERS, data_suffix
from data_prep.readers.hub import parse_hub_path, read_hub
from pipeline.errors import DataError

SAMPLES = Path(__file__).parents[1] / "samples"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(#[\w.-]+)?")


class RawRow(NamedTuple):
    """One row as its file has it, and where it was found (`source` and `row` as in `Origin`)."""

    source: str
    row: int
    fields: dict[str, Any]


def read_raw(
    path: str, *, revision: str | None = None, split: str = "train", on_bad: OnBad | None = None
) -> Iterator[RawRow]:
    """The raw rows of a source in their order.

    Args:
        path: as a recipe writes it.
        revision: of a hub data set.
        split: of a hub data set.
        on_bad: takes rows that cannot be read; without it the first of them stops the reading.
    """
    files = local_files(path)
    if files is None:
        return _read_hub(path, revision, split)
    inside_folder = not path.startswith("builtin:") and Path(path).expanduser().is_dir()
    return chain.from_iterable(
        _read_file(f"{path.rstrip('/')}/{file.name}" if inside_folder else path, file, on_bad) for file in files
    )


def local_files(path: str) -> list[Path] | None:
    """The files that a source's path means, or None for a data set on the hub.

    Raises:
        DataError: nothing is there; the message names what comes nearest.
    """
    if path.startswith("builtin:"):
        return [_sample(path.removeprefix("builtin:"))]
    if path.startswith("hub:"):
        if not HUB_ID.fullmatch(path.removeprefix("hub:")):
            raise DataError(f"{path}: not the id of a hub data set; expected hub:owner/name or hub:owner/name#config")
        return None
    local = Path(path).expanduser()
    if local.is_dir():
        return _files_in(path, local)
    if local.is_file():
        return [local]
    if local.exists():
        # A device or a pipe may never come to an end.
        raise DataError(f"{path}: is neither a regular file nor a folder; expected a file of rows")
    if HUB_ID.fullmatch(path) and data_suffix(local) is None and not local.parent.is_dir():
        return None
    prefix = f"; a data set on the hub is written hub:{path}" if HUB_ID.fullmatch(path) else ""
    raise DataError(f"{path}: no such file or folder{_nearest(local)}{prefix}")


def _read_file(source: str, path: Path, on_bad: OnBad | None) -> Iterator[RawRow]:
    suffix = data_suffix(path)
    if suffix is None:
        raise DataError(
            f"{source}: unknown kind of file {path.suffix or '(no suffix)'!r}; known are {', '.join(READERS)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{source}: the file is empty; write rows into it or take the source out of the recipe")
    bad: list[BadRow] = []

    def named(row: BadRow) -> None:
        bad.append(row)
        assert on_bad is not None
        on_bad(replace(row, source=source))

    row = None
    for row, fields in READERS[suffix](path, named if on_bad else None):
        yield RawRow(source, row, fields)
    if row is None and not bad:
        raise DataError(f"{source}: the file holds no rows; write rows into it or take the source out of the recipe")


def _files_in(source: str, folder: Path) -> list[Path]:
    """The data files directly inside a folder, by name; others (README, licence) and hidden ones are passed over.

    Plain text counts only where there is nothing else: it is what readmes and licences are written in.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and data_suffix(p) and not p.name.startswith("."))
    files = [p for p in files if not (data_suffix(p) or "").startswith(".txt")] or files
    if not files:
        inside = sorted({p.parent.relative_to(folder).as_posix() for p in folder.glob("*/*") if data_suffix(p)})
        remedy = f"name one of its subfolders ({', '.join(inside[:5])})" if inside else "put data files into it"
        raise DataError(f"{source}: the folder holds no data file ({', '.join(READERS)}); {remedy}")
    return files


def _read_hub(source: str, revision: str | None, split: str) -> Iterator[RawRow]:
    row = None
    for row, fields in read_hub(parse_hub_path(source, revision, split)):
        yield RawRow(source, row, fields)
    if row is None:
        raise DataError(f"{source}: split {split!r} holds no rows; choose another split")


def _sample(name: str) -> Path:
    samples = {p.name.removesuffix(data_suffix(p) or ""): p for p in sorted(SAMPLES.glob("*")) if data_suffix(p)}
    if name not in samples:
        raise DataError(f"builtin:{name}: no bundled data of this name; there are {', '.join(samples) or 'none'}")
    return samples[name]


def _nearest(path: Path) -> str:
    """Which names that do exist come closest to a path that does not; starts with `; `."""
    parent = path.parent
    if not parent.is_dir():
        return f"; the folder {parent} does not exist either"
    names = [p.name for p in parent.iterdir() if not p.name.startswith(".")]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(str(parent / name) for name in close)}?"
    return f"; the folder {parent} holds {', '.join(sorted(names)[:5]) or 'nothing'}"
