"""DeepSpeed's engine around the parameters that one PPO role trains, and around models that nothing trains.

PPO has two trainings in one process, of policy and value model, each with its own optimiser, clipping and moment to
step. DeepSpeed clips by one norm and steps all that an engine holds, so each role has an engine of its own:

- ZeRO-1 and ZeRO-2 need nothing of a model but the parameters: their hooks sit on those. So two engines can share one
  module, which policy and value adapters on one base do.
- ZeRO-3 hooks into the modules of what it spreads, which belongs to one engine alone. Full models have one each. Two
  adapters on one base have none: the base, which nothing trains, is spread before adapters are put on it, and they stay
  whole on every rank with optimisers of ours. They are some hundredths of the base.

Weights keep float32, and forward passes are autocast, as without an engine: what is learnt does not depend on it.
Layer 2; DeepSpeed is imported where an engine is made.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from pipeline.models.shards import spread_over_ranks

T = TypeVar("T")
Config = Mapping[str, Any]
"""DeepSpeed's configuration, nothing in it `auto`."""
_TAG = "state"


class RoleEngine:
    """Forward, backward and optimiser steps of one role, through DeepSpeed.

    Args:
        held: modules to spread (ZeRO-3), or the bare parameters; every rank the same.
        optimiser: over exactly the parameters that are trained; it becomes the engine's.
        config: of DeepSpeed.
    """

    def __init__(self, held: Sequence[nn.Module] | Sequence[Parameter], optimiser: Any, config: Config):
        import deepspeed

        for group in optimiser.param_groups:
            for parameter in group["params"]:
                # It takes for frozen what does not ask for a gradient at this moment.
                parameter.requires_grad_(True)
        self._root = _Root(held)
        self._engine, *_ = deepspeed.initialize(model=self._root, optimizer=optimiser, config=dict(config))
        self._world_size = torch.distributed.get_world_size()

    def forward(self, work: Callable[[], T]) -> T:
        """What `work` gives; its passes through the role's modules are seen by the engine."""
        self._root.work = work
        found: T = self._engine()
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add to the step's gradient: the sum over all ranks and calls.

        Args:
            loss: of this rank's part.
            last: whether a step or nothing follows.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        # The engine takes the mean over ranks.
        self._engine.backward(loss * self._world_size)

    def step(self) -> float:
        """Clip, step and forget the gradient; its norm before clipping, infinite where no step was taken for it."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        """Write parameters and optimiser state; every rank calls and writes its share."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Take over what as many ranks have saved; within `state_being_read`, as DeepSpeed runs what its files say."""
        self._engine.load_checkpoint(str(folder), tag=_TAG)


class _Root(nn.Module):
    """What an engine is made around: it calls no module itself, but whatever it is given to do."""

    def __init__(self, held: Sequence[nn.Module] | Sequence[Parameter]):
        super().__init__()
        self.held: nn.Module
        if all(isinstance(each, Parameter) for each in held):
            self.held = nn.ParameterList(held)
        else:
            self.held = nn.ModuleList(held)  # type: ignore[arg-type]
        self.work: Callable[[], Any] | None = None

    def forward(self) -> Any:
        work, self.work = self.work, None
        assert work is not None
        return work()


class SpreadModel:
    """A model that nothing trains, spread by ZeRO-3; each call of its trunk gathers layer after layer.

    Args:
        model: in the host's memory, causal or a trunk, without adapters.
        trunk: the part of it that is called; adapters put on it afterwards stay whole.
        config: of DeepSpeed.
    """

    def __init__(self, model: Any, trunk: Any, config: Config):
        import deepspeed

        spread_over_ranks(model, config["zero_optimization"], next(model.parameters()).dtype)
        self._engine, *_ = deepspeed.initialize(model=trunk, config=dict(config))

    def after_backward(self) -> None:
        """Give back layers whose input had no gradient, which nothing else notices."""
        self._engine.optimizer.release_backward_leftovers()


def join_deepspeed() -> None:
    """Let DeepSpeed use the process group; a process on its own gets one."""
    import deepspeed

    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        torch.distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
