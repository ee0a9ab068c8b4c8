"""Why rows fall out, in words: what a recipe chose to leave out, and what could not be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

_CHOSEN = {
    "over_limit": "beyond the source's limit",
    "outside_mixture": "beyond the source's share of the mixture",
    "held_out_over_limit": "held out, beyond eval_limit",
    "held_out_by_another_set": "kept back, as another data set may hold their prompts out",
    "held_out_but_trained_on_before": "held out, but an earlier stage trained on their prompts",
    "prompt_is_held_out": "their prompts are held out",
    "no_rule": "without a rule that could score an answer",
    "other_stages_part": "in another stage's part of the prompts (data.split)",
    "tie": "no answer is better than another",
    "labelled_bad": "labelled as bad answers",
    "no_counterpart": "a labelled answer without one to compare it with",
}
_RULES = {
    "languages": "in a language that is not wanted",
    "duplicate_lines": "an answer repeats its lines",
    "repetition": "an answer repeats its phrases",
    "special_characters": "an answer is mostly signs",
    "profanity": "swear words",
    "harm": "taken for harmful by the classifier",
    "refusals": "an answer only declines",
    "url_answers": "an answer is nothing but links",
    "truncated": "an answer breaks off",
    "placeholders": "placeholders were left in",
    "personal_data": "personal data",
    "secrets": "keys or passwords",
    "min_quality": "of lower quality than min_quality",
    "near_duplicate": "near duplicates of another row",
    "near_held_out_prompt": "their prompts come near a held-out one",
    "contaminated": "share words with an evaluation set",
    "label_conflicts": "pairs that another one contradicts",
    "near_equal_pairs": "their two answers are almost the same",
    **{
        f"{bound}_{measure}": f"an answer's {name} {side} {bound}_{measure}"
        for bound, side in (("min", "below"), ("max", "above"))
        for measure, name in (
            ("characters", "characters are"), ("words", "words are"), ("tokens", "tokens are"),
            ("word_length", "words are on average"),
        )
    },
}  # fmt: skip
"""Rules of a data set's `clean` block, and `decontaminate`."""
_LOST = {
    "empty_answers": "an answer has no word of its own",
    "duplicate": "duplicates of another row",
    "answer_too_long": "the answer alone does not fit in max_length",
    "control_token": "spell out a control token of the chat template",
    "template_refuses": "refused by the chat template",
    "empty_answer": "an answer is empty",
    "empty_prompt": "the prompt is empty",
    "identical_pair": "both answers are the same text",
    "identical_tokens": "both answers are the same tokens",
    "missing_field": "lack a field of their format",
    "wrong_type": "a field is not of the type that their format wants",
    "unknown_role": "a turn has an unknown role",
    "unknown_split": "name a split that is not known",
    "roles_out_of_order": "their turns are out of order",
    "no_final_answer": "do not end with an answer",
    "non_text_content": "hold something else than text",
    "prompts_differ": "their two answers belong to different prompts",
    "not_utf8": "are not UTF-8",
    "broken_json": "are not valid JSON",
    "not_an_object": "are JSON, but no object",
    "wrong_cell_count": "have another number of cells than the header",
}


def is_on_purpose(reason: str) -> bool:
    """Whether the recipe chose so; otherwise such rows could not be used."""
    return reason in _CHOSEN or reason in _RULES


def drop_told(reason: str) -> str:
    """A reason in words; one that is new here as it is written."""
    return _CHOSEN.get(reason) or _RULES.get(reason) or _LOST.get(reason) or reason.replace("_", " ")


def left_out_told(report: Mapping[str, Any]) -> str:
    """How many rows were left out without the recipe's asking for it, and why.

    Args:
        report: of a data set; rows that were set aside are counted elsewhere.

    Returns:
        The end of a sentence, empty where there were none.
    """
    lost: Counter[str] = Counter()
    for part in (*report["sources"], report):
        lost.update({reason: rows for reason, rows in part["dropped"].items() if not is_on_purpose(reason)})
    why = ", ".join(f"{drop_told(reason)} ({rows})" for reason, rows in lost.most_common() if rows)
    return f"; {lost.total()} left out: {why}" if why else ""
