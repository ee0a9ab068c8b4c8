"""`trivet data inspect` and `trivet data report`: what a stage would train on, looked at before it does.

Light until there is work to do; needs the base model's tokenizer, never its weights. Layer 5.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.durable import write_text_atomically
from pipeline.errors import DiskError, RecipeError

if TYPE_CHECKING:
    from pipeline.recipe import LoadedRecipe

_ROWS, _ROWS_ON_PAGE = 3, 20


def register(commands: Any) -> None:
    """Add `inspect` and `report` to the subcommands of `trivet data`."""
    inspect = commands.add_parser("inspect", help="show rows token by token as a stage's trainer gets them")
    _add_common(inspect)
    inspect.add_argument("--row", type=int, default=1, metavar="N", help="first row to show (from 1)")
    inspect.add_argument(
        "--rows", type=int, metavar="K", help=f"how many rows (default: {_ROWS}, on a page {_ROWS_ON_PAGE})"
    )
    inspect.add_argument("--ids", action="store_true", help="write each token's id behind it")
    inspect.set_defaults(action=_inspect)
    report = commands.add_parser("report", help="lengths, languages, drops, padding of what the stages train on")
    _add_common(report)
    report.set_defaults(action=_report)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, such as recipes/alpaca_dpo.yaml")
    parser.add_argument(
        "--stage", metavar="STAGE", help="which stage of the recipe (default: inspect the first, report all)"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="change a key, such as data.sft.max_length=256; VALUE is YAML (repeatable)",
    )  # fmt: skip
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page instead")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")


def _inspect(options: argparse.Namespace) -> int:
    from evaluation.inspection.page import inspection_page
    from evaluation.inspection.stage_rows import require_stage
    from evaluation.inspection.terminal import print_inspection
    from evaluation.inspection.view import as_json, inspect

    count = options.rows if options.rows is not None else _ROWS_ON_PAGE if options.html else _ROWS
    if count < 1:
        raise RecipeError(f"--rows {count}: expected at least 1")
    loaded = _loaded(options)
    stage = require_stage(loaded.recipe, options.stage or next(iter(loaded.recipe.stages)))
    found = inspect(loaded.recipe, stage, options.row, count)
    if options.json:
        print(json.dumps(as_json(found), indent=2, ensure_ascii=False))
    elif options.html:
        _write(options.html, inspection_page(found))
        print(f"wrote {options.html}: {len(found.rows)} of {found.total} rows of stage {stage}")
    else:
        print_inspection(found, ids=options.ids)
    return 0


def _report(options: argparse.Namespace) -> int:
    from evaluation.inspection.page import report_page
    from evaluation.inspection.report import data_reports
    from evaluation.inspection.report_terminal import print_reports

    loaded = _loaded(options)
    found = data_reports(loaded.recipe, options.stage)
    if options.json:
        print(
            json.dumps({report.stage: {report.data: report.report} for report in found}, indent=2, ensure_ascii=False)
        )
    elif options.html:
        _write(options.html, report_page(loaded.recipe, found))
        print(f"wrote {options.html}")
    else:
        print_reports(found)
    return 0


def _loaded(options: argparse.Namespace) -> LoadedRecipe:
    from pipeline.recipe import load_recipe

    if options.json and options.html:
        raise RecipeError("--json and --html: one of the two at a time")
    _quiet()
    return load_recipe(Path(options.recipe), options.overrides)


def _quiet() -> None:
    """What is printed is the answer alone: no library's progress bars or advice."""
    import logging
    import os

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _write(path: str, page: str) -> None:
    try:
        write_text_atomically(Path(path), page)
    except OSError as error:
        raise DiskError(f"--html {path}: cannot be written: {error.strerror}") from error
