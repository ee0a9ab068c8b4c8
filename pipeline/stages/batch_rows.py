"""Which rows of the data a step was computed on: asked only when it has gone wrong, so nothing is counted before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.records import Origin
from pipeline import checkpoint

_MOST_NAMED = 8


class StepRows:
    """Keeps what this rank's micro-batches of the running step were made of."""

    def __init__(self) -> None:
        self._step = -1
        self._batches: list[Any] = []

    def note(self, step: int, batch: Any) -> None:
        """Add a micro-batch; the first of another step drops those before it.

        Args:
            step: that is running.
            batch: as the trainer computes on it.
        """
        if step != self._step:
            self._step, self._batches = step, []
        self._batches.append(batch)

    def told(self, data: Any, origins: Sequence[Origin], *, last_only: bool) -> str:
        """The rows in words: where they stand in their files, else their places in the training set, counted from 0.

        Args:
            data: the trainer's set of rows.
            origins: of its rows, in its order; empty where they are not known.
            last_only: of the last micro-batch and not of the whole step.

        Returns:
            Nothing where they cannot be told, as of rows that were packed.
        """
        batches = self._batches[-1:] if last_only else self._batches
        found = sorted({index for batch in batches for index in rows_in(batch, data)})
        known = len(origins) == len(data)
        return named([f"{origins[index].source}:{origins[index].row}" if known else str(index) for index in found])


def named(names: Sequence[str]) -> str:
    """The first few of many rows, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def last_complete(folder: Path) -> str:
    """Which checkpoint a stage would go on from, in words."""
    last = checkpoint.newest_marked(folder)
    return f"{last.name} in {last.parent} is the last complete one" if last else "no checkpoint is complete yet"


def rows_in(batch: Any, data: Any) -> list[int]:
    """Indices in `data` of a micro-batch's rows, and of those that are like them to the token."""
    if hasattr(batch, "rows"):
        return [index for index in range(len(data)) if data[index] in batch.rows]
    if not isinstance(batch, Mapping) or not {"input_ids", "attention_mask"} <= batch.keys():
        return []
    pairs = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    sequences = {tuple(token for token, real in zip(*each, strict=True) if real) for each in pairs}
    return [index for index in range(len(data)) if sequences.intersection(_sequences(data[index]))]


def _sequences(row: Mapping[str, Any]) -> Iterable[tuple[int, ...]]:
    """Of a row in one of the shapes that the library's trainers take."""
    if "seq_lengths" in row:  # several, packed into one
        return []
    prompt = row.get("prompt_ids") or []
    return [(*prompt, *row[name]) for name in ("input_ids", "chosen_ids", "rejected_ids") if name in row]
