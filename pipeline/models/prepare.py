"""Fetch or build a base model in a process of its own: `python -P -m pipeline.models.prepare`, identity as JSON on
standard input, one line of JSON on standard output; everything that libraries print goes to standard error."""

from __future__ import annotations

import json
import os
import sys
import traceback

from pipeline.durable import cache_folder, full_disk
from pipeline.errors import TrivetError
from pipeline.models.source import BaseIdentity, materialise
from pipeline.redaction import guard_streams


def main() -> None:
    """Make the model available and say where it lies, or why it cannot be had."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    guard_streams()
    try:
        folder = materialise(BaseIdentity(**json.loads(sys.stdin.read())))
        answer = {"code": 0, "folder": str(folder)}
    except TrivetError as error:
        traceback.print_exc()
        answer = {"code": error.exit_code, "sentence": str(error)}
    except Exception as error:
        traceback.print_exc()
        full = full_disk(error, cache_folder())
        code, sentence = (full.exit_code, str(full)) if full else (1, f"{type(error).__name__}: {error}")
        answer = {"code": code, "sentence": sentence}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
