"""Models whose parameters torch's FSDP2 spreads over the ranks, each decoder layer by itself and the rest together.

A layer's weights are whole while it computes; those of the rest (embeddings, norm, output layer, scalar head) while the
outermost module's forward pass runs. So whatever calls parts of a model, or reads a weight, does it within that pass
(`computed_within`). All of it is collective: every rank makes the same calls in the same order. Layer 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

T = TypeVar("T")
_WITHIN = "compute_within"


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is spread; between two passes its weights may still be whole."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def computed_within(model: Any, work: Callable[[], T]) -> T:
    """What `work` gives, computed within a forward pass of a spread model; of any other model, simply that."""
    if not isinstance(model, FSDPModule):
        return work()
    if _WITHIN not in vars(model):
        setattr(model, _WITHIN, _call)
        register_fsdp_forward_method(model, _WITHIN)  # type: ignore[arg-type]
    found: T = vars(model)[_WITHIN](work)
    return found


def _call(work: Callable[[], T]) -> T:
    return work()


def begin(model: Any) -> None:
    """Let FSDP find its way through a model while all that is to be trained asks for gradients.

    It notes at the first pass in which type gradients are summed up, and a pass of a frozen adapter would tell it none.
    """
    computed_within(model, lambda: None)


def precision_policy(dtype: torch.dtype, *, whole: bool) -> MixedPrecisionPolicy:
    """In which types weights are gathered and gradients summed up.

    Autocast alone would do, but of weights that are trained whole it keeps a short copy for the backward pass, of every
    layer at once. So those are gathered in the short type; gradients are summed up in float32 in any case.

    Args:
        dtype: that passes are computed in.
        whole: whether the model's own weights are trained, and not adapters.
    """
    if not whole or dtype == torch.float32:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def shard(model: nn.Module, policy: MixedPrecisionPolicy, *, reshard: bool) -> None:
    """Spread a model that no optimiser has parameters of, as accelerate spreads the trained one.

    Args:
        model: the same on every rank, in the host's memory; its shares come to lie on the ranks' devices.
        policy: of `precision_policy`.
        reshard: whether layers are given back after their forward pass.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mp_policy=policy)


@contextmanager
def rest_together(model: Any) -> Iterator[None]:
    """Within the block accelerate leaves embeddings and output layer with the outermost module.

    By itself it spreads them apart, and gathers them where they are called: an output layer whose weight is read, and
    one that each rank calls as often as it has chunks of tokens, would then be in pieces.
    """
    names = ("get_input_embeddings", "get_output_embeddings")
    try:
        for name in names:
            setattr(model, name, lambda: None)
        yield
    finally:
        for name in names:
            delattr(model, name)


def resharded(model: nn.Module) -> None:
    """Give back what is whole from the last pass, which may be a copy in a shorter type."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_tensor(parameter: Tensor) -> Tensor:
    """A parameter's value, gathered where it is spread."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
