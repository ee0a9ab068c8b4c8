"""Runs whose policies speak in different tokens: which of their figures then say nothing beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluation.comparison.load import ComparedRun

IN_TOKENS = ("perplexity", "entropy", "response length", "distinct-1 and -2", "repetition")
"""Figures per token or counted in tokens. KL and scores are per response and stay what they are."""


def tokenizer_notes(runs: Sequence[ComparedRun]) -> Iterable[str]:
    """One sentence where the runs' sealed stages do not all have one tokenizer; runs without any stage do not count."""
    groups: dict[str, list[str]] = {}
    for compared in runs:
        for tokenizer in dict.fromkeys(s.provenance.tokenizer for s in compared.run.stages if s.provenance):
            if tokenizer:
                groups.setdefault(tokenizer, []).append(compared.label)
    if len(groups) > 1:
        whose = "; ".join(f"{', '.join(labels)}: {digest[:12]}" for digest, labels in groups.items())
        yield (
            f"The policies speak in the tokens of {len(groups)} tokenizers ({whose}). What is counted in tokens is in "
            f"other units for each and not to be compared: {', '.join(IN_TOKENS)}, and answers that end at the same "
            "number of tokens end at different places."
        )
