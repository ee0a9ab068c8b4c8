"""What a run shows: `report.html` (one self-contained page) and the closing table on the terminal.

The way of a number: `files` reads, `load` makes frozen records, `measures` says what each figure means and how it is
written, `words` makes sentences, `sections` and `curves` arrange, `charts` draws; `page` and `terminal` put it all in
front of a person.
Nothing here imports torch: the supervisor, a light process, runs it.
"""

from evaluation.report.page import write_report
from evaluation.report.terminal import print_summary

__all__ = ["print_summary", "write_report"]
