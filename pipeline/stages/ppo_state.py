"""Everything a PPO run needs to go on bit for bit where it was killed, written under the commit protocol.

Sampling noise and the order of rows follow from seeds and counters, so there is no generator's state to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from pipeline import checkpoint
from pipeline.durable import full_disk_named, read_json, write_json_atomically
from pipeline.models.roles import POLICY, VALUE, Roles
from pipeline.runtime import barrier
from pipeline.stages.ppo_selection import Measurement
from pipeline.stages.ppo_update import Learner

_STATE, _OPTIMISERS, _SELECTED = "state.json", "optimisers.pt", "selected.safetensors"


@dataclass(slots=True)
class Progress:
    """Where a PPO run stands, besides its weights and optimisers."""

    rollouts: int = 0
    """Finished ones."""
    kl_coef: float = 0.0
    episodes: int = 0
    first_maxdev: float = 0.0
    """Largest ratio_first_minibatch_maxdev of all rollouts so far."""
    never_stopped: int = 0
    """Rollouts in a row without one answer that ended by itself."""
    all_empty: int = 0
    """Rollouts in a row with nothing but empty answers."""
    over_budget: str = ""
    """Why training ended early, if it did."""
    before: Measurement | None = None
    selected: Measurement | None = None
    measured: list[dict[str, float]] = field(default_factory=list)
    """Step, score, KL and objective of every measurement, for the report."""
    scores: list[float] = field(default_factory=list)
    """Mean training reward of every rollout."""
    turned: dict[str, Any] | None = None
    """Where the score that is watched turned, once that has shown."""
    stopped: str = ""
    """Why training ended for that, if it did."""


class Keeper:
    """Writes and reads a run's checkpoints.

    Args:
        folder: where they lie.
        roles: whose trained parameters are kept.
        learner: whose optimisers are kept.
        is_first: whether this rank writes.
    """

    def __init__(self, folder: Path, roles: Roles, learner: Learner, is_first: bool):
        self._folder = folder
        self._roles = roles
        self._learner = learner
        self._is_first = is_first
        self._selected: dict[str, Tensor] = {}

    def select(self) -> None:
        """Remember the policy as it is now as the one to hand on."""
        self._selected = {name: tensor.clone() for name, tensor in _tensors(self._roles.trainable(POLICY)).items()}

    def restore_selected(self) -> None:
        """Put the policy that was selected back into the model; without one the last stays."""
        if self._selected:
            _fill(self._roles.trainable(POLICY), self._selected)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint and drop the one before it, once this one is complete."""
        saved = self._folder / f"checkpoint-{progress.rollouts}"
        if self._is_first:
            with full_disk_named(self._folder):
                saved.mkdir(parents=True, exist_ok=True)
                for role in (POLICY, VALUE):
                    save_file(_tensors(self._roles.trainable(role)), saved / f"{role}.safetensors")
                if self._selected:
                    save_file(self._selected, saved / _SELECTED)
                torch.save(self._optimisers(), saved / _OPTIMISERS)
                write_json_atomically(saved / _STATE, asdict(progress))
        barrier()
        if self._is_first:
            checkpoint.commit(saved)
            checkpoint.keep_only(self._folder, saved)
        barrier()

    def load(self, found: Path) -> Progress:
        """Take over everything from a complete checkpoint."""
        for role in (POLICY, VALUE):
            _fill(self._roles.trainable(role), load_file(found / f"{role}.safetensors"))
        self._selected = load_file(found / _SELECTED) if (found / _SELECTED).is_file() else {}
        state = torch.load(found / _OPTIMISERS, map_location="cpu", weights_only=True)
        for role, optimiser in self._learner.optimisers.items():
            optimiser.load_state_dict(state[role])
        self._learner.steps = state["steps"]
        values = read_json(found / _STATE)
        for name in ("before", "selected"):
            values[name] = None if values[name] is None else Measurement(**values[name])
        return Progress(**values)

    def _optimisers(self) -> dict[str, Any]:
        states = {role: optimiser.state_dict() for role, optimiser in self._learner.optimisers.items()}
        return {"steps": self._learner.steps, **states}


def _tensors(parameters: Sequence[Parameter]) -> dict[str, Tensor]:
    return {f"{index:05d}": parameter.detach().cpu().contiguous() for index, parameter in enumerate(parameters)}


@torch.no_grad()
def _fill(parameters: Sequence[Parameter], tensors: dict[str, Tensor]) -> None:
    for index, parameter in enumerate(parameters):
        parameter.copy_(tensors[f"{index:05d}"])
