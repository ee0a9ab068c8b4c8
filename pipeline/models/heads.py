"""Scalar heads: one number for a sequence (reward) or for every position of it (value), always in float32.

bfloat16 has eight significant bits, so that a score near 8 moves in steps of 1/32 and different answers tie. Which
position a sequence is read at comes from the mask that was carried along, never from ids: padding may share its id
with the end of turn. Layer 2.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.batches import positions
from pipeline.models.forward import hidden_states, trunk_of

ScalarHead = Callable[[Tensor], Tensor]
"""From hidden states (..., H) to numbers (..., 1)."""


class Float32Head(nn.Linear):
    """A linear layer that computes in float32 even where an engine has rounded its weights to a shorter type."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., H) to numbers (..., 1)."""
        return nn.functional.linear(hidden.float(), self.weight.float())


def new_head(hidden_size: int, seed: int) -> nn.Linear:
    """A linear map from H to 1 without bias, in float32, that depends on the seed alone and leaves torch's as it is.

    Weights are N(0, 1 / (H + 1)), so that scores start near unit size (as in arXiv 2403.17031).
    """
    head: nn.Linear = nn.utils.skip_init(Float32Head, hidden_size, 1, bias=False, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=(hidden_size + 1) ** -0.5, generator=generator)
    return head


def scores_at_end(hidden_BTH: Tensor, head: ScalarHead, mask_BT: Tensor) -> Tensor:
    """The head's number at the last real token of each sequence (B,), float32.

    Args:
        hidden_BTH: last hidden states, in any precision.
        head: its weights float32.
        mask_BT: true on real tokens; padding may stand before or behind them.

    Raises:
        ValueError: a row without a real token, or shapes that do not belong together.
    """
    if mask_BT.shape != hidden_BTH.shape[:2]:
        raise ValueError(f"hidden states of shape {tuple(hidden_BTH.shape)} but a mask of {tuple(mask_BT.shape)}")
    mask = mask_BT.to(hidden_BTH.device).bool()
    empty = (~mask.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"sequence {empty[0]} of the batch has no token that its mask counts as real")
    last = mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1)
    rows = torch.arange(mask.shape[0], device=mask.device)
    return values_at(hidden_BTH[rows, last], head)


def values_at(hidden: Tensor, head: ScalarHead) -> Tensor:
    """The head's number at every position: (..., H) to (...), float32 even within an autocast region."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float()).squeeze(-1)


def sequence_scores(model: Any, head: ScalarHead, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The raw score of each sequence (B,), float32, on the model's device.

    Args:
        model: a causal or classifying model, in PEFT's wrapper or not, with the reward model's adapter active.
        head: the reward model's, on the model's device.
        ids_BT: tokens; what stands on padding never matters.
        mask_BT: true on real tokens; padding may stand before or behind them.
    """
    hidden = hidden_states(trunk_of(model), ids_BT, mask_BT, positions(mask_BT))
    return scores_at_end(hidden, head, mask_BT)


def with_head(model: Any, head: nn.Module) -> Any:
    """Give a sequence-classification model of transformers this head, read at the end of the attention mask.

    As it comes it reads the last token whose id is not the padding's, one token early where a sequence ends with that
    id. Whatever else is passed to it, such as the pair margins that TRL hands on to every model, changes nothing.

    Args:
        model: as `load.load_classifier` gives it, before any adapter is put on it.
        head: becomes its `score` and is moved to its device; it keeps its float32.
    """
    from transformers.modeling_outputs import SequenceClassifierOutput

    def forward(self: Any, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        scores = sequence_scores(self, self.score, input_ids, attention_mask.bool())
        return SequenceClassifierOutput(logits=scores[:, None])

    model.score = head.to(next(trunk_of(model).parameters()).device)
    model.forward = MethodType(forward, model)
    return model
