"""Any readable source -> one file in TRL's standard conversational formats: what `trivet data convert` does.

Demonstrations become {messages}, pairs {prompt, chosen, rejected} as lists of turns, prompts {prompt}, plain text
{text}; functions on offer stand in `tools`. What the row says about itself (split, family, check, margin, ...) is kept
under the names that the readers know, so that reading the result gives the same records.

Rows are written as they are read: memory holds a few thousand of them (a JSON array is read whole, and so are answers
that wait for their counterpart). The file appears under its name when it is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.readers import BadRow, Reading, SourceSpec
from data_prep.readers.formats import Purpose
from data_prep.readers.make import Made
from data_prep.records import Demonstration, Message, PreferencePair
from pipeline.errors import DataError, DiskError

SUFFIXES = (".jsonl", ".parquet")
ROWS_AT_ONCE = 1000
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What became of one source."""

    path: str
    format: str
    why: str
    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    quarantined: list[BadRow]
    written: int
    """Records, which may be more than rows (ranked answers) or fewer (a limit)."""


def choose_purpose(spec: SourceSpec) -> Purpose:
    """What a source is best converted to: pairs where its rows hold them, else demonstrations, else prompts.

    Rows with a label make few pairs or none, so that they give demonstrations: the good answers.

    Raises:
        DataError: it serves for none; the message is about demonstrations, the most common kind.
    """
    tries: tuple[Purpose, ...] = ("pairs", "demonstrations", "prompts")
    for purpose in tries:
        reading = Reading(spec, purpose)
        try:
            found = next(iter(reading), None)
        except DataError:
            continue
        labelled = purpose == "pairs" and reading.form is not None and reading.form.format.name == "kto"
        if found is not None and not labelled:
            return purpose
    next(iter(Reading(spec, "demonstrations")), None)
    return "demonstrations"


def check_output(output: Path) -> None:
    """Refuse an output before anything is read.

    Raises:
        DataError: its name ends in none of `SUFFIXES`.
        DiskError: its folder does not exist.
    """
    if output.suffix not in SUFFIXES:
        raise DataError(f"{output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    check_folder(output)


def check_folder(path: Path) -> None:
    """Refuse a file that is to be written into a folder that does not exist.

    Raises:
        DiskError: saying so.
    """
    if not path.parent.is_dir():
        raise DiskError(f"{path}: cannot be written (there is no folder {path.parent}); make it or name another")


def convert(specs: list[SourceSpec], output: Path, *, purpose: Purpose, limit: int | None = None) -> list[Converted]:
    """Write the records of all sources into one file; with a limit, the first so many of each.

    Args:
        specs: the sources.
        output: a .jsonl or .parquet file; replaced where it exists.
        purpose: which records to make of them.
        limit: most records of each source.

    Raises:
        DataError: a source cannot be read, or some hold plain text and others conversations; nothing is left under
            the output's name.
        DiskError: the output cannot be written.
    """
    check_output(output)
    done: list[Converted] = []
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    write = _write_parquet if output.suffix == ".parquet" else _write_lines
    try:
        write(part, _of_one_kind(row for spec in specs for row in _rows(spec, purpose, limit, output.suffix, done)))
        part.replace(output)
    except OSError as error:
        raise DiskError(f"{output}: cannot be written ({error.strerror or error}); name another --output") from None
    finally:
        part.unlink(missing_ok=True)
    return done


def _rows(
    spec: SourceSpec, purpose: Purpose, limit: int | None, suffix: str, done: list[Converted]
) -> Iterator[Fields]:
    reading = Reading(spec, purpose)
    written = 0
    for record in islice(reading, limit):
        written += 1
        yield fields_of(record, arguments_as_text=suffix == ".parquet")
    assert reading.form is not None
    done.append(
        Converted(
            path=spec.path,
            format=reading.form.format.name,
            why=reading.form.why,
            rows_read=reading.rows_read,
            rows_kept=reading.rows_kept,
            dropped=dict(reading.dropped),
            quarantined=reading.quarantined,
            written=written,
        )
    )


def _of_one_kind(rows: Iterator[Fields]) -> Iterator[Fields]:
    """Pass rows on; a file of plain text and conversations would be no format, and a table has no place for both."""
    first: bool | None = None
    for row in rows:
        is_text = "text" in row
        if first is not None and is_text != first:
            raise DataError("some rows are plain text and others conversations; convert them into a file each")
        first = is_text
        yield row


def fields_of(record: Made, *, arguments_as_text: bool = False) -> Fields:
    """A record as a row of TRL's formats; reading that row gives the record again, but for its origin.

    Args:
        record: of any kind.
        arguments_as_text: write arguments of calls as JSON text, since a table would give every call all fields.
    """

    def turns(messages: tuple[Message, ...]) -> list[Fields]:
        return [_turn(message, arguments_as_text) for message in messages]

    origin = {"split": record.origin.split, "family": record.origin.family}
    if isinstance(record, Demonstration) and record.is_text:
        row: Fields = {"text": record.messages[0].content}
    elif isinstance(record, Demonstration):
        row = {"messages": turns(record.messages), "tools": _tools(record.messages)}
    elif isinstance(record, PreferencePair):
        row = {
            "prompt": turns(record.prompt),
            "chosen": turns((record.chosen_turn,)),
            "rejected": turns((record.rejected_turn,)),
            "tools": _tools(record.prompt),
            "margin": record.margin,
            "fault": record.fault,
            "label_noise": record.label_noise,
            "group": record.group,
        }
    else:
        check = None if record.check is None else json.dumps(record.check, ensure_ascii=False)
        row = {"prompt": turns(record.messages), "tools": _tools(record.messages)}
        row |= {"check": check, "reference": record.reference}
    return {name: value for name, value in (row | origin).items() if value is not None}


def _turn(message: Message, arguments_as_text: bool) -> Fields:
    turn: Fields = {"role": message.role, "content": message.content}
    if message.tool_calls:
        read: Callable[[str], Any] = str if arguments_as_text else json.loads
        turn["tool_calls"] = [
            ({"id": call.id} if call.id else {})
            | {"type": "function", "function": {"name": call.name, "arguments": read(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    return turn


def _tools(messages: tuple[Message, ...]) -> str | None:
    """JSON text, which TRL takes as well as a list and which no table can mix up."""
    tools = [json.loads(tool) for tool in messages[0].tools]
    return json.dumps(tools, ensure_ascii=False) if tools else None


def _write_lines(path: Path, rows: Iterator[Fields]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, rows: Iterator[Fields]) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = _schema(pyarrow)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path.name}: there is no record to write")
    kinds = [name for name in schema.names if name in _columns(first)]
    schema = pyarrow.schema([schema.field(name) for name in kinds])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        batch: list[Fields] = [first]
        while batch:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
            batch = list(islice(rows, ROWS_AT_ONCE))


def _columns(row: Fields) -> set[str]:
    """The columns of the table that a row belongs into: its own, and those that other rows of its kind may have."""
    always = {"split", "family"}
    if "text" in row:
        return {*always, "text"}
    if "messages" in row:
        return {*always, "messages", "tools"}
    pair = {"chosen", "rejected", "margin", "fault", "label_noise", "group"} if "chosen" in row else set()
    return {*always, "prompt", "tools", *(pair or {"check", "reference"})}


def _schema(pyarrow: Any) -> Any:
    text = pyarrow.string()
    function = pyarrow.struct([("name", text), ("arguments", text)])
    call = pyarrow.struct([("id", text), ("type", text), ("function", function)])
    turn = [("role", text), ("content", text), ("tool_calls", pyarrow.list_(call)), ("tool_call_id", text)]
    turns = pyarrow.list_(pyarrow.struct(turn))
    columns = dict.fromkeys(("messages", "prompt", "chosen", "rejected"), turns)
    columns |= dict.fromkeys(("text", "tools", "split", "family", "fault", "group", "check", "reference"), text)
    columns |= dict.fromkeys(("margin", "label_noise"), pyarrow.float64())
    return pyarrow.schema(list(columns.items()))
