"""Two small bundled data sets, written for this project: 800 demonstrations and 800 preference pairs.

`generate` rewrites both files from `families/`; README.md says what is in them and how they were balanced.
"""

from pathlib import Path

DEMONSTRATIONS = Path(__file__).with_name("alpaca_sample.json")
PREFERENCES = Path(__file__).with_name("preference_sample.jsonl")
