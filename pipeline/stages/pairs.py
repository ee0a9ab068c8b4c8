"""What the stages that train on preference pairs share: which pairs judge them, and what they leave of both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_prep.build import EncodedSet, prompt_hashes, without_seen
from data_prep.chat import EncodedPair
from data_prep.cleaning import write_dropped
from data_prep.records import PreferencePair
from pipeline.batch_order import TogetherSampler
from pipeline.context import HELD_OUT_PAIRS, TRAIN_PROMPTS, StageContext, seen_prompts
from pipeline.recipe.stage_settings import OfflineSettings
from pipeline.stages.offline import CommittedTrainer

Pairs = EncodedSet[PreferencePair, EncodedPair]


def unseen_pairs(held_out: Pairs, context: StageContext, report: dict[str, Any]) -> Pairs:
    """Held-out pairs whose prompts no model that this stage stands on was trained on; the rest is counted."""
    unseen = {id(record) for record in without_seen(held_out.records, seen_prompts(context.parents))}
    kept = [(record, row) for record, row in zip(held_out.records, held_out.rows, strict=True) if id(record) in unseen]
    dropped = len(held_out.rows) - len(kept)
    if dropped:
        report["dropped"]["held_out_but_trained_on_before"] = dropped
        report["eval_rows"] = len(kept)
    return EncodedSet([record for record, _ in kept], [row for _, row in kept])


def write_train_rows(context: StageContext, train: Pairs) -> None:
    """Leave the hashes of all prompts that this stage, or one it stands on, was trained on, and the rows that were
    dropped (first rank only).
    """
    write_dropped(context.folder, train.dropped)
    seen = seen_prompts(context.parents) | set(prompt_hashes(train.records))
    (context.folder / TRAIN_PROMPTS).write_text("\n".join(sorted(seen)) + "\n")


def write_held_out(context: StageContext, lines: Iterable[Mapping[str, Any]]) -> None:
    """Leave one line per held-out pair (first rank only)."""
    write_lines(context, HELD_OUT_PAIRS, lines)


def write_lines(context: StageContext, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Leave one JSON object per line in a file of the artefact (first rank only)."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (context.folder / name).write_text(text, encoding="utf-8")


def keep_together(
    trainer: CommittedTrainer, groups: Sequence[str | None], settings: OfflineSettings, seed: int
) -> None:
    """Draw pairs that come from one judgement into one step, where there are any.

    Spread over the steps of a pass they would be so many looks at the same answers (arXiv 2203.02155, 3.5).

    Args:
        trainer: of the pairs.
        groups: of the pairs, in the order of the trainer's rows.
        settings: of the stage.
        seed: of the run.
    """
    if any(count > 1 for group, count in Counter(groups).items() if group is not None):
        trainer.draw_by(TogetherSampler(groups, settings.global_batch_size, seed))


def pair_line(record: PreferencePair) -> dict[str, Any]:
    """What a line says of the pair itself."""
    origin = record.origin
    return {"source": origin.source, "row": origin.row, "family": origin.family, "fault": record.fault}
