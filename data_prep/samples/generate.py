"""Write the two data files again, bit for bit: `python -m data_prep.samples.generate` (`--check` only compares)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from data_prep.samples import DEMONSTRATIONS, PREFERENCES
from data_prep.samples.assemble import demonstrations, draw_all, preferences


def contents() -> dict[Path, str]:
    """What each file holds."""
    alone, paired = draw_all()
    as_json = [json.dumps(row, ensure_ascii=False) for row in demonstrations(alone)]
    as_lines = [json.dumps(row, ensure_ascii=False) for row in preferences(paired)]
    return {
        DEMONSTRATIONS: "[\n" + ",\n".join(as_json) + "\n]\n",
        PREFERENCES: "".join(f"{line}\n" for line in as_lines),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; returns 1 when `--check` finds a file that differs."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.samples.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a file differs")
    check = parser.parse_args(arguments).check
    differing = 0
    for path, text in contents().items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            print(f"{path.name}: differs from what the generator writes; run it without --check", file=sys.stderr)
            differing += 1
        elif not check:
            path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
