"""Several runs side by side, from their folders alone: `trivet compare RUN [RUN ...]`.

The way of a number: `load` reads runs (through the report's own reader), `evaluation_set` refuses those that were not
measured alike, `held_out` takes out columns that rest on other rows, `recipes` finds what differs, `sweeps` and `seeds`
what that makes of the runs, `rows` and `by_value` line the policies up, `paths` and `sweep_paths` join them, `equal_kl`
compares them where both have been, `fine_tuning` where there is no KL, `words` makes sentences, `curves` lays what was
logged over each other; `page`, `terminal` and `exports` put it all in front of a person or a program.
Nothing here imports torch, and half-finished runs are shown as far as they have come.
"""

from evaluation.comparison.view import Comparison, compare_runs

__all__ = ["Comparison", "compare_runs"]
