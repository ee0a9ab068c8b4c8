"""`trivet compare RUN [RUN ...]`: finished or half-finished runs side by side, from their folders alone. Layer 5."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipeline.durable import write_text_atomically
from pipeline.errors import DiskError, RecipeError


def register(commands: Any) -> None:
    """Add `compare` to the subcommands of `trivet`."""
    compare = commands.add_parser("compare", help="runs side by side: recipes, policies, and who is ahead at equal KL")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, such as runs/alpaca-dpo")
    compare.add_argument("--html", metavar="FILE", help="write one self-contained page")
    compare.add_argument("--csv", metavar="FILE", help="write the policies as a table")
    compare.add_argument("--votes", metavar="FILE", help="people's votes on the runs' answers, JSON lines")
    compare.add_argument("--json", action="store_true", help="print everything as JSON instead")
    compare.set_defaults(action=_compare)


def _compare(options: argparse.Namespace) -> int:
    from evaluation.comparison import compare_runs
    from evaluation.comparison.exports import as_csv, as_json
    from evaluation.comparison.page import comparison_page
    from evaluation.comparison.terminal import print_comparison

    found = compare_runs([Path(run) for run in options.runs], Path(options.votes) if options.votes else None)
    if options.html:
        _write("--html", options.html, comparison_page(found))
    if options.csv:
        _write("--csv", options.csv, as_csv(found))
    if options.json:
        print(json.dumps(as_json(found), indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    print_comparison(found)
    for path in (options.html, options.csv):
        if path:
            print(f"wrote {path}")
    return 0


def _write(flag: str, path: str, text: str) -> None:
    if not Path(path).absolute().parent.is_dir():
        raise RecipeError(f"{flag} {path}: there is no folder {Path(path).parent}; make it, or name another place")
    try:
        write_text_atomically(Path(path), text)
    except OSError as error:
        raise DiskError(f"{flag} {path}: cannot be written: {error.strerror}") from error
