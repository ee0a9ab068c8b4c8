"""Tolerant reading of a run directory, which may be half written: nothing here raises over a file's content.

What cannot be read comes back empty together with a sentence that says so. Values of the wrong type count as not
measured: a report of what there is beats no report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path, gaps: list[str], shown: str) -> Mapping[str, Any]:
    """The object in `path`; empty, with a note in `gaps` that calls the file `shown`, when there is none to read."""
    text = _read_text(path, gaps, shown)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        gaps.append(f"{shown} is not complete JSON")
        return {}
    if not isinstance(value, dict):
        gaps.append(f"{shown} does not hold an object")
        return {}
    return value


def read_jsonl(path: Path, gaps: list[str], shown: str) -> list[Mapping[str, Any]]:
    """The objects in `path`, one per line. A torn last line is a run still writing; torn lines before it are noted."""
    text = _read_text(path, gaps, shown)
    rows: list[Mapping[str, Any]] = []
    if text is None:
        return rows
    lines = text.split("\n")
    unreadable = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            unreadable += number < len(lines)
            continue
        if isinstance(value, dict):
            rows.append(value)
        else:
            unreadable += 1
    if unreadable:
        gaps.append(f"{shown}: {unreadable} unreadable {'line' if unreadable == 1 else 'lines'} left out")
    return rows


def read_text(path: Path, gaps: list[str], shown: str) -> str:
    """The text of `path`, or nothing with a note."""
    return _read_text(path, gaps, shown) or ""


def _read_text(path: Path, gaps: list[str], shown: str) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        gaps.append(f"{shown} is not there")
    except OSError as error:
        gaps.append(f"{shown} cannot be read: {error.strerror}")
    except ValueError:  # a path that no file system can hold
        gaps.append(f"{shown} is not the name of a file")
    return None


def number(value: object) -> float | None:
    """A finite number, or None for anything else (booleans, text, NaN, null)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return None
    return float(value) if finite else None


def whole(value: object) -> int | None:
    """A whole number, or None."""
    known = number(value)
    return None if known is None or known != int(known) else int(known)


def text(value: object) -> str:
    """`value` as text; empty for null."""
    return "" if value is None else str(value)


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list; empty for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts(value: object) -> list[str]:
    """The texts of a list; empty for anything else."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def bounds(value: object) -> tuple[float, float] | None:
    """An interval `[low, high]`, or None."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)
