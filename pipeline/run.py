"""The script behind `accelerate launch pipeline/run.py RECIPE`: the same as `trivet run RECIPE`."""

import sys
from pathlib import Path

# A script's own folder comes first on the path, where our modules could shadow libraries: the root replaces it.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
