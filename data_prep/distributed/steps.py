"""A task: rows read, judged each by itself, and written, as three steps of datatrove.

The writer is datatrove's. Its readers are not used: they pass over lines that they cannot parse, and over the rest of a
file behind a byte that is not UTF-8, with a line in a log.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import JsonlWriter

from data_prep.cleaning import Cleaner
from data_prep.convert import fields_of
from data_prep.distributed.job import Job, share_of
from data_prep.readers import BadRow, Reading, write_quarantine
from data_prep.readers.make import Made
from data_prep.records import Split
from data_prep.split import split_records
from pipeline.durable import write_json_atomically
from pipeline.errors import DataError

_AT_ONCE = 1000


class ReadRows(PipelineStep):
    """Records of a task's files, with the account of every row.

    Args:
        job: what to read.
        output: gets `account/read-RANK.json` and, with `on_bad_row: quarantine`, `quarantine/RANK.jsonl`.
    """

    type = "📖 - READER"
    name = "Trivet rows"

    def __init__(self, job: Job, output: Path):
        super().__init__()
        self._job = job
        self._output = output

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """A document for each record; its text is a name, as records travel whole."""
        account: list[dict[str, Any]] = []
        bad: list[BadRow] = []
        for file in share_of(self._job.files, rank, world_size):
            reading = Reading(file.spec, self._job.purpose)
            records = 0
            try:
                for record in reading:
                    records += 1
                    self.stat_update("records")
                    name = f"{record.origin.source}:{record.origin.row}"
                    yield Document(text=name, id=name, metadata={"record": record, "source": file.source})
            except DataError as error:
                raise DataError(str(error)) from None  # a plain one, which can travel between processes
            bad += reading.quarantined
            account.append(
                {
                    "path": file.spec.path,
                    "rows_read": reading.rows_read,
                    "kept": reading.rows_kept,
                    "dropped": dict(reading.dropped),
                    "quarantined": dict(Counter(row.reason for row in reading.quarantined)),
                    "records": records,
                }
            )
        if bad:
            write_quarantine(_folder(self._output, "quarantine") / f"{rank:05d}.jsonl", bad)
        write_json_atomically(_folder(self._output, "account") / f"read-{rank:05d}.json", {"files": account})


class CleanRows(PipelineStep):
    """The rules of a `clean` block that ask of one row, and evaluation sets kept apart.

    Args:
        job: with the rules.
        output: gets `account/clean-RANK.json` and `dropped/RANK.jsonl`.
    """

    type = "🔻 - FILTER"
    name = "Trivet rules"

    def __init__(self, job: Job, output: Path):
        super().__init__()
        self._job = job
        self._output = output

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """A document for each row that is left; its metadata has the row as it is written."""
        cleaner = Cleaner(self._job.clean, self._job.decontaminate)
        counts: Counter[str] = Counter()
        with (_folder(self._output, "dropped") / f"{rank:05d}.jsonl").open("w", encoding="utf-8") as dropped:
            for source, documents in groupby(data, key=lambda document: document.metadata["source"]):
                while batch := [document.metadata["record"] for document in islice(documents, _AT_ONCE)]:
                    for record in self._left(cleaner, batch, counts):
                        name = f"{record.origin.source}:{record.origin.row}"
                        row = fields_of(record, arguments_as_text=True)
                        yield Document(text=name, id=name, metadata={"row": row, "source": source})
                    counts.update(each.finding.rule for each in cleaner.dropped)
                    dropped.writelines(json.dumps(each.line(), ensure_ascii=False) + "\n" for each in cleaner.dropped)
                    cleaner.dropped.clear()
        for reason, rows in counts.items():
            self.stat_update(reason, value=rows)
        about = {"counts": dict(counts), "cleaning": cleaner.report([])}
        write_json_atomically(_folder(self._output, "account") / f"clean-{rank:05d}.json", about)

    def _left(self, cleaner: Cleaner, records: Sequence[Any], counts: Counter[str]) -> Iterator[Made]:
        """The records that no rule takes out, each saying whether it trains: once masked, its prompt no longer can."""
        parts = split_records(records, self._job.eval_fraction, self._job.held_out_fraction)
        kept = cleaner.rows(parts)
        train = cleaner.apart(kept.train)
        counts["held_out_by_another_set"] += len(kept.held_elsewhere)
        counts["prompt_is_held_out"] += len(kept.forbidden)
        counts["train"] += len(train)
        counts["held_out"] += len(kept.eval)
        sides: tuple[tuple[Split, Sequence[Any]], ...] = (("train", train), ("eval", kept.eval))
        for split, part in sides:
            yield from (replace(record, origin=replace(record.origin, split=split)) for record in part)


def steps(job: Job, output: Path) -> list[PipelineStep]:
    """What each task does, in order."""
    writer = JsonlWriter(str(output / "rows"), output_filename="${source}/${rank}.jsonl", adapter=_row_of)
    return [ReadRows(job, output), CleanRows(job, output), writer]


def _row_of(writer: JsonlWriter, document: Document) -> dict[str, Any]:
    return dict(document.metadata["row"])


def _folder(output: Path, name: str) -> Path:
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
