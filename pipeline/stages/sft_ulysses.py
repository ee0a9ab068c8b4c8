"""DeepSpeed's Ulysses: attention over a row of which every process has a piece.

Each process has all heads of its piece; around every attention the pieces are exchanged for some heads of the whole
row, and back (arXiv 2309.14509, for transformers' models 2506.13996). Accelerate starts it. Here: for which models,
when its attention is in the place of the model's, and a trial whether the model in pieces is the model, as sliding
windows and recurrent layers would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.errors import RecipeError
from pipeline.models.forward import attends_in_streams, causal_model, evaluating, trunk_of, undropped
from pipeline.runtime import autocast, sum_over_ranks
from pipeline.stages.sft_pieces import Sharing


def parallelism(sharing: Sharing, model: Any, stage: str) -> ParallelismConfig:
    """What accelerate is told; the model attends in a way that DeepSpeed knows from then on.

    Args:
        sharing: of the launch.
        model: to be trained; from streams its attention goes back to the scaled dot products that they are made of.
        stage: for the message.

    Raises:
        RecipeError: heads of the model's attention cannot be dealt out.
    """
    if attends_in_streams(model):
        causal_model(model).set_attn_implementation("sdpa")
    if why := _why_not(model.config.get_text_config(), sharing.size):
        raise RecipeError(f"stages.{stage}.sequence_parallel_size: {why}")
    attention = DeepSpeedSequenceParallelConfig(
        sp_seq_length_is_variable=True, sp_attn_implementation=model.config._attn_implementation
    )
    return ParallelismConfig(
        dp_shard_size=sharing.groups, sp_size=sharing.size, sp_backend="deepspeed", sp_handler=attention
    )


def _why_not(config: Any, size: int) -> str | None:
    heads, shared = (getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if not heads or not shared:
        return (
            f"DeepSpeed deals out attention heads by num_attention_heads and num_key_value_heads, and a model of type "
            f"{config.model_type} does not say both; leave the key out"
        )
    if heads % size or (shared % size and size % shared):
        fits = [n for n in range(1, heads + 1) if heads % n == 0 and (shared % n == 0 or n % shared == 0)]
        return (
            f"the model's {heads} heads, of {shared} for keys and values, cannot be dealt out to {size} processes; "
            f"set it to one of {', '.join(map(str, fits))}"
        )
    others = sorted({kind for kind in getattr(config, "layer_types", None) or () if not _attends(kind)})
    if others:
        return (
            f"the model has layers of type {', '.join(others)}, which carry a state from piece to piece; leave it out"
        )
    if config._attn_implementation in ("eager", "flex_attention"):
        return (
            f"attention of kind {config._attn_implementation} looks at a mask of the whole row, which no process has; "
            "set model.attention to sdpa, where the model has it, or leave the key out"
        )
    return None


def _attends(kind: str) -> bool:
    return kind.endswith("attention") and not kind.startswith("linear")


class Exchange:
    """DeepSpeed's attention in the place of a model's own, where rows are in pieces and nowhere else.

    Left to itself it would stay there for good, with no mask for rows that are padded, as held-out ones are, and with
    the number of query heads that share a head of keys and values on one process.

    Args:
        model: that is to be prepared.
    """

    def __init__(self, model: Any):
        self._config = model.config
        self._name: str = model.config._attn_implementation
        self._own = self._exchanging = ALL_ATTENTION_FUNCTIONS[self._name]
        self._sharing_heads = [each for each in model.modules() if hasattr(each, "num_key_value_groups")]

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within the block DeepSpeed prepares the model; what it registers is kept for later."""
        text = self._config.get_text_config()
        unsaid = "head_dim" in vars(text) and text.head_dim is None
        if unsaid:
            text.head_dim = text.hidden_size // text.num_attention_heads
        try:
            yield
            self._exchanging = ALL_ATTENTION_FUNCTIONS[self._name]
        finally:
            ALL_ATTENTION_FUNCTIONS[self._name] = self._own
            if unsaid:
                text.head_dim = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within the block rows are in pieces."""
        groups = [each.num_key_value_groups for each in self._sharing_heads]
        ALL_ATTENTION_FUNCTIONS[self._name] = self._exchanging
        try:
            yield
        finally:
            ALL_ATTENTION_FUNCTIONS[self._name] = self._own
            for each, count in zip(self._sharing_heads, groups, strict=True):
                each.num_key_value_groups = count


def shift_in_pieces(model: Any, ids_BL: Tensor, sharing: Sharing, exchange: Exchange, precision: str) -> float:
    """How far a token's hidden state in pieces is at most from that in the row, of its length; the same on every rank.

    Every process computes the rows whole for this, without gradients.

    Args:
        model: prepared for training; all ranks call this together.
        ids_BL: rows without padding, as many as a micro-batch has.
        sharing: of the launch.
        exchange: of the model.
        precision: of the forward pass.
    """
    place = next(model.parameters()).device
    width = ids_BL.shape[1] // sharing.size
    ids_BL = ids_BL[:, : width * sharing.size].to(place)
    positions_BL = torch.arange(width * sharing.size, device=place).repeat(len(ids_BL), 1)
    mine = slice(sharing.place * width, (sharing.place + 1) * width)

    def states(columns: slice) -> Tensor:
        # NCCL gathers no views.
        ids, positions = (each[:, columns].contiguous() for each in (ids_BL, positions_BL))
        found = trunk_of(model)(input_ids=ids, position_ids=positions, use_cache=False)
        hidden: Tensor = found.last_hidden_state.float()
        return hidden

    with torch.no_grad(), autocast(precision), undropped(model):
        with evaluating(model):
            whole = states(slice(None))
        model.train()
        with exchange.used():
            apart = states(mine)
    shifts = torch.zeros(sharing.groups, sharing.size, device=place)
    shifts[sharing.group, sharing.place] = ((apart - whole[:, mine]).norm(dim=-1) / whole[:, mine].norm(dim=-1)).max()
    return float(sum_over_ranks(shifts).max())
