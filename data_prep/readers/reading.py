"""One pass over a source: records in the order of their rows, and the account of all rows.

`containers` finds the rows, `mapping` names their fields, `formats` takes each apart, `make` makes records of it; this
module decides what a bad row means. `read` gathers what comes out, `convert` writes it on.

Whatever the policy, rows read = rows kept + rows dropped by reason + rows in quarantine, and nothing else.

on_bad_row: fail (the default: a data set must not become smaller without anybody having decided it). A row that cannot
be read stops the run at its line. A row that is not of its format stops it too when it is the first, or when more than
one row in a hundred is such; rarer ones, and those with a fault of content (no answer is normal), are dropped.

on_bad_row: quarantine. Rows with any fault are set aside whole, with place and reason, and reading goes on. It stops
only where more rows are bad than good, because then the file is not what it is taken for. Files that are cut off,
compressed otherwise or in another encoding stop under both policies: what is missing from them, nobody can count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from data_prep.readers.containers import RawRow, read_raw
from data_prep.readers.faults import NOT_WANTED, STRUCTURAL, BadRow, RowFault
from data_prep.readers.formats import Purpose
from data_prep.readers.make import Labelled, Made, make_records, pair_labelled
from data_prep.readers.mapping import check_mapping, renamed
from data_prep.readers.recognise import Recognised, resolve_format
from pipeline.errors import DataError
from pipeline.stopping import stop_if_asked

OnBadRow = Literal["fail", "quarantine"]

STRUCTURAL_LIMIT = 0.01
QUARANTINE_LIMIT = 0.5
IDENTICAL_LIMIT = 0.2
EXAMPLES = 3
RECOGNISE_WITHIN = 100
"""Under quarantine the first rows may be the bad ones: so many are looked at before the format is given up."""


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """One entry of a recipe's `sources`, as far as reading goes."""

    path: str
    format: str = "auto"
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    split: str = "train"
    """Split of a hub data set to read."""
    map: Mapping[str, str] = field(default_factory=dict)
    """Names that formats know -> names that the rows have."""
    on_bad_row: OnBadRow = "fail"


class Reading:
    """An iterator of records that keeps the account; only what was set aside stays in memory.

    Args:
        spec: the source.
        purpose: which kind of records to make.
    """

    def __init__(self, spec: SourceSpec, purpose: Purpose):
        self.spec = spec
        self.purpose = purpose
        self.form: Recognised | None = None
        self.rows_read = 0
        self.rows_kept = 0
        self.dropped: Counter[str] = Counter()
        self.quarantined: list[BadRow] = []
        self.examples: list[tuple[int, str]] = []
        self._first_structural: tuple[RawRow, RowFault] | None = None
        self._labelled: list[Labelled] = []

    def __iter__(self) -> Iterator[Made]:
        """Records in the order of their rows; pairs of labelled answers come at the end.

        Raises:
            DataError: the rows are not what they are taken for; the message names the first that shows it.
        """
        for raw in self._rows():
            assert self.form is not None
            try:
                made = make_records(raw, self.form.format.parse(raw.fields), self.purpose, self._labelled)
            except RowFault as fault:
                self._leave_out(raw, fault)
                continue
            self.rows_kept += made is not None
            yield from made or ()
        yield from self._pairs_of_labelled()
        self._check_account()

    def preview(self) -> Recognised | None:
        """Look at the first row that can be read, and no further; None where there is none.

        Raises:
            DataError: as reading would by then: the format is not known, or of no use for the purpose; the first row
                is not of it.
        """
        raw = next(self._rows(), None)
        if raw is not None:
            assert self.form is not None
            try:
                make_records(raw, self.form.format.parse(raw.fields), self.purpose, [])
            except RowFault as fault:
                self._leave_out(raw, fault)
        return self.form

    def _rows(self) -> Iterator[RawRow]:
        """Raw rows with their fields mapped; the format is known before the first."""
        tolerant = self.spec.on_bad_row == "quarantine"
        on_bad = self._set_aside if tolerant else None
        waiting: list[RawRow] = []
        for raw in read_raw(self.spec.path, revision=self.spec.revision, split=self.spec.split, on_bad=on_bad):
            stop_if_asked("reading rows")
            self.rows_read += 1
            if self.form is None:
                try:
                    check_mapping(self.spec.path, raw, self.spec.map)
                    self.form = resolve_format(self.spec.format, renamed(raw, self.spec.map), self.purpose)
                except DataError:
                    waiting.append(raw)
                    if not tolerant or len(waiting) == RECOGNISE_WITHIN:
                        raise
                    continue
                yield from self._mapped(waiting)
            yield from self._mapped([raw])
        if self.form is None:
            self._give_up(waiting)

    def _give_up(self, waiting: Sequence[RawRow]) -> None:
        """Raise what is wrong with the first row that could be read, or else with the first that could not."""
        if not waiting:
            bad = self.quarantined[0]
            raise DataError(
                f"{bad.source}:{bad.row}: {bad.detail}; no row can be read, so this is another kind of file"
            )
        check_mapping(self.spec.path, waiting[0], self.spec.map)
        resolve_format(self.spec.format, renamed(waiting[0], self.spec.map), self.purpose)

    def _mapped(self, rows: Sequence[RawRow]) -> Iterator[RawRow]:
        for raw in rows:
            try:
                yield renamed(raw, self.spec.map)
            except RowFault as fault:
                self._leave_out(raw, fault)

    def _set_aside(self, bad: BadRow) -> None:
        """Take a row that could not be read."""
        self.rows_read += 1
        self._quarantine(bad)

    def _quarantine(self, bad: BadRow) -> None:
        self.quarantined.append(bad)
        self._note(bad.row, bad.reason)

    def _leave_out(self, raw: RawRow, fault: RowFault) -> None:
        if self.spec.on_bad_row == "quarantine" and fault.reason not in NOT_WANTED:
            content = dict(raw.fields)
            bad = BadRow(source=raw.source, row=raw.row, reason=fault.reason, detail=fault.detail, content=content)
            self._quarantine(bad)
            return
        self._drop(raw.row, fault.reason)
        if fault.reason in STRUCTURAL:
            self._first_structural = self._first_structural or (raw, fault)
            if self.rows_read == 1:
                raise self._misfit(raw, fault, "the very first row") from None

    def _drop(self, row: int, reason: str) -> None:
        self.dropped[reason] += 1
        self._note(row, reason)

    def _note(self, row: int, reason: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append((row, reason))

    def _pairs_of_labelled(self) -> Iterator[Made]:
        pairs, alone = pair_labelled(self._labelled)
        self.rows_kept += len(self._labelled) - len(alone)
        for origin in alone:
            self._drop(origin.row, "no_counterpart")
        self._labelled = []
        yield from pairs

    def _check_account(self) -> None:
        accounted = self.rows_kept + self.dropped.total() + len(self.quarantined)
        assert self.rows_read == accounted, f"{self.rows_read} rows read, {accounted} accounted for"
        if self._first_structural:
            count = sum(self.dropped.get(reason, 0) for reason in STRUCTURAL)
            if count > STRUCTURAL_LIMIT * self.rows_read:
                raise self._misfit(*self._first_structural, f"the first of {count} such rows in {self.rows_read}")
        if len(self.quarantined) > QUARANTINE_LIMIT * self.rows_read:
            raise self._mostly_bad()
        self._check_identical()
        self._check_not_empty()

    def _misfit(self, raw: RawRow, fault: RowFault, which: str) -> DataError:
        assert self.form is not None
        form = self.form.format
        return DataError(
            f"{raw.source}: row {raw.row} ({which}): {fault.detail}; expected format {form.name} "
            f"({form.fields}), so correct these rows or write another format"
        )

    def _mostly_bad(self) -> DataError:
        first = self.quarantined[0]
        column = f":{first.column}" if first.column else ""
        return DataError(
            f"{self.spec.path}: {len(self.quarantined)} of {self.rows_read} rows are bad, so the file is not what it "
            f"is taken for; the first: {first.source}:{first.row}{column}: {first.detail}"
        )

    def _check_identical(self) -> None:
        identical = self.dropped.get("identical_pair", 0)
        pairs = self.rows_kept + identical
        if identical > IDENTICAL_LIMIT * pairs:
            raise DataError(
                f"{self.spec.path}: in {identical} of {pairs} pairs chosen equals rejected; at most "
                f"{IDENTICAL_LIMIT:.0%} may, so check how the pairs were made"
            )

    def _check_not_empty(self) -> None:
        if self.rows_kept:
            return
        assert self.form is not None
        reasons = self.dropped + Counter(bad.reason for bad in self.quarantined)
        counts = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{reason} {count}" for reason, count in counts)
        raise DataError(
            f"{self.spec.path}: none of {self.rows_read} rows is left, most were dropped as {counts[0][0]} ({listed}); "
            f"check the file, or the format (read as {self.form.format.name})"
        )
