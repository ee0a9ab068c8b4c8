"""The files of AlpacaEval: its leaderboards, analyses and annotators read what was answered and judged here.

`<policy>.json`: instruction, output, generator, dataset. `annotations.json`: two outputs with a `preference` from 1
(the first is better) to 2 (the second is), 1.5 for a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.judging.judge import Match
from evaluation.judging.win_rate import Verdict
from pipeline.durable import write_json_atomically

DATASET = "trivet_held_out"


def write_alpaca_eval(
    folder: Path,
    prompts: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    reference: str,
    judged: Mapping[str, Sequence[tuple[Match, Verdict]]],
    annotator: str,
) -> None:
    """Write all of a run's answers and verdicts.

    Args:
        folder: is made.
        prompts: conversations as text.
        answers: by policy, one per prompt.
        reference: the policy that all others were held against: output_1.
        judged: by policy, the pairs with their verdicts.
        annotator: name of the judge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for policy, given in answers.items():
        lines = [
            {"instruction": prompt, "output": answer, "generator": policy, "dataset": DATASET}
            for prompt, answer in zip(prompts, given, strict=True)
        ]
        write_json_atomically(folder / f"{policy}.json", lines)
    annotations: list[dict[str, Any]] = [
        {
            "instruction": match.prompt,
            "output_1": match.a,
            "generator_1": reference,
            "output_2": match.b,
            "generator_2": policy,
            "dataset": DATASET,
            "annotator": annotator,
            "preference": None if verdict.value is None else 1 + verdict.value,
        }
        for policy, pairs in judged.items()
        for match, verdict in pairs
    ]
    write_json_atomically(folder / "annotations.json", annotations)
