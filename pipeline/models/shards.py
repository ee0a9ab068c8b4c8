"""Models whose parameters an engine spreads over the ranks: to spread them (ZeRO-3), see them whole, take them home.

Between two layers a rank holds its share of every parameter and nothing else, so whatever reads a weight, and does not
call the layer that owns it, must ask for the whole first. All of it is collective: every rank makes the same calls, as
many of them, in the same order. Layer 2; DeepSpeed is imported only where a parameter is spread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.fully_sharded import is_fully_sharded, resharded, whole_tensor


def is_spread(parameter: Tensor) -> bool:
    """Whether a parameter is ZeRO-3's."""
    return hasattr(parameter, "ds_id")


def _is_in_pieces(parameter: Any) -> bool:
    return bool(parameter.ds_status.name != "AVAILABLE")


def stored_bytes(parameters: Iterable[Tensor]) -> int:
    """What parameters take on a disk: whole, wherever their shares are, in the type they have here."""
    return sum(getattr(each, "ds_numel", each.numel()) * each.element_size() for each in parameters)


def is_spread_model(model: nn.Module) -> bool:
    """Whether a model's parameters are ZeRO-3's or FSDP's; then all ranks must call it equally often."""
    return any(map(is_spread, model.parameters())) or is_fully_sharded(model)


@contextmanager
def whole(*parameters: Tensor) -> Iterator[None]:
    """Every rank sees these parameters whole within the block; nothing happens to those that are.

    They are, for one, within the engine's own forward pass, where reading a layer's weight is enough to gather it until
    the pass is over.
    """
    spread = [parameter for parameter in parameters if is_spread(parameter) and _is_in_pieces(parameter)]
    if not spread:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(spread):
        yield


@contextmanager
def whole_model(model: nn.Module) -> Iterator[None]:
    """Every rank holds the whole model within the block, and may call it as often as it likes.

    For generation, where ranks' answers differ in length: gathered once, not layer by layer for every token. It costs
    the memory of all weights, in the type that they are kept in, on each rank, and not at the time of a backward pass.
    Nothing happens to a model that is whole.

    Args:
        model: every rank enters with its own; no gradient is taken within the block.
    """
    spread = [parameter for parameter in model.parameters() if is_spread(parameter)]
    if not spread:
        yield
        return
    with whole(*spread), _without_hooks(model):
        yield


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Take off what would give weights back after each layer, and have all ranks agree on the order of the calls."""
    hooks = ("_forward_pre_hooks", "_forward_hooks")
    kept = [(module, name, getattr(module, name)) for module in model.modules() for name in hooks]
    try:
        for module, name, _ in kept:
            setattr(module, name, OrderedDict())
        yield
    finally:
        for module, name, own in kept:
            setattr(module, name, own)


def whole_copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Copies of parameters on the CPU; of spread ones on the first rank alone, empty tensors elsewhere."""
    found = []
    for parameter in parameters:
        with whole(parameter):
            here = not is_spread(parameter) or torch.distributed.get_rank() == 0
            found.append(parameter.detach().cpu().clone() if here else torch.empty(0))
    return found


@torch.no_grad()
def fill(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Put values into parameters, in place; into spread ones the first rank's."""
    for parameter, value in zip(parameters, values, strict=True):
        if not is_spread(parameter):
            parameter.copy_(value)
            continue
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                parameter.copy_(value)


def scoring_mode(model: nn.Module) -> Any:
    """Context without gradients: inference mode where it may be.

    What an engine gathers inside inference mode it may keep for the next training step, which refuses such tensors.
    """
    return torch.no_grad() if is_spread_model(model) else torch.inference_mode()


def spread_over_ranks(model: nn.Module, zero: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Turn a model in the host's memory into ZeRO-3's, parameter by parameter.

    Left to itself the engine first moves the whole model onto every GPU, which a model that needs ZeRO-3 does not fit.

    Args:
        model: the same on every rank.
        zero: the part `zero_optimization` of DeepSpeed's configuration.
        dtype: that the engine computes in; parameters are converted first, as it takes them for converted.
    """
    from deepspeed.runtime.zero import Init

    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    where = (zero.get("offload_param") or {}).get("device", "none")
    # The batch size has no part in this, but without one the configuration is refused.
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": dict(zero)}
    Init(module=model, config_dict_or_path=config, remote_device=None if where == "none" else where, dtype=dtype)
    for buffer in model.buffers():
        # Parameters are brought to the device one by one; nobody brings what lies beside them.
        buffer.data = buffer.data.to(next(model.parameters()).device)


def whole_state(model: nn.Module, *, trained_only: bool) -> dict[str, Tensor] | None:
    """Parameters and buffers by name, whole and on the CPU, as `save_pretrained` takes them; None where none is spread.

    Args:
        model: every rank calls with its own; all get a dictionary, only the first rank's is filled.
        trained_only: leave out parameters that are frozen.
    """
    resharded(model)
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad or not trained_only]
    if not any(map(is_spread, wanted)) and not is_fully_sharded(model):
        return None
    first = torch.distributed.get_rank() == 0
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        with whole(parameter):
            value = whole_tensor(parameter)
            if first:
                found[name] = value.detach().cpu().clone()
    if first:
        found.update((name, buffer.detach().cpu()) for name, buffer in _saved_buffers(model))
    return found


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer
