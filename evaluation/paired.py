"""All that two policies of a run are held against each other in: every figure row by row, from the rows left on disk.

Greedy answers give rules, length, endings and conduct; sampled ones scores, repetition and entropy; held-out texts
perplexity. What has no value for a single row (distinct-n, BLEU) is left to the table of policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_prep.records import Prompt
from data_prep.stances import refuses
from evaluation.compare import Values, differences, ratio_differences
from evaluation.conduct import deeds
from evaluation.families import family_differences
from evaluation.measures import Answered
from evaluation.text_measures import repetition

Line = Mapping[str, Any]


def comparisons(
    compared: Sequence[tuple[str, str]],
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[Answered]],
    sampled: Sequence[Line],
    texts: Sequence[Line],
    won: Values,
) -> list[dict[str, Any]]:
    """One row per figure and pair of policies that it was measured for, as `evaluation.compare` makes them.

    Args:
        compared: pairs of policies.
        prompts: that were answered greedily.
        answers: to them, by policy.
        sampled: the lines of `sampled.jsonl`.
        texts: the lines of `perplexity.jsonl`.
        won: a judge's shares, where there is one.
    """
    by_figure = {**_of_answers(prompts, answers), "win_rate": won, **_of_samples(sampled)}
    found = [row for figure, values in by_figure.items() for row in differences(figure, compared, values)]
    found += ratio_differences("perplexity", compared, _surprise(texts), exponent=True)
    return found + ratio_differences("entropy", compared, _surprise(sampled))


def by_family(
    compared: Sequence[tuple[str, str]], prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answered]]
) -> list[dict[str, Any]]:
    """Right answers family by family, with intervals that hold for all families of two policies together."""
    right = {name: [answer.right for answer in found] for name, found in answers.items()}
    return family_differences(compared, [prompt.origin.family for prompt in prompts], right)


def _of_answers(prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answered]]) -> dict[str, Values]:
    figures: dict[str, Callable[[Answered], float | None]] = {
        "rule_accuracy": lambda answer: answer.right,
        "response_tokens": lambda answer: float(answer.tokens),
        "eos_rate": lambda answer: float(answer.stopped),
        "refusal_rate": lambda answer: float(refuses(answer.text)),
    }
    found: dict[str, Values] = {
        figure: {name: [value(answer) for answer in given] for name, given in answers.items()}
        for figure, value in figures.items()
    }
    done = {name: [deeds(prompt, answer) for prompt, answer in zip(prompts, given, strict=True)]
            for name, given in answers.items()}  # fmt: skip
    asked = dict.fromkeys(deed for given in done.values() for each in given for deed in each)
    return found | {deed: {name: [each.get(deed) for each in given] for name, given in done.items()} for deed in asked}


def _of_samples(lines: Sequence[Line]) -> dict[str, Values]:
    """Scores where they were given, and repetition."""
    found: dict[str, dict[str, list[float | None]]] = {"score": {}, "score_heldout": {}, "repetition": {}}
    for line in lines:
        for figure, values in found.items():
            value = repetition([line["ids"]]) if figure == "repetition" else line.get(figure)
            values.setdefault(line["policy"], []).append(value)
    return {figure: values for figure, values in found.items() if values}


def _surprise(lines: Sequence[Line]) -> dict[str, list[tuple[float, float]]]:
    """By policy: nats and tokens of every row; nothing where no log-probability was taken."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.get("logp") is not None:
            found.setdefault(line["policy"], []).append((-line["logp"], float(line["tokens"])))
    return found
