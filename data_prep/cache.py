"""Tokenised data sets kept from run to run, under a key of everything that their content depends on.

The key is made of content: the sources' bytes, the settings, the tokenizer, the chat template's text, this package's
own source code and the versions of the libraries that it calls. Whatever changes is noticed, and an entry under an old
key is simply never asked for again. Small data sets are not kept: reading them takes no longer than looking.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_prep.chat import EncodedDemonstration, EncodedPair
from data_prep.cleaning.contamination import evaluation_fingerprints
from data_prep.cleaning.dropped import Dropped, Finding
from data_prep.data_sets import other_set
from data_prep.fingerprint import source_fingerprint
from data_prep.readers.containers import local_files
from data_prep.readers.faults import BadRow
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt, Record, ToolCall
from data_prep.split import shares_of
from pipeline.durable import cache_folder, sha256_json
from pipeline.faults import reach
from pipeline.recipe.schema import DataSetSettings, DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORTH_BYTES = 4_000_000
"""Local files of a data set that together are smaller are read anew every time."""
_KEPT = 8
_ABANDONED_SECONDS = 24 * 3600.0
_LIBRARIES = (
    "transformers", "tokenizers", "jinja2", "ftfy", "rensa", "py3langid", "glin-profanity", "phonenumberslite",
    "python-stdnum", "detect-secrets",
)  # fmt: skip
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Demonstration, PreferencePair, Prompt)}
_ROWS: dict[str, type[Any]] = {kind.__name__: kind for kind in (EncodedDemonstration, EncodedPair)}


class Part(NamedTuple):
    """Records with their tokens, and what was dropped on the way."""

    records: list[Any]
    rows: list[Any]
    dropped: list[Dropped]


class Kept(NamedTuple):
    """A data set as a stage uses it."""

    train: Part
    held_out: Part
    report: dict[str, Any]
    quarantined: list[BadRow]
    """Rows that were set aside in reading."""


def kept_or_made(
    name: str,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    part: str | None,
    make: Callable[[], Kept],
) -> Kept:
    """The data set from the cache, or made and put there.

    Args:
        name: `sft` or `preference`.
        data: of the recipe.
        tokenizer: with its chat template set.
        seed: of the recipe.
        part: the entry of `data.split` whose prompts may train, None for all.
        make: reads, cleans and tokenises.
    """
    reach("data.begun")
    settings: DataSetSettings = getattr(data, name)
    if not _is_worth_keeping(settings):
        found = make()
        reach("data.made")
        return found
    path = cache_folder() / "data" / f"{name}-{_key(name, settings, data, tokenizer, seed, part)[:40]}.arrow"
    kept = _read(path)
    found = make() if kept is None else kept
    if kept is None:
        _write(path, found)
    reach("data.made")
    return found


def _is_worth_keeping(settings: DataSetSettings) -> bool:
    if settings.clean.harm is not None or os.environ.get("TRIVET_DATA_CACHE") == "0":
        return False
    found = [local_files(source.path) for source in settings.sources]
    return (
        any(files is None for files in found)
        or sum(path.stat().st_size for files in found if files for path in files) >= WORTH_BYTES
    )


def _key(
    name: str,
    settings: DataSetSettings,
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    part: str | None,
) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = str(tokenizer.chat_template)
    decontaminate = data.decontaminate
    share = None if part is None else shares_of(data.split)[part]
    other = other_set(name, data)
    return sha256_json(
        {
            "name": name,
            # Paths count, since records name their source.
            "settings": settings.model_dump(mode="json"),
            "content": _content(settings),
            "other_set": other and [other.model_dump(mode="json"), _content(other)],
            "held_out": [part.eval_fraction for part in (data.sft, data.preference) if part is not None],
            "decontaminate": decontaminate and [decontaminate.ngram, evaluation_fingerprints(decontaminate)],
            "seed": seed,
            "share": share and [share.low, share.high],
            "tokenizer": backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
            "tokens": [
                type(tokenizer).__name__,
                {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
            ],
            "template": template,
            # Some templates write the day's date.
            "today": date.today().isoformat() if "strftime" in template else None,
            "code": _code(),
            "libraries": {library: importlib.metadata.version(library) for library in _LIBRARIES},
        }
    )


def _content(settings: DataSetSettings) -> list[str]:
    return [source_fingerprint(source) for source in settings.sources]


@cache
def _code() -> str:
    """Hash of this package's source files: rows that other code made are not taken for what this code makes."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _write(path: Path, found: Kept) -> None:
    """Write an entry whole or not at all, and remove the oldest beyond a few. A full disk costs time, not the run."""
    import pyarrow

    rows = [*found.train.rows, *found.held_out.rows]
    records = [*found.train.records, *found.held_out.records]
    if not rows:
        return
    columns: dict[str, Any] = {
        "record": pyarrow.array([json.dumps(_plain(record), ensure_ascii=False) for record in records]),
        "is_train": pyarrow.array([True] * len(found.train.rows) + [False] * len(found.held_out.rows)),
    }
    for field in fields(rows[0]):
        kind = {"response_mask": pyarrow.list_(pyarrow.bool_()), "prompt_cut": pyarrow.bool_()}.get(
            field.name, pyarrow.list_(pyarrow.int32())
        )
        columns[field.name] = pyarrow.array([getattr(row, field.name) for row in rows], type=kind)
    dropped = [[_dropped(each) for each in part.dropped] for part in (found.train, found.held_out)]
    aside_rows = [asdict(bad) for bad in found.quarantined]
    about = {"kind": type(rows[0]).__name__, "report": found.report, "dropped": dropped, "quarantined": aside_rows}
    text = json.dumps(about, ensure_ascii=False, default=str)
    table = pyarrow.table(columns).replace_schema_metadata({"about": text})
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pyarrow.OSFile(str(aside), "wb") as stream, pyarrow.ipc.new_file(stream, table.schema) as writer:
            writer.write_table(table)
        os.replace(aside, path)
        for old in sorted(path.parent.glob("*.arrow"), key=lambda entry: -entry.stat().st_mtime)[_KEPT:]:
            old.unlink(missing_ok=True)
        for left in path.parent.glob(".*.tmp"):
            # Of a process that was killed while it wrote; what is younger may be being written.
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink(missing_ok=True)
    except OSError:
        aside.unlink(missing_ok=True)


def _read(path: Path) -> Kept | None:
    import pyarrow

    if not path.is_file():
        return None
    try:
        with pyarrow.memory_map(str(path)) as stream:
            table = pyarrow.ipc.open_file(stream).read_all().combine_chunks()
            about = json.loads(table.schema.metadata[b"about"])
            kind = _ROWS[about["kind"]]
            values = [_column(table.column(field.name)) for field in fields(kind)]
            rows = [kind(*row) for row in zip(*values, strict=True)]
            records = [_record(json.loads(text)) for text in table.column("record").to_pylist()]
            train = sum(table.column("is_train").to_pylist())
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None  # damaged, or of a form that is no longer written: it is made anew
    dropped = [[Dropped(_record(row), Finding(*why)) for row, why in part] for part in about["dropped"]]
    return Kept(
        Part(records[:train], rows[:train], dropped[0]),
        Part(records[train:], rows[train:], dropped[1]),
        about["report"],
        [BadRow(**bad) for bad in about["quarantined"]],
    )


def _column(column: Any) -> list[Any]:
    """A column's values; lists are cut out of one long list, which is many times faster than `to_pylist`."""
    import pyarrow

    array = column.chunk(0)
    if not pyarrow.types.is_list(array.type):
        return list(array.to_pylist())
    flat = array.values.to_numpy(zero_copy_only=False).tolist()
    ends = array.offsets.to_numpy().tolist()
    return [flat[start:end] for start, end in pairwise(ends)]


def _plain(record: Record) -> dict[str, Any]:
    return {"kind": type(record).__name__, **asdict(record)}


def _record(plain: dict[str, Any]) -> Any:
    kind = _KINDS[plain.pop("kind")]
    plain["origin"] = Origin(**plain["origin"])
    turns = "prompt" if kind is PreferencePair else "messages"
    plain[turns] = tuple(_message(turn) for turn in plain[turns])
    if kind is PreferencePair:
        plain |= {side: _calls(plain[side]) for side in ("chosen_calls", "rejected_calls")}
    return kind(**plain)


def _message(plain: dict[str, Any]) -> Message:
    return Message(**plain | {"tool_calls": _calls(plain["tool_calls"]), "tools": tuple(plain["tools"])})


def _calls(plain: Sequence[dict[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(**call) for call in plain)


def _dropped(each: Dropped) -> tuple[dict[str, Any], list[Any]]:
    return _plain(each.record), [each.finding.rule, each.finding.score, each.finding.detail]
