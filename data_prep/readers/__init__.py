"""From data files of many kinds to records.

`containers` turns a source into raw rows (`files` and `decoding` for local files, `hub` for hub data sets), `formats`
takes a raw row apart (`demonstrations`, `pairs`, `turns`), and `read` makes records and accounts for every row.
"""

from data_prep.readers.formats import FORMATS
from data_prep.readers.read import ReadResult, SourceSpec, read_demonstrations, read_pairs, read_prompts

__all__ = ["FORMATS", "ReadResult", "SourceSpec", "read_demonstrations", "read_pairs", "read_prompts"]
