"""What DeepSpeed does that no result tells: what it keeps on the host, how often it gathers a policy to sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.models.shards import is_spread
from pipeline.rollouts.generate import Generator
from pipeline.stages.ppo_engine import PolicyEngine


@contextmanager
def engines_seen(deepspeed: str, seen: list[list[str]]) -> Iterator[None]:
    """Within the block each engine tells where its parameters lie, whether it offloads its optimiser, and who steps.

    Args:
        deepspeed: of the recipe; nothing is looked at below ZeRO-3.
        seen: takes what each one tells.
    """
    if not deepspeed.startswith("zero3"):
        yield
        return
    import deepspeed as library

    initialise = library.initialize

    def seeing(*args: Any, **kwargs: Any) -> Any:
        made = initialise(*args, **kwargs)
        seen.append(_told(made[0].optimizer))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "initialize", seeing)
        yield


@contextmanager
def gathers_seen(deepspeed: str, seen: list[tuple[float, int]]) -> Iterator[None]:
    """Within the block every sampling of answers tells what was gathered for it, and in how many batches it was made.

    Args:
        deepspeed: of the recipe; nothing is looked at below ZeRO-3.
        seen: takes numbers that all ranks received, per number in the policy's spread parameters; and batches.
    """
    if not deepspeed.startswith("zero3"):
        yield
        return
    from deepspeed.comm.torch import TorchBackend

    gathered, batches = [0], [0]

    def counting(gather: Any) -> Any:
        def count(self: Any, *given: Any, **named: Any) -> Any:
            # What receives comes first, by whatever name.
            output = (*given, *named.values())[0]
            gathered[0] += sum(each.numel() for each in ([output] if isinstance(output, Tensor) else output))
            return gather(self, *given, **named)

        return count

    answers, batch = PolicyEngine.answers, Generator._batch

    def batched(self: Any, *arguments: Any) -> Any:
        batches[0] += 1
        return batch(self, *arguments)

    def answering(self: Any, *arguments: Any) -> Any:
        gathered[0] = batches[0] = 0
        found = answers(self, *arguments)
        shares = [each.ds_tensor.ds_numel for each in self._roles._generator.parameters() if is_spread(each)]
        seen.append((gathered[0] / (sum(shares) * torch.distributed.get_world_size()), batches[0]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather_into_tensor", "all_gather", "all_gather_coalesced"):
            patch.setattr(TorchBackend, name, counting(getattr(TorchBackend, name)))
        patch.setattr(Generator, "_batch", batched)
        patch.setattr(PolicyEngine, "answers", answering)
        yield


def _told(outer: Any) -> list[str]:
    device = getattr(outer, "parameter_offload", outer).offload_device
    where = [f"parameters={device}", f"optimiser={getattr(outer, 'offload_optimizer', None)}"]
    stepping = getattr(outer, "optimizer", None)
    groups = [] if stepping is None else stepping.param_groups
    return where + sorted({f"{type(stepping).__name__}, fused={group.get('fused')}" for group in groups})
