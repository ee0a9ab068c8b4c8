"""Prompts to be answered, as a PPO stage gets them: read, chosen, encoded, with the account of every row.

Beside `build`, which does the same for demonstrations and pairs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.build import EncodedSet, encode, leave_aside, prompts, without_seen
from data_prep.chat import ChatFormatter, EncodedPrompt
from data_prep.clean import limit_records
from data_prep.cleaning import tell_dropped
from data_prep.records import Prompt
from data_prep.row_statistics import prompt_statistics
from pipeline.recipe.schema import DataSettings

Prompts = EncodedSet[Prompt, EncodedPrompt]


def encode_prompts(
    data: DataSettings,
    formatter: ChatFormatter,
    seed: int,
    *,
    with_rule: bool,
    held_out: int,
    seen: frozenset[str] = frozenset(),
    part: str | None = None,
    aside: Path | None = None,
) -> tuple[Prompts, Prompts, dict[str, Any]]:
    """Prompts to train on, held-out ones, and the data report; either may be empty.

    Args:
        data: of the recipe.
        formatter: turns prompts into ids.
        seed: of the recipe.
        with_rule: whether prompts without a rule are left out, as nothing could score their answers.
        held_out: at most so many held-out prompts.
        seen: hashes of prompts that what is to be measured was trained on.
        part: the entry of `data.split` whose prompts may train, None for all.
        aside: folder that gets a `quarantine.jsonl` of the rows set aside, if there are any.
    """
    found = prompts(data, seed, part)
    leave_aside(found.quarantined, aside)
    dropped = found.report["dropped"]
    train, measured = found.train, without_seen(found.held_out, seen)
    _count(dropped, "held_out_but_trained_on_before", len(found.held_out) - len(measured))
    if with_rule:
        kept = [[prompt for prompt in part if prompt.check is not None] for part in (train, measured)]
        _count(dropped, "no_rule", len(train) + len(measured) - sum(map(len, kept)))
        train, measured = kept
    _count(dropped, "held_out_over_limit", len(measured) - held_out)
    measured = limit_records(measured, held_out, 0)
    longest = data.prompts.max_prompt_length
    rows = [encode(part, lambda prompt: formatter.prompt(prompt, longest), found.report) for part in (train, measured)]
    dropped_rows = [*found.dropped, *rows[0].dropped]
    tell_dropped(found.report, dropped_rows)
    found.report.update(
        train_rows=len(rows[0].rows),
        eval_rows=len(rows[1].rows),
        statistics=prompt_statistics(rows[0].records, rows[0].rows),
    )
    return replace(rows[0], dropped=dropped_rows), rows[1], found.report


def _count(dropped: dict[str, int], reason: str, rows: int) -> None:
    if rows > 0:
        dropped[reason] = dropped.get(reason, 0) + rows
