"""One data file -> its rows, in file order: JSON, JSON Lines, CSV, TSV, plain text, Parquet; gzipped too where text.

Between `decoding` (bytes to text) and `containers` (which files make up a source). All but JSON arrays stream; those
are read whole. A file that breaks the rules of its own container stops the run at the line that does. Where only one
row is broken and the next can be found, `on_bad` takes it instead, if there is one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.readers.decoding import Line, read_lines
from data_prep.readers.faults import BadRow, OnBad, UnreadableRowError, refuse
from pipeline.errors import DataError

Row = tuple[int, dict[str, Any]]
"""Row number as `Origin.row` counts it, and the row as it stands in the file."""


def read_json_lines(path: Path, on_bad: OnBad | None = None) -> Iterator[Row]:
    """Rows of a JSON Lines file, numbered by line; blank lines are skipped."""
    yield from _parse_json_lines(path, read_lines(path, on_bad), on_bad)


def _parse_json_lines(path: Path, lines: Iterable[Line], on_bad: OnBad | None) -> Iterator[Row]:
    for number, line in lines:
        # Byte-order marks begin a line where several files were put together.
        text = line.removeprefix("\ufeff").rstrip("\r\n")
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            sentence = f"{path}:{number}: not valid JSON ({_explain(error)}); {_json_lines_remedy(number, text)}"
            column = error.colno if isinstance(error, json.JSONDecodeError) else None
            bad = _bad(path, number, "broken_json", f"not valid JSON ({_explain(error)})", text, column)
            refuse(UnreadableRowError(sentence, bad), on_bad)
            continue
        if isinstance(value, dict):
            yield number, value
            continue
        sentence = (
            f"{path}:{number}: expected a JSON object, found {describe(value)}; {_json_lines_remedy(number, text)}"
        )
        refuse(UnreadableRowError(sentence, _not_an_object(path, number, value)), on_bad)


def _bad(path: Path, row: int, reason: str, detail: str, content: Any, column: int | None = None) -> BadRow:
    return BadRow(source=str(path), row=row, column=column, reason=reason, detail=detail, content=content)


def _not_an_object(path: Path, row: int, value: object) -> BadRow:
    return _bad(path, row, "not_an_object", f"expected a JSON object, found {describe(value)}", value)


def _json_lines_remedy(number: int, text: str) -> str:
    if number == 1 and text.lstrip().startswith("["):
        return "the file holds a JSON array, so let its name end in .json"
    if number == 1 and text.strip() == "{":
        return "every line must hold one whole object; if the file is one JSON document, let its name end in .json"
    return "every line must hold one whole object; correct or delete this line"


def read_json(path: Path, on_bad: OnBad | None = None) -> Iterator[Row]:
    """Rows of a JSON document: an array of objects, or an object with a single list. Numbered by element.

    JSON Lines published under the name .json are common, so several documents in one file are read as such.
    """
    text = "".join(line.text for line in read_lines(path))
    if not text.strip():
        raise DataError(f"{path}: the file holds nothing but white space; expected a JSON array of objects")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            # Split at line feeds alone, as `read_lines` does.
            lines = (Line(n, line) for n, line in enumerate(text.split("\n"), start=1))
            yield from _parse_json_lines(path, lines, on_bad)
            return
        raise DataError(_broken_document(path, text, error)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({_explain(error)}); correct the file") from None
    for number, value in enumerate(_only_list(path, document), start=1):
        if isinstance(value, dict):
            yield number, value
            continue
        sentence = (
            f"{path}: row {number}: expected a JSON object, found {describe(value)}; correct or delete this element"
        )
        refuse(UnreadableRowError(sentence, _not_an_object(path, number, value)), on_bad)


def _broken_document(path: Path, text: str, error: json.JSONDecodeError) -> str:
    cut_off = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
    remedy = "the file ends too early, fetch it again or close it properly" if cut_off else "correct the file there"
    return f"{path}:{error.lineno}: not valid JSON at line {error.lineno} column {error.colno} ({error.msg}); {remedy}"


def _only_list(path: Path, document: object) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        lists = [key for key, value in document.items() if isinstance(value, list)]
        if len(lists) == 1:
            return list(document[lists[0]])
        count = f"{len(lists)} lists ({', '.join(lists)})" if lists else "no list"
        found = f"an object with {count}"
    else:
        found = describe(document)
    raise DataError(f"{path}: expected a JSON array of objects or an object with a single list, found {found}")


def read_csv(path: Path, on_bad: OnBad | None = None) -> Iterator[Row]:
    """Rows of a CSV or TSV file with a header line, numbered by the line on which the row begins.

    A line that is not text stops the reading always: it may hold the quote that ends a cell.
    """
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    csv.field_size_limit(2**31 - 1)  # the default of 128 kB is shorter than a long answer
    reader = csv.reader((line.text for line in read_lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begins = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}:{begins}: the row that begins here is not valid CSV ({error}); look for a quote that is not "
                "closed or not doubled"
            ) from None
        if cells is None:
            return
        if header is None:
            header = _check_header(path, cells, delimiter)
        elif cells and len(cells) != len(header):
            found = f"the row has {len(cells)} cells, expected {len(header)} ({', '.join(header)})"
            sentence = f"{path}:{begins}: {found}; quote cells that hold the delimiter or a line break"
            refuse(UnreadableRowError(sentence, _bad(path, begins, "wrong_cell_count", found, cells)), on_bad)
        elif cells:
            yield begins, dict(zip(header, cells, strict=True))
        begins = reader.line_num + 1


def _check_header(path: Path, cells: list[str], delimiter: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if not all(header) or len(set(header)) < len(header):
        raise DataError(f"{path}:1: the header line must name every column once, found {cells}; correct the first line")
    other = [name for name, char in (("a semicolon", ";"), ("a tab", "\t"), ("a comma", ",")) if char in header[0]]
    if len(header) == 1 and other:
        expected = "a comma" if delimiter == "," else "a tab"
        raise DataError(
            f"{path}:1: the columns seem to be separated by {other[0]}, expected {expected}; save the file as "
            "comma-separated .csv or tab-separated .tsv"
        )
    return header


def read_text(path: Path, on_bad: OnBad | None = None) -> Iterator[Row]:
    """The lines of a plain text file as rows of one field, `text`; blank lines are skipped."""
    for number, line in read_lines(path, on_bad):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def read_parquet(path: Path, on_bad: OnBad | None = None) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1. It is whole or it is not: `on_bad` has nothing to take."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: not readable as Parquet after row {number} ({reason[:200]}); the copy may be incomplete, "
            "fetch the file again"
        ) from None


READERS: dict[str, Callable[[Path, OnBad | None], Iterator[Row]]] = {
    ".json": read_json,
    ".json.gz": read_json,
    ".jsonl": read_json_lines,
    ".jsonl.gz": read_json_lines,
    ".ndjson": read_json_lines,
    ".ndjson.gz": read_json_lines,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".tsv": read_csv,
    ".tsv.gz": read_csv,
    ".txt": read_text,
    ".txt.gz": read_text,
    ".parquet": read_parquet,
}


def data_suffix(path: Path) -> str | None:
    """The known suffix that a file's name ends in, `.gz` included, or None."""
    name = path.name.lower()
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def describe(value: object) -> str:
    """What a parsed JSON value is, in words for an error message."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def _explain(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
