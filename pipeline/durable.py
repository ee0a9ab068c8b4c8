"""Files that survive a power cut: written aside, flushed to disk, then renamed into place. Layer 0, stdlib only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import DiskError
from pipeline.faults import reach

T = TypeVar("T")

_PASSING = (errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.EAGAIN)
"""What a disk says that may answer a moment later."""
_PAUSES = (0.2, 1.0)
"""Seconds before the second and the third try."""


def cache_folder() -> Path:
    """Where builtin models and tokenised data are kept: `TRIVET_CACHE`, else `trivet` in the user's cache folder."""
    if chosen := os.environ.get("TRIVET_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trivet"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        DiskError: the disk did not answer, three times.
    """
    return steadily(_digest, path)


def steadily(read: Callable[[Path], T], path: Path) -> T:
    """Read from a disk that may fail to answer for a moment, as those of a network do: three times before giving up.

    What is merely damaged or missing is not tried again: it stays so.

    Raises:
        DiskError: it did not answer; what stands there is neither good nor bad, and must not be taken for either.
    """
    for pause in _PAUSES:
        try:
            return read(path)
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            time.sleep(pause)
    try:
        return read(path)
    except OSError as error:
        if error.errno not in _PASSING:
            raise
        raise DiskError(
            f"{path} could not be read, tried {len(_PAUSES) + 1} times: {error.strerror}; look at the disk or the "
            "network it is on, and run the same command again: everything finished so far is kept"
        ) from error


def file_size(path: Path) -> int:
    """Bytes of a file; a disk that does not answer is as in `sha256_file`."""
    return steadily(_size, path)


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON: keys sorted, no spaces, so that equal values hash equally."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file's or a folder's own entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, whatever happens in between."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with full_disk_named(path.parent, needs=len(text)):
        try:
            reach("file.begun", path.parent)
            with aside.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                reach("file.written", path.parent)
                os.fsync(stream.fileno())
            reach("file.flushed", path.parent)
            os.replace(aside, path)
        except BaseException:
            # A full disk must not stay full of what did not fit on it.
            aside.unlink(missing_ok=True)
            raise
        reach("file.renamed", path.parent)
        fsync_path(path.parent)


def clear_debris(folder: Path) -> None:
    """Remove what a killed process had written aside; only its folder's sole user may call this."""
    for aside in folder.glob(".*.tmp"):
        aside.unlink(missing_ok=True)


def write_json_atomically(path: Path, value: Any) -> None:
    """`write_text_atomically` for a JSON value; NaN is refused, since JSON has none."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file written by `write_json_atomically`; a disk that does not answer is as in `sha256_file`."""
    return json.loads(steadily(_text, path))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def json_lines(path: Path) -> list[str]:
    """The lines of a JSON Lines file, unparsed, blank ones left out.

    Only a line feed ends one: `str.splitlines` also divides at separators that may stand in a text of JSON as they are
    (U+2028, U+0085), and models write them.
    """
    return [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]


@contextmanager
def full_disk_named(folder: Path, needs: int | None = None) -> Iterator[None]:
    """Turn "no space left" (and a quota or a read-only disk) into one sentence with the folder and what is free.

    Args:
        folder: that is written to.
        needs: bytes that will be, where that is known.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if (found := full_disk(error, folder, needs)) is not None:
            raise found from error
        if getattr(error, "errno", None) in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise DiskError(f"cannot write to {folder}: {error}; choose another output_dir") from error
        raise


def full_disk(error: BaseException, folder: Path, needs: int | None = None) -> DiskError | None:
    """The sentence for an error that says in one way or another that a disk is full; None for any other error.

    Libraries wrap the original error (safetensors and torch raise their own types), so the text is searched too.
    """
    text = str(error)
    written_short = "unexpected pos" in text or "PytorchStreamWriter failed" in text
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if not (full or "No space left" in text or written_short):
        return None
    return _no_room(folder, free_bytes(folder), needs)


def require_room(folder: Path, needs: int) -> None:
    """Refuse to begin to write what the disk cannot take.

    Args:
        folder: that will be written to; it need not exist yet.
        needs: bytes that will certainly be written.

    Raises:
        DiskError: in the words of a disk that has become full.
    """
    if (free := free_bytes(folder)) < needs:
        raise _no_room(folder, free, needs)


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def size_told(size: int) -> str:
    """A number of bytes as a person reads it."""
    if size < 1_000:
        return f"{size} bytes"
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:,.1f} kB"


def _no_room(folder: Path, free: int, needs: int | None) -> DiskError:
    wanted = "" if needs is None else f", {size_told(needs)} needed"
    return DiskError(
        f"disk full while writing to {folder} ({free / 1e6:,.1f} MB free{wanted}); free some space, or point "
        "output_dir to another disk, and run the same command again: everything finished so far is kept"
    )


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
