"""Fetch or build a base model in a process of its own: `python -P -m pipeline.models.prepare`, identity as JSON on
standard input, one line of JSON on standard output; everything that libraries print goes to standard error."""

from __future__ import annotations

import json
import os
import sys
import traceback

from pipeline.errors import TrivetError
from pipeline.models.source import BaseIdentity, materialise


def main() -> None:
    """Make the model available and say where it lies, or why it cannot be had."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        folder = materialise(BaseIdentity(**json.loads(sys.stdin.read())))
        answer = {"code": 0, "folder": str(folder)}
    except TrivetError as error:
        traceback.print_exc()
        answer = {"code": error.exit_code, "sentence": str(error)}
    except Exception as error:
        traceback.print_exc()
        answer = {"code": 1, "sentence": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
