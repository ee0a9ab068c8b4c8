"""What the rows of a stage are like: lengths, scripts, families, and how the two answers of pairs compare.

Plain numbers for the data report, made once the rows are encoded, so that lengths are the trainer's own tokens. The
figures travel in the stage's manifest; pages and terminals only draw them.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from data_prep.chat import EncodedDemonstration, EncodedPair, EncodedPrompt
from data_prep.records import Demonstration, Message, PreferencePair, Prompt, Record
from data_prep.split import prompt_messages

_BINS = 24
_MIXED = 0.1
"""A row whose letters are at least to this share of another script counts as mixed."""
_NAMES = {"CJK": "Han", "FULLWIDTH": "Latin", "HALFWIDTH": "Katakana"}


def demonstration_statistics(records: Sequence[Demonstration], rows: Sequence[EncodedDemonstration]) -> dict[str, Any]:
    """Figures of demonstrations; a prompt's tokens are all that are not trained, the template's among them."""
    trained = [sum(row.response_mask) for row in rows]
    whole = [len(row.input_ids) for row in rows]
    return {
        "tokens": _token_totals(whole, trained),
        "prompt_tokens": spread([all_ - ours for all_, ours in zip(whole, trained, strict=True)]),
        "response_tokens": spread(trained),
        "answers_per_row": _counted(sum(m.role == "assistant" for m in record.messages) for record in records),
        **_origins(records, whole, trained),
        **_calls([record.messages for record in records]),
        "scripts": scripts(["\n".join(m.content for m in record.messages) for record in records]),
    }


def pair_statistics(records: Sequence[PreferencePair], rows: Sequence[EncodedPair]) -> dict[str, Any]:
    """Figures of preference pairs; lengths of answers include their end-of-turn token."""
    chosen, rejected = [len(row.chosen_ids) for row in rows], [len(row.rejected_ids) for row in rows]
    prompt = [len(row.prompt_ids) for row in rows]
    answers = [one + other for one, other in zip(chosen, rejected, strict=True)]
    whole = [2 * p + a for p, a in zip(prompt, answers, strict=True)]
    margins = [record.margin for record in records if record.margin is not None]
    return {
        "tokens": _token_totals(whole, answers),
        "prompt_tokens": spread(prompt),
        "chosen_tokens": spread(chosen),
        "rejected_tokens": spread(rejected),
        "longer_answer": _longer(chosen, rejected),
        "faults": _counted(record.fault for record in records if record.fault),
        "margins": {"rows": len(margins), "mean": round(math.fsum(margins) / len(margins), 4)} if margins else None,
        **_origins(records, whole, answers),
        **_calls([(*r.prompt, r.chosen_turn, r.rejected_turn) for r in records]),
        "scripts": scripts(
            ["\n".join((*(m.content for m in prompt_messages(r)), r.chosen, r.rejected)) for r in records]
        ),
    }


def prompt_statistics(records: Sequence[Prompt], rows: Sequence[EncodedPrompt]) -> dict[str, Any]:
    """Figures of prompts to be answered."""
    lengths = [len(row.ids) for row in rows]
    return {
        "tokens": _token_totals(lengths, [0] * len(lengths)),
        "prompt_tokens": spread(lengths),
        "with_rule": sum(record.check is not None for record in records),
        **_origins(records, lengths, [0] * len(lengths)),
        **_calls([record.messages for record in records]),
        "scripts": scripts(["\n".join(m.content for m in prompt_messages(record)) for record in records]),
    }


def spread(lengths: Sequence[int]) -> dict[str, Any]:
    """Mean, quantiles and a histogram of lengths; empty without any.

    The histogram has up to 24 bins of one round width that begin at 0: bin i counts lengths from i x width up to, but
    not including, (i + 1) x width.
    """
    if not lengths:
        return {}
    ordered = sorted(lengths)
    width = _round_up(max(ordered[-1] + 1, _BINS) / _BINS)
    counts = Counter(length // width for length in ordered)
    return {
        "mean": round(sum(ordered) / len(ordered), 1),
        **{f"p{share}": ordered[int(share / 100 * (len(ordered) - 1))] for share in (5, 50, 95)},
        "max": ordered[-1],
        "histogram": {"width": width, "counts": [counts[number] for number in range(ordered[-1] // width + 1)]},
    }


def scripts(texts: Iterable[str]) -> dict[str, Any]:
    """Which scripts the letters of texts belong to, and how many texts are mostly in each.

    A hint at languages that needs no model: Han is Chinese or, beside Hiragana and Katakana, Japanese; Latin is one of
    hundreds. Texts without a letter count under `none`.
    """
    letters: Counter[str] = Counter()
    mostly: Counter[str] = Counter()
    mixed = 0
    for text in texts:
        found: Counter[str] = Counter()
        for character, count in Counter(text).items():
            if name := _script(character):
                found[name] += count
        letters.update(found)
        main, size = found.most_common(1)[0] if found else ("none", 0)
        mostly[main] += 1
        mixed += found.total() - size >= _MIXED * found.total() > 0
    total = letters.total()
    return {
        "rows": dict(mostly.most_common()),
        "letters": {name: round(count / total, 4) for name, count in letters.most_common()},
        "mixed_rows": mixed,
    }


@cache
def _script(character: str) -> str | None:
    """The script of a letter, by its Unicode name; None for anything else."""
    if not character.isalpha():
        return None
    first = unicodedata.name(character, "OTHER").split()[0]
    return _NAMES.get(first, first.capitalize())


def _token_totals(whole: Sequence[int], trained: Sequence[int]) -> dict[str, Any]:
    every, ours = sum(whole), sum(trained)
    return {"all": every, "answers": ours, "answers_share": round(ours / every, 4) if every else None}


def _longer(chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, Any]:
    """How often the longer answer is the chosen one: what a model that goes by length alone would learn."""
    if not chosen:
        return {}
    differences = [one - other for one, other in zip(chosen, rejected, strict=True)]
    return {
        "chosen": sum(d > 0 for d in differences),
        "rejected": sum(d < 0 for d in differences),
        "equal": sum(d == 0 for d in differences),
        "mean_difference": round(sum(differences) / len(differences), 2),
    }


def _origins(records: Sequence[Record], whole: Sequence[int], trained: Sequence[int]) -> dict[str, Any]:
    """Rows by source, what they come to in tokens, and rows by family."""
    sources = _counted(record.origin.source for record in records)
    tokens = {source: {"all": 0, "answers": 0} for source in sources}
    for record, every, ours in zip(records, whole, trained, strict=True):
        of_source = tokens[record.origin.source]
        of_source["all"] += every
        of_source["answers"] += ours
    return {
        "sources": sources,
        "source_tokens": tokens,
        "families": _counted(record.origin.family for record in records if record.origin.family),
    }


def _calls(rows: Sequence[Sequence[Message]]) -> dict[str, Any]:
    """Rows that offer functions or call any, and how many calls there are; nothing where there are none."""
    having = [turns for turns in rows if any(turn.tools or turn.tool_calls or turn.role == "tool" for turn in turns)]
    calls = sum(len(turn.tool_calls) for turns in having for turn in turns)
    return {"calls": {"rows": len(having), "calls": calls}} if having else {}


def _counted(values: Iterable[Any]) -> dict[str, int]:
    """How often each value occurs, most frequent first, equal ones by name."""
    counts: Mapping[str, int] = Counter(map(str, values))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = 10 ** max(0, math.floor(math.log10(width)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width)
