"""What a stage's rows show, in sentences: what is learnt from, what was cut, what was left out and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.chat import ChatFormatter, EncodedDemonstration, EncodedPair
from data_prep.records import Demonstration
from evaluation.inspection.stage_rows import StageRows
from evaluation.report.data_section import percent
from evaluation.report.drops import Drop, drops_of
from evaluation.report.measures import count

_FEW = 0.02
"""Below this share of trained tokens a stage mostly computes on context."""
_LISTED = 8
ROLE_OF_ANSWERS = {
    "sft": "trained: the model learns to write them",
    "dpo": "compared: made likelier where chosen, less likely where rejected",
    "reward": "read: the score of an answer stands at its last token",
    "ppo": "none: the policy writes on from the end of the prompt",
}
"""What the answers' tokens are to each kind of stage."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence; `worse` wants attention, `plain` informs."""

    text: str
    tone: str = "plain"


def findings(found: StageRows, formatter: ChatFormatter) -> list[Finding]:
    """What a person should know before training on these rows."""
    return [*_size(found), *_ends(found, formatter), *_cut(found), *_left_out(found), *_padding(found)]


def _size(found: StageRows) -> Iterator[Finding]:
    tokens = found.report["statistics"]["tokens"]
    rows, share = len(found.rows), tokens["answers_share"] or 0.0
    held_out = found.report.get("eval_rows", 0)
    noun = {"sft": "conversations", "ppo": "prompts"}.get(found.kind, "pairs")
    yield Finding(f"Stage {found.stage} trains on {rows:,} {noun} of data.{found.data}; {held_out:,} are held out.")
    if found.kind == "ppo":
        rules = found.report["statistics"]["with_rule"]
        yield Finding(
            f"They have {tokens['all']:,} tokens. None is trained on: the policy writes on from each prompt's end. "
            f"{_of(rules, rows)} carry a rule that scores answers."
        )
        return
    verb = {"sft": "are trained", "dpo": "are compared", "reward": "are answers"}[found.kind]
    text = (
        f"Of {tokens['all']:,} tokens {tokens['answers']:,} {verb} ({percent(share)}), the rest is context: prompts "
        "and what the template writes."
    )
    if found.kind == "reward":
        text += " The score is read at each answer's last token."
    yield Finding(text)
    if share < _FEW:
        yield Finding(
            f"Only {percent(share)} of the tokens are answers: most of the computation goes into context. Are prompts "
            "and answers told apart rightly?", "worse",
        )  # fmt: skip


def _ends(found: StageRows, formatter: ChatFormatter) -> Iterator[Finding]:
    """Whether the model can learn to stop."""
    if found.kind == "ppo":
        return
    rows = [row for record, row in zip(found.records, found.rows, strict=True) if not _is_text(record)]
    if len(rows) < len(found.rows):
        pieces = len(found.rows) - len(rows)
        yield Finding(f"{_of(pieces, len(found.rows))} rows are pieces of plain text, all of it trained.")
    last = [ids[-1] for row in rows for ids in _answer_ends(row)]
    if not last:
        return
    ending = sum(token in formatter.stop_ids for token in last)
    name = formatter.tokenizer.convert_ids_to_tokens(formatter.stop_ids[0])
    if ending == len(last):
        yield Finding(f"Every answer ends with {name}, which is part of it: the model learns to stop.")
    else:
        yield Finding(f"{_of(len(last) - ending, len(last))} answers do not end with {name}.", "worse")


def _is_text(record: Any) -> bool:
    return isinstance(record, Demonstration) and record.is_text


def _answer_ends(row: Any) -> Sequence[Sequence[int]]:
    if isinstance(row, EncodedPair):
        return [row.chosen_ids, row.rejected_ids]
    assert isinstance(row, EncodedDemonstration)
    return [[token for token, trained in zip(row.input_ids, row.response_mask, strict=True) if trained]]


def _cut(found: StageRows) -> Iterator[Finding]:
    places = [number for number, row in enumerate(found.rows, start=1) if row.prompt_cut]
    key = "data.prompts.max_prompt_length" if found.kind == "ppo" else f"data.{found.data}.max_length"
    if not places:
        yield Finding(f"No row was cut: all fit in {found.max_length:,} tokens ({key}).")
        return
    further = f" and {len(places) - _LISTED:,} others" if len(places) > _LISTED else ""
    listed = ", ".join(map(str, places[:_LISTED])) + further
    tone = "worse" if len(places) > 0.1 * len(found.rows) else "plain"
    lost = "its beginning" if len(places) == 1 else "their beginning"
    yield Finding(
        f"{_of(len(places), len(found.rows))} rows lost {lost} to fit in {found.max_length:,} tokens ({key}); answers "
        f"are never cut. Rows {listed}.", tone,
    )  # fmt: skip


def _left_out(found: StageRows) -> Iterator[Finding]:
    read = sum(source["rows_read"] for source in found.report["sources"])
    drops = drops_of(found.report)
    lost = [drop for drop in drops if not drop.on_purpose]
    chosen = [drop for drop in drops if drop.on_purpose]
    if lost:
        share = sum(drop.rows for drop in lost) / read if read else 0.0
        yield Finding(
            f"Of {read:,} rows read, could not be used: {_listed(lost)}.", "worse" if share > 0.1 else "plain"
        )
    else:
        yield Finding(f"Of {read:,} rows read, all could be used.")
    if chosen:
        yield Finding(f"Left out by the recipe: {_listed(chosen)}.")
    examples = found.report.get("dropped_examples") or []
    if examples:
        source, _, reason = examples[0]
        rows = [str(row) for path, row, why in examples if (path, why) == (source, reason)][:3]
        named = f"row {rows[0]}" if len(rows) == 1 else f"rows {', '.join(rows)}"
        yield Finding(f"For instance {source} {named}: {reason.replace('_', ' ')}.")


def _padding(found: StageRows) -> Iterator[Finding]:
    padding = found.report.get("padding")
    if not padding:
        return
    now = padding["packed"]["padding"] if padding["used"] == "packed" else padding[padding["used"]]
    how = {"shuffled": "drawn at random", "grouped": "grouped by length", "packed": "packed end to end"}
    drawn = f"In padded batches of {padding['batch_rows']} rows {how[padding['used']]}"
    # Streams, which most models take, have none.
    text = f"{drawn}, {percent(now)} of all positions would be padding"
    others = []
    if "grouped" in padding and padding["used"] == "shuffled":
        others.append(f"{percent(padding['grouped'])} with group_by_length: true")
    if "packed" in padding and padding["used"] != "packed":
        others.append(f"none with packing: true, in {count(padding['packed']['sequences'])} sequences")
    yield Finding(f"{text}{' (' + '; '.join(others) + ')' if others else ''}.")


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}"


def _listed(drops: Sequence[Drop]) -> str:
    return "; ".join(f"{drop.rows:,} {drop.told}" for drop in drops)
