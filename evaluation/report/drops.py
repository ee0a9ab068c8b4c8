"""Why rows are not trained on, in words: what was left out on purpose, and what could not be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.report.files import mapping, objects, whole

_CHOSEN = {
    "over_limit": "beyond the source's limit",
    "outside_mixture": "beyond the source's share of the mixture",
    "held_out_over_limit": "held out, beyond eval_limit",
    "held_out_by_another_set": "kept back, as another data set may hold their prompts out",
    "held_out_but_trained_on_before": "held out, but an earlier stage trained on their prompts",
    "prompt_is_held_out": "their prompts are held out",
    "no_rule": "without a rule that could score an answer",
}
_LOST = {
    "duplicate": "duplicates of another row",
    "answer_too_long": "the answer alone does not fit in max_length",
    "control_token": "spell out a control token of the chat template",
    "template_refuses": "refused by the chat template",
    "empty_answer": "an answer is empty",
    "empty_prompt": "the prompt is empty",
    "identical_pair": "both answers are the same text",
    "identical_tokens": "both answers are the same tokens",
    "missing_field": "lack a field of their format",
}


@dataclass(frozen=True, slots=True)
class Drop:
    """Rows that fell out for one reason."""

    reason: str
    rows: int
    told: str
    on_purpose: bool
    """The recipe chose so; otherwise the rows could not be used."""


def drops_of(report: Mapping[str, Any]) -> list[Drop]:
    """All rows of a data report that fell out, in reading and after, those that could not be used first."""
    counts: Counter[str] = Counter()
    for part in (*objects(report.get("sources")), report):
        for reason, value in mapping(part.get("dropped")).items():
            counts[reason] += whole(value) or 0
    found = [Drop(reason, rows, drop_told(reason), reason in _CHOSEN) for reason, rows in counts.items() if rows]
    return sorted(found, key=lambda drop: (drop.on_purpose, -drop.rows, drop.reason))


def drop_told(reason: str) -> str:
    """A reason in words; one that is new here as it is written."""
    return _CHOSEN.get(reason) or _LOST.get(reason) or reason.replace("_", " ")
