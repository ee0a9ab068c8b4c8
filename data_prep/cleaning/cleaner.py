"""Cleaning in its order, for one data set: texts are put right, rows judged by themselves, then among one another.

`build` calls it between its own steps: `rows` on what `split` gives, `among` once exact duplicates are gone. Held-out
rows are repaired and masked like training rows, so that both read alike, but no rule drops one: recipes that clean
differently are judged on the same rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from data_prep.cleaning import near, pairs
from data_prep.cleaning.contamination import Decontaminator
from data_prep.cleaning.dropped import Dropped, Finding, missing
from data_prep.cleaning.harm import Classifier, harmful, load_classifier
from data_prep.cleaning.near import NearIndex
from data_prep.cleaning.personal import masked, personal_data, secrets
from data_prep.cleaning.repair import repaired
from data_prep.cleaning.rules import first_finding
from data_prep.cleaning.texts import rewritten
from data_prep.records import Demonstration, PreferencePair, Prompt, Record
from data_prep.split import Split, prompt_hash, prompt_messages
from data_prep.workers import mapped
from pipeline.recipe.cleaning_settings import CleanSettings, DecontaminateSettings, PairCleanSettings
from pipeline.stopping import stop_if_asked

R = TypeVar("R", Demonstration, PreferencePair, Prompt)

_WORTH_WORKERS = 10_000
"""Rows from which per-row rules are asked in several processes."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of one record by the rules that need no other."""

    record: Record
    repaired: bool
    masks: tuple[str, ...]
    """Kinds of what was masked."""
    finding: Finding | None


class Cleaner:
    """The rules of one data set, with the account of what they did.

    Args:
        settings: the data set's `clean` block.
        decontaminate: the recipe's, or None.
        classifier: used in place of the model that `settings.harm` names.
    """

    def __init__(
        self,
        settings: CleanSettings,
        decontaminate: DecontaminateSettings | None = None,
        classifier: Classifier | None = None,
    ):
        self._settings = settings
        self._decontaminator = Decontaminator(decontaminate) if decontaminate is not None else None
        self._classifier = classifier
        self._changed: Counter[str] = Counter()
        self.dropped: list[Dropped] = []
        """Every row that a rule took out of training, in the order in which rules were asked."""

    def rows(self, parts: Split[R]) -> Split[R]:
        """Repair, mask and judge the rows of one source, each by itself."""
        train = self._by_classifier(self._judged(parts.train, judge=True))
        held_out = self._judged(parts.eval, judge=False)
        elsewhere = self._judged(parts.held_elsewhere, judge=False)
        return Split(train=train, eval=held_out, held_elsewhere=elsewhere, forbidden=parts.forbidden)

    def duplicates(self, before: Sequence[R], after: Sequence[R]) -> None:
        """Take note of exact duplicates, which `build` drops and counts itself."""
        self.dropped += missing(before, after, Finding("duplicate"))

    def among(self, records: Sequence[R], held_out: Sequence[Record]) -> list[R]:
        """Judge training records among one another and against held-out prompts.

        Args:
            records: to train on, without exact duplicates.
            held_out: of any kind; no training record may have their prompts, nor come near them where the recipe asks
                for that.
        """
        # Prompts that differed only in a masked number, or in broken characters, are one now; and of several sources
        # one may hold out by name what another one trains on.
        evaluated = {prompt_hash(prompt_messages(record)) for record in held_out}
        kept = [record for record in records if prompt_hash(prompt_messages(record)) not in evaluated]
        self.dropped += missing(records, kept, Finding("prompt_is_held_out", None, "after repair and masks"))
        kept = self._without(kept, self._pair_faults(kept))
        if self._settings.near_duplicates is not None:
            kept = self._without(kept, self._near_held_out(kept, held_out))
            kept = self._without(kept, self._near_duplicates(kept))
        return self.apart(kept)

    def apart(self, records: list[R]) -> list[R]:
        """The records that share nothing with an evaluation set."""
        if self._decontaminator is None:
            return records
        kept, contaminated = self._decontaminator.split(records)
        self.dropped += contaminated
        return kept

    def counts(self) -> Counter[str]:
        """Rows dropped, by rule; exact duplicates are counted by who drops them."""
        return Counter(each.finding.rule for each in self.dropped if each.finding.rule != "duplicate")

    def report(self, train: Sequence[R]) -> dict[str, Any]:
        """What cleaning did besides dropping, and what it saw in the pairs that remain; for the data report."""
        found: dict[str, Any] = {}
        if self._changed:
            found["changed"] = dict(sorted(self._changed.items()))
        if self._decontaminator is not None:
            found["decontamination"] = self._decontaminator.report()
        remaining = _pairs_among(train)
        if remaining:
            found["length_bias"] = pairs.length_bias(remaining)
            found["label_conflicts"] = len(pairs.conflicts(remaining))
        return found

    def _judged(self, records: Sequence[R], *, judge: bool) -> list[R]:
        results: list[Judged] = mapped(partial(judged, self._settings, judge), records, _WORTH_WORKERS)
        kept: list[R] = []
        for record, result in zip(records, results, strict=True):
            # Workers return a copy; identity is what tells records apart later on.
            mine: Any = result.record if result.record != record else record
            if result.finding is not None:
                self.dropped.append(Dropped(mine, result.finding))
                continue
            kept.append(mine)
            self._changed["repaired"] += result.repaired
            self._changed.update(f"masked_{kind.lower()}" for kind in result.masks)
        self._changed += Counter()
        return kept

    def _by_classifier(self, records: list[R]) -> list[R]:
        settings = self._settings.harm
        if settings is None or not records:
            return records
        self._classifier = self._classifier or load_classifier(settings)
        return self._without(records, harmful(records, settings, self._classifier))

    def _pair_faults(self, records: Sequence[Record]) -> list[Dropped]:
        settings = self._settings
        if not isinstance(settings, PairCleanSettings):
            return []
        found = _pairs_among(records)
        faults = pairs.conflicts(found) if settings.label_conflicts == "drop" else []
        if settings.near_equal_pairs is not None:
            gone = {id(each.record) for each in faults}
            rest = [pair for pair in found if id(pair) not in gone]
            faults += pairs.near_equal(rest, settings.near_equal_pairs)
        return faults

    def _near_held_out(self, records: list[R], held_out: Sequence[Record]) -> list[Dropped]:
        settings = self._settings.near_duplicates
        assert settings is not None
        if not settings.held_out or not held_out:
            return []
        index = NearIndex(settings.threshold)
        _fill(index, held_out)
        return _near(
            records, index, near.prompt_texts, lambda place: held_out[place], "near_held_out_prompt", grow=False
        )

    def _near_duplicates(self, records: list[R]) -> list[Dropped]:
        settings = self._settings.near_duplicates
        assert settings is not None
        texts = near.row_texts if settings.of == "rows" else near.prompt_texts
        kept: list[Record] = []
        index = NearIndex(settings.threshold)
        return _near(records, index, texts, lambda place: kept[place], "near_duplicate", grow=True, kept=kept)

    def _without(self, records: list[R], dropped: list[Dropped]) -> list[R]:
        self.dropped += dropped
        gone = {id(each.record) for each in dropped}
        return [record for record in records if id(record) not in gone] if gone else records


def _pairs_among(records: Sequence[Record]) -> list[PreferencePair]:
    return [record for record in records if isinstance(record, PreferencePair)]


def judged(settings: CleanSettings, judge: bool, record: Record) -> Judged:
    """Put one record's texts right and, if asked to, find what is wrong with it; run by worker processes."""
    before = record
    if settings.repair:
        record = rewritten(record, repaired)  # type: ignore[type-var]
    was_repaired = record is not before
    finding = first_finding(record, settings) if judge else None
    masks: list[str] = []
    if finding is None:
        for wanted, find in ((settings.secrets, secrets), (settings.personal_data, personal_data)):
            if wanted == "mask":
                record = rewritten(record, partial(_mask, find, masks))  # type: ignore[type-var]
    return Judged(record, was_repaired, tuple(masks), finding)


def _mask(find: Callable[[str], Any], masks: list[str], text: str) -> str:
    changed, kinds = masked(text, find)
    masks += kinds
    return changed


def _fill(index: NearIndex, held_out: Sequence[Record]) -> None:
    texts = [near.prompt_texts(record) for record in held_out]
    for each, sketch in zip(texts, near.sketches(texts), strict=True):
        index.add(each, sketch)


def _near(
    records: Sequence[Record],
    index: NearIndex,
    texts_of: Callable[[Record], near.Texts],
    like: Callable[[int], Record],
    rule: str,
    *,
    grow: bool,
    kept: list[Record] | None = None,
) -> list[Dropped]:
    """Records that are near one in the index; with `grow`, those that are not go into it."""
    dropped = []
    texts = [texts_of(record) for record in records]
    for record, each, sketch in zip(records, texts, near.sketches(texts), strict=True):
        stop_if_asked("looking for near duplicates")
        match = index.find(each, sketch)
        if match is not None:
            origin = like(match.place).origin
            detail = f"like {origin.source} row {origin.row}"
            dropped.append(Dropped(record, Finding(rule, round(match.similarity, 3), detail)))
        elif grow:
            index.add(each, sketch)
            assert kept is not None
            kept.append(record)
    return dropped
