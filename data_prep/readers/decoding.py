"""Bytes of a data file -> lines of text, strictly UTF-8.

First step of reading: `files` parses what comes out of here. Whatever cannot be text is refused in a sentence that
says what the file is instead and which command makes it readable, because "invalid start byte" helps nobody.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from data_prep.readers.faults import BadRow, OnBad, UnreadableRowError, refuse
from pipeline.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
UTF8_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line of text with its 1-based number; the text keeps its line end."""

    number: int
    text: str


def read_lines(path: Path, on_bad: OnBad | None = None) -> Iterator[Line]:
    """The lines of a text file, decompressed where the name ends in .gz, one at a time.

    Lines end at a line feed only: U+2028 and friends are ordinary characters inside JSON strings.

    Args:
        path: of the file.
        on_bad: takes a line that is not UTF-8; without it such a line stops the reading.
    """
    offset = 0
    with _open(path) as stream:
        for number, raw in enumerate(_intact_lines(path, stream), start=1):
            if number == 1:
                _refuse_disguised(path, raw)
                start = len(UTF8_BOM) if raw.startswith(UTF8_BOM) else 0
            else:
                start = 0
            try:
                yield Line(number, raw[start:].decode("utf-8"))
            except UnicodeDecodeError as error:
                column = len(raw[start : start + error.start].decode("utf-8")) + 1
                sentence = _not_utf8(path, raw, number, column, offset, start + error.start)
                refuse(UnreadableRowError(sentence, _bad_bytes(path, raw, number, column, start, sentence)), on_bad)
            offset += len(raw)
    if offset == 0:
        raise DataError(f"{path}: the file is empty; write rows into it or take the source out of the recipe")


def _open(path: Path) -> IO[bytes]:
    try:
        return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path and its permissions") from None


def _intact_lines(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    """Pass lines on; a broken gzip stream becomes a sentence that says how far it could be read."""
    done = 0
    try:
        for raw in stream:
            yield raw
            done += 1
    except EOFError:
        raise DataError(
            f"{path}: the gzip stream is cut off after line {done}; the copy is incomplete, fetch the file again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        what = "is not gzip data, though its name ends in .gz" if done == 0 else f"is damaged after line {done}"
        raise DataError(
            f"{path}: the file {what} ({error}); fetch it again, or rename it if it is not compressed"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: reading failed after line {done} ({error}); check the disk and the path") from None


def _refuse_disguised(path: Path, head: bytes) -> None:
    """Refuse a first line that shows the file to be something else than UTF-8 text."""
    if head.startswith(GZIP_MAGIC):
        raise DataError(f"{path}: the file is gzip-compressed; rename it to {path.name}.gz")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in head[:4]:
        raise DataError(f"{path}: the file is UTF-16, expected UTF-8; convert it: {_iconv(path, _utf16_name(head))}")
    if head.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: the file is a Git LFS pointer, not the data; run `git lfs pull` in its repository")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{path}: the file is a web page, not data; download the raw file")


def _utf16_name(head: bytes) -> str:
    """The name for iconv: plain UTF-16 reads the byte-order mark, without one the order is in the name."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    return "UTF-16BE" if head[:1] == b"\x00" else "UTF-16LE"


def _not_utf8(path: Path, raw: bytes, number: int, column: int, offset: int, start: int) -> str:
    byte = f"byte 0x{raw[start]:02x} at column {column} (offset {offset + start} of the file)"
    found = f"{path}:{number}: {byte} is not valid UTF-8"
    if _looks_gb18030(raw):
        return f"{found}; the file looks like GB18030 (GBK), convert it: {_iconv(path, 'GB18030')}"
    return f"{found}; find out the file's encoding and convert it: {_iconv(path, 'ENCODING')}"


def _bad_bytes(path: Path, raw: bytes, number: int, column: int, start: int, sentence: str) -> BadRow:
    """The line as text, its undecodable bytes as escapes."""
    return BadRow(
        source=str(path),
        row=number,
        column=column,
        reason="not_utf8",
        detail=sentence.removeprefix(f"{path}:{number}: "),
        content=raw[start:].decode("utf-8", errors="backslashreplace").rstrip("\r\n"),
    )


def _looks_gb18030(raw: bytes) -> bool:
    """Whether a line that is not UTF-8 reads as Chinese in GB18030.

    Latin-1 text often decodes as GB18030 too (an accented letter swallows its neighbour), and so does UTF-8 Chinese
    with one broken byte. So the line must be hopeless as UTF-8 and its characters must sit in the common block, where
    both bytes are 0xA1 or above.
    """
    as_utf8 = raw.decode("utf-8", errors="replace")
    beyond_ascii = [char for char in as_utf8 if not char.isascii()]
    if beyond_ascii.count("\ufffd") * 2 < len(beyond_ascii):
        return False
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return False
    codes = [char.encode("gb18030") for char in text if not char.isascii()]
    common = sum(len(code) == 2 and min(code) >= 0xA1 for code in codes)
    return common * 10 >= len(codes) * 7


def _iconv(path: Path, encoding: str) -> str:
    if path.suffix.lower() == ".gz":
        return f"`gunzip -c {path} | iconv -f {encoding} -t UTF-8 | gzip > NEW_{path.name}`"
    return f"`iconv -f {encoding} -t UTF-8 {path} > NEW_{path.name}`"
