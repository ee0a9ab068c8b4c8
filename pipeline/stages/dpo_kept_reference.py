"""What DPO's reference says of all training pairs, asked once and kept from run to run.

The values belong to what they were computed from: weights, rows, batches, arithmetic, versions. A run that finds them
under that key goes on with the bits that it would have computed itself.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.chat import EncodedPair
from pipeline.artefact import Artefact
from pipeline.context import StageContext, engine_of, once
from pipeline.durable import cache_folder, read_json, sha256_json, write_json_atomically
from pipeline.errors import DiskError
from pipeline.models.load import device
from pipeline.runtime import from_first_rank, library_versions

_KEPT = 64
"""Files in the cache; of more the oldest go."""


class KeptReference:
    """Log-probabilities of the answers of training pairs under the reference, by the pairs' tokens."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[float, float]] = {}

    def fill(self, rows: Sequence[EncodedPair], logps: Sequence[float]) -> None:
        """Take in what is known of all rows: of every chosen answer, then of every rejected one."""
        chosen, rejected = logps[: len(rows)], logps[len(rows) :]
        self._known = {_name(row): (one, two) for row, one, two in zip(rows, chosen, rejected, strict=True)}

    def of(self, rows: Sequence[EncodedPair], where: torch.device) -> Tensor:
        """(B, 2), chosen and rejected, of rows that were taken in."""
        return torch.tensor([self._known[_name(row)] for row in rows], dtype=torch.float32, device=where)


def reference_of_rows(
    context: StageContext,
    parent: Artefact | None,
    rows: Sequence[EncodedPair],
    batch_size: int,
    precision: str,
    ask: Callable[[], list[float]],
) -> list[float]:
    """What the reference says of training rows: from this run, from an earlier one, or asked now. Every rank calls.

    Args:
        context: of the stage.
        parent: the policy that is the reference; None for the base model.
        rows: to train on.
        batch_size: answers per forward pass, on which the last bits depend.
        precision: of that pass.
        ask: computes the values of every chosen answer, then of every rejected one.
    """
    path = cache_folder() / "reference" / f"{_key(context, parent, rows, batch_size, precision)[:40]}.json"

    def found_or_asked() -> dict[str, Any]:
        known = from_first_rank(lambda: _read(path, 2 * len(rows)))
        if known is not None:
            context.console.say(f"the reference's log-probabilities of {len(rows)} pairs are known from an earlier run")
            return {"logps": known}
        asked = ask()
        if context.ranks.is_first:
            _write(path, asked)
        return {"logps": asked}

    return list(once(context, "reference", found_or_asked)["logps"])


def _key(
    context: StageContext, parent: Artefact | None, rows: Sequence[EncodedPair], batch_size: int, precision: str
) -> str:
    weights = [] if parent is None else [(each.path, each.sha256) for each in parent.manifest.files]
    folder = "" if parent is None else f"{parent.manifest.form}/"
    content = hashlib.sha256()
    for row in rows:
        content.update(_name(row))
    return sha256_json(
        {
            "base": context.base.fingerprint,
            "model": context.recipe.model.model_dump(mode="json", exclude={"base", "revision"}),
            "weights": sorted(each for each in weights if each[0].startswith(folder)),
            "rows": content.hexdigest(),
            "batch_size": batch_size,
            "precision": precision,
            "ranks": context.ranks.world_size,
            "engine": str(engine_of(context)),
            "device": _device_name(),
            "libraries": library_versions(),
        }
    )


def _device_name() -> str:
    """What sums are added up on, and so in which order."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _name(row: EncodedPair) -> bytes:
    """A pair's tokens as sixteen bytes."""
    parts = (row.prompt_ids, row.chosen_ids, row.rejected_ids)
    numbers = array("q", [each for part in parts for each in (len(part), *part)])
    return hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()


def _read(path: Path, count: int) -> list[float] | None:
    """The values, unless there are none or they are not what was written."""
    try:
        kept = read_json(path)
        values = kept["logps"]
        whole = kept["sha256"] == sha256_json(values) and len(values) == count and all(map(math.isfinite, values))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if whole else None


def _write(path: Path, values: list[float]) -> None:
    """Keep the values for later runs, if there is room: without them they are computed again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, {"sha256": sha256_json(values), "logps": values})
        for old in sorted(path.parent.glob("*.json"), key=lambda entry: -entry.stat().st_mtime)[_KEPT:]:
            old.unlink(missing_ok=True)
    except (OSError, DiskError):
        return
