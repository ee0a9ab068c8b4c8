"""How SFT's rows go into batches: each on its own, grouped by length, or packed end to end, without changing the loss.

Packing is TRL's: rows are laid end to end (best fit first) and flattened without padding, and position ids that begin
anew tell the attention where one row ends. That is exact where the model's attention honours it, which is tried on the
model itself before training; where it does not, the stage is refused. The loss is a mean over the trained tokens of a
whole optimiser step in any case, so neither packing nor padding weighs a row differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from data_prep.chat import EncodedDemonstration
from pipeline.batch_order import EpochSampler, GroupedSampler, ShuffledSampler
from pipeline.errors import RecipeError
from pipeline.recipe.stage_settings import SftSettings
from pipeline.runtime import autocast

IGNORED = -100
"""The label value that transformers' losses leave out."""
_TRIED = 48
"""Tokens of each of the two rows on which the attention is tried."""
_LEAK = {"fp32": 1e-4}
_SHIFT = {"fp32": 1e-2}
_COARSE = 0.1
"""How much of the logits' deviation may differ: by what stands before, and between packed and alone. In half precision
kernels round differently for other shapes."""


def batch_arguments(settings: SftSettings, max_length: int) -> dict[str, Any]:
    """The fields of `SFTConfig` that say how rows become batches."""
    return {
        "packing": settings.packing,
        "max_length": max_length if settings.packing else None,
        "train_sampling_strategy": "group_by_length" if settings.group_by_length else "random",
    }


def trainer_rows(rows: Sequence[EncodedDemonstration], settings: SftSettings, max_length: int, seed: int) -> Dataset:
    """The trainer's rows: ids, and labels on answers only; packed where the stage asks for it."""
    found = Dataset.from_list([_row(row) for row in rows])
    if not settings.packing:
        return found
    # As TRL does it: shuffled first, so that rows of like length from one source do not all meet in one sequence.
    shuffled = found.shuffle(seed=seed)
    return pack_dataset(shuffled, max_length, "bfd", {"batch_size": len(shuffled)})


def row_order(rows: Sequence[EncodedDemonstration], settings: SftSettings, seed: int) -> EpochSampler:
    """The order of rows where the library does not draw it."""
    if settings.group_by_length:
        return GroupedSampler([len(row.input_ids) for row in rows], settings.global_batch_size, seed)
    return ShuffledSampler(len(rows), seed)


def require_rows_apart(
    model: Any, rows: Sequence[EncodedDemonstration], pad_id: int, precision: str, stage: str
) -> None:
    """Try on the model whether rows that are packed into one sequence leave one another alone.

    Args:
        model: the policy to be trained.
        rows: of the stage.
        pad_id: of its tokenizer.
        precision: of the forward pass.
        stage: for the message.

    Raises:
        RecipeError: they do not, so that training on packed rows would not be training on rows.
    """
    if len(rows) < 2:
        return
    first, second = (list(row.input_ids[:_TRIED]) for row in rows[:2])
    # Nothing in common with the row it stands for, and as long: a difference behind it can only come from seeing it.
    other = [next(token for token in second if token != was) if len(set(second)) > 1 else pad_id for was in first]
    was_training = model.training
    model.eval()
    try:
        behind, behind_other = (_last_logits(model, [head, second], pad_id, precision) for head in (first, other))
        alone = _last_logits(model, [second], pad_id, precision)
    finally:
        model.train(was_training)
    spread = float(alone.std()) or 1.0
    leak = float((behind - behind_other).abs().max()) / spread
    shift = float((behind - alone).abs().max()) / spread
    if leak > _LEAK.get(precision, _COARSE) or shift > _SHIFT.get(precision, _COARSE):
        kind = getattr(model.config, "_attn_implementation", "its own")
        raise RecipeError(
            f"stages.{stage}.packing: with {type(model).__name__} and {kind} attention a packed row is changed by what "
            f"stands before it (its logits by {max(leak, shift):.2g} of their deviation), so packing would train on "
            "something else than the rows; set packing: false (group_by_length: true saves most of the padding too), "
            "or another model.attention"
        )


def _last_logits(model: Any, parts: Sequence[list[int]], pad_id: int, precision: str) -> torch.Tensor:
    """Logits (T, V) of the last part, in float32, as the trainer's own collator lays the parts out."""
    collator = DataCollatorForLanguageModeling(pad_token_id=pad_id, padding_free=True)
    ids = [token for part in parts for token in part]
    batch = collator([{"input_ids": ids, "seq_lengths": [len(part) for part in parts]}])
    place = next(model.parameters()).device
    inputs = {k: v.to(place) if torch.is_tensor(v) else v for k, v in batch.items() if k != "labels"}
    with torch.no_grad(), autocast(precision):
        logits = model(**inputs, use_cache=False).logits
    return logits[0, -len(parts[-1]) :].float()


def _row(row: EncodedDemonstration) -> dict[str, list[int]]:
    labels = [token if trained else IGNORED for token, trained in zip(row.input_ids, row.response_mask, strict=True)]
    return {"input_ids": row.input_ids, "labels": labels}
