"""`trivet data convert`: rows of any readable file as TRL's standard conversational formats. Layer 5.

`register` adds the command; what it does is in `data_prep.convert`, which is imported when it is called.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline.errors import RecipeError
from pipeline.recipe.schema import DataFormat

if TYPE_CHECKING:
    from data_prep.convert import Converted


def register(commands: Any) -> None:
    """Add `convert` to the subcommands of `trivet data`."""
    parser = commands.add_parser("convert", help="write any readable data as TRL's standard formats")
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder, hub id or builtin: name")
    parser.add_argument("--output", required=True, metavar="OUT", help="a .jsonl or .parquet file; replaced if there")
    parser.add_argument(
        "--format", default="auto", metavar="NAME", help=f"how rows are written: {', '.join(get_args(DataFormat))}"
    )
    parser.add_argument(
        "--as", dest="purpose", choices=("demonstrations", "pairs", "prompts"),
        help="what to make of the rows (default: pairs where there are any, else demonstrations, else prompts)",
    )  # fmt: skip
    parser.add_argument(
        "--map", dest="fields", metavar="FIELD=THEIRS", action="append", default=[],
        help="a field of another name, such as prompt=question or chosen=answers.best (repeatable)",
    )  # fmt: skip
    parser.add_argument("--limit", type=_positive, metavar="N", help="the first N records of each FILE")
    parser.add_argument(
        "--quarantine", metavar="OUT", help="set faulty rows aside in this .jsonl file instead of stopping at them"
    )
    parser.add_argument("--json", action="store_true", help="print the account as JSON")
    parser.set_defaults(action=_convert)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def _convert(options: argparse.Namespace) -> int:
    from data_prep.convert import check_folder, check_output, choose_purpose, convert
    from data_prep.readers import SourceSpec, write_quarantine

    fields = dict(_field(text) for text in options.fields)
    policy = "quarantine" if options.quarantine else "fail"
    specs = [
        SourceSpec(path=path, format=options.format, map=fields, on_bad_row=policy)  # type: ignore[arg-type]
        for path in options.files
    ]
    check_output(Path(options.output))
    if options.quarantine:
        check_folder(Path(options.quarantine))
    purpose = options.purpose or choose_purpose(specs[0])
    done = convert(specs, Path(options.output), purpose=purpose, limit=options.limit)
    if options.quarantine:
        write_quarantine(Path(options.quarantine), [bad for source in done for bad in source.quarantined])
    if options.json:
        account = {"output": options.output, "as": purpose, "sources": [_account(source) for source in done]}
        print(json.dumps(account, ensure_ascii=False, indent=2))
        return 0
    for source in done:
        print(_line(source))
    print(f"{sum(source.written for source in done)} {purpose} in {options.output}")
    return 0


def _field(text: str) -> tuple[str, str]:
    name, equals, theirs = text.partition("=")
    if not (name and equals and theirs):
        raise RecipeError(f"--map {text}: expected FIELD=THEIRS, such as prompt=question")
    return name, theirs


def _account(source: Converted) -> dict[str, Any]:
    return {
        "path": source.path,
        "format": source.format,
        "recognised_by": source.why,
        "rows_read": source.rows_read,
        "kept": source.rows_kept,
        "dropped": source.dropped,
        "quarantined": dict(Counter(bad.reason for bad in source.quarantined)),
        "written": source.written,
    }


def _line(source: Converted) -> str:
    """The account in words; the numbers add up."""
    parts = [f"{source.rows_kept} kept"]
    left_out = (("dropped", source.dropped), ("set aside", Counter(bad.reason for bad in source.quarantined)))
    for what, counts in left_out:
        if counts:
            listed = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
            parts.append(f"{sum(counts.values())} {what} ({listed})")
    return f"{source.path}: {source.format} ({source.why}); {source.rows_read} rows read, {', '.join(parts)}"
