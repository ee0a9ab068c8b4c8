"""From data files of many kinds to records.

`containers` turns a source into raw rows (`files` and `decoding` for local files, `hub` for hub data sets). `mapping`
renames their fields, `recognise` tells which of `formats` they are in, and that format takes them apart
(`demonstrations`, `pairs`, `comparisons`, `glaive`; `turns` and `tool_turns` are common to them). `make` makes records,
`reading` accounts for every row (`faults` says what can be wrong with one), and `read` gathers the result.
"""

from data_prep.readers.faults import BadRow
from data_prep.readers.formats import FORMATS
from data_prep.readers.read import ReadResult, read_demonstrations, read_pairs, read_prompts, write_quarantine
from data_prep.readers.reading import Reading, SourceSpec

__all__ = [
    "FORMATS",
    "BadRow",
    "ReadResult",
    "Reading",
    "SourceSpec",
    "read_demonstrations",
    "read_pairs",
    "read_prompts",
    "write_quarantine",
]
