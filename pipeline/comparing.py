"""`trivet compare RUN [RUN ...]`: finished or half-finished runs side by side, from their folders alone. Layer 5."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.durable import write_text_atomically
from pipeline.errors import DiskError, RecipeError

if TYPE_CHECKING:
    from evaluation.comparison import Comparison


def register(commands: Any) -> None:
    """Add `compare` to the subcommands of `trivet`."""
    compare = commands.add_parser("compare", help="runs side by side: recipes, policies, and who is ahead at equal KL")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, such as runs/alpaca-dpo")
    add_files(compare)
    compare.add_argument("--votes", metavar="FILE", help="people's votes on the runs' answers, JSON lines")
    compare.add_argument("--json", action="store_true", help="print everything as JSON instead")
    compare.set_defaults(action=_compare)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Add the files that a comparison can be written to."""
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page")
    parser.add_argument("--csv", metavar="FILE", help="write the policies as a table")


def require_places(options: argparse.Namespace) -> None:
    """Refuse files that could not be written, before anything is done for their sake.

    Raises:
        RecipeError: there is no such folder; names the option.
    """
    for flag, path in (("--html", options.html), ("--csv", options.csv)):
        if path and not Path(path).absolute().parent.is_dir():
            raise RecipeError(f"{flag} {path}: there is no folder {Path(path).parent}; make it, or name another place")


def show(found: Comparison, options: argparse.Namespace) -> None:
    """Print a comparison, and write the files that were asked for."""
    from evaluation.comparison.terminal import print_comparison

    _write_files(found, options)
    print_comparison(found)
    for path in (options.html, options.csv):
        if path:
            print(f"wrote {path}")


def _compare(options: argparse.Namespace) -> int:
    from evaluation.comparison import compare_runs
    from evaluation.comparison.exports import as_json

    found = compare_runs([Path(run) for run in options.runs], Path(options.votes) if options.votes else None)
    require_places(options)
    if not options.json:
        show(found, options)
        return 0
    _write_files(found, options)
    print(json.dumps(as_json(found), indent=2, ensure_ascii=False, allow_nan=False))
    return 0


def _write_files(found: Comparison, options: argparse.Namespace) -> None:
    from evaluation.comparison.exports import as_csv
    from evaluation.comparison.page import comparison_page

    if options.html:
        _write("--html", options.html, comparison_page(found))
    if options.csv:
        _write("--csv", options.csv, as_csv(found))


def _write(flag: str, path: str, text: str) -> None:
    try:
        write_text_atomically(Path(path), text)
    except OSError as error:
        raise DiskError(f"{flag} {path}: cannot be written: {error.strerror}") from error
