"""What can be wrong among preference pairs: contradictions, answers that are almost equal, a bias of length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import dropwhile
from typing import Any

from data_prep.cleaning.dropped import Dropped, Finding
from data_prep.cleaning.near import similarity
from data_prep.cleaning.texts import turn_text, word_count
from data_prep.records import Message, PreferencePair
from data_prep.split import prompt_hash


def conflicts(pairs: Sequence[PreferencePair]) -> list[Dropped]:
    """Pairs of the same prompt and answers that prefer opposite ones: all of them, as nothing says which is right."""
    groups: dict[tuple[str, ...], list[PreferencePair]] = defaultdict(list)
    for pair in pairs:
        first, second = sorted((_said(pair.chosen_turn), _said(pair.rejected_turn)))
        groups[_whole_prompt(pair), first, second].append(pair)
    found = []
    for group in groups.values():
        rows = sorted({pair.origin.row for pair in group})
        if len({_said(pair.chosen_turn) for pair in group}) > 1:
            detail = f"rows {', '.join(map(str, rows[:5]))} prefer opposite answers"
            found += [Dropped(pair, Finding("label_conflicts", float(len(group)), detail)) for pair in group]
    return found


def near_equal(pairs: Sequence[PreferencePair], threshold: float) -> list[Dropped]:
    """Pairs whose two answers are at least so similar."""
    found = []
    for pair in pairs:
        score = similarity(turn_text(pair.chosen_turn), turn_text(pair.rejected_turn))
        if score >= threshold:
            found.append(Dropped(pair, Finding("near_equal_pairs", round(score, 3), "chosen and rejected are alike")))
    return found


def length_bias(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """How often the longer answer is the chosen one (a tie is half), and mean lengths in words.

    A reward model trained where that share is far from one half learns length first.
    """
    if not pairs:
        return {}
    lengths = [(word_count(turn_text(p.chosen_turn)), word_count(turn_text(p.rejected_turn))) for p in pairs]
    longer = sum(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in lengths)
    return {
        "chosen_longer": round(longer / len(pairs), 3),
        "chosen_words": round(sum(chosen for chosen, _ in lengths) / len(pairs), 1),
        "rejected_words": round(sum(rejected for _, rejected in lengths) / len(pairs), 1),
    }


def _whole_prompt(pair: PreferencePair) -> str:
    """The prompt with its later turns; letter case of its opening does not count."""
    later = dropwhile(lambda message: message.role != "assistant", pair.prompt)
    return "\x1f".join([prompt_hash(pair.prompt), *map(_said, later)])


def _said(turn: Message) -> str:
    return " ".join(turn_text(turn).split())
