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
from pipeline.context import StageContext, engine_of
from pipeline.durable import read_json, write_json_atomically
from pipeline.faults import reach
from pipeline.models.roles import POLICY, Roles
from pipeline.models.saved_state import state_being_read
from pipeline.models.shards import fill, stored_bytes, whole_copies
from pipeline.recipe.engines import NO_ENGINE
from pipeline.runtime import barrier
from pipeline.stages.ppo_selection import Measurement
from pipeline.stages.ppo_update import Learner
from pipeline.stages.spreading import made_by, require_resumable

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
        context: of the stage.
        roles: whose trained parameters are kept.
        learner: whose optimisers are kept.
    """

    def __init__(self, context: StageContext, roles: Roles, learner: Learner):
        self._context = context
        self._folder = context.checkpoints
        self._roles = roles
        self._learner = learner
        self._is_first = context.ranks.is_first
        self._selected: dict[str, Tensor] = {}
        # Weights and AdamW's two moments of each role, and the policy that is selected.
        roles_bytes = [stored_bytes(roles.trainable(role)) for role in roles.learning]
        self._expected = 3 * sum(roles_bytes) + roles_bytes[0] if self._is_first else None
        if self._expected is not None and (warning := checkpoint.will_fit(self._folder, self._expected)):
            context.console.say(warning)

    def select(self) -> None:
        """Remember the policy as it is now as the one to hand on."""
        self._selected = _tensors(self._roles.trainable(POLICY))

    def restore_selected(self) -> None:
        """Put the policy that was selected back into the model; without one the last stays."""
        if self._selected:
            _fill(self._roles.trainable(POLICY), self._selected)

    def save(self, progress: Progress) -> None:
        """Write a checkpoint and drop the one before it, once this one is complete."""
        saved = self._folder / f"checkpoint-{progress.rollouts}"
        with checkpoint.being_written(saved, self._expected):
            if self._is_first:
                saved.mkdir(parents=True, exist_ok=True)
            barrier()
            for role in self._roles.learning:
                self._save_role(role, saved)
            if self._is_first:
                if self._selected:
                    save_file(self._selected, saved / _SELECTED)
                reach("checkpoint.torn", saved)
                torch.save(self._optimisers(), saved / _OPTIMISERS)
                write_json_atomically(saved / _STATE, asdict(progress))
        barrier()
        if self._is_first:
            checkpoint.commit(saved, made_by(self._context))
            checkpoint.keep_only(self._folder, saved)
        barrier()

    def _save_role(self, role: str, saved: Path) -> None:
        engine = self._roles.engine(role)
        if engine is not None:
            engine.save(saved / role)
        elif self._is_first:
            save_file(_tensors(self._roles.trainable(role)), saved / f"{role}.safetensors")

    def load(self, found: Path) -> Progress:
        """Take over everything from a complete checkpoint."""
        with state_being_read(found, engine_of(self._context)):
            state = torch.load(found / _OPTIMISERS, map_location="cpu", weights_only=True)
            for role in self._roles.learning:
                self._load_role(role, found, state)
        self._selected = load_file(found / _SELECTED) if (found / _SELECTED).is_file() else {}
        self._learner.steps = state["steps"]
        values = read_json(found / _STATE)
        for name in ("before", "selected"):
            values[name] = None if values[name] is None else Measurement(**values[name])
        return Progress(**values)

    def _load_role(self, role: str, found: Path, state: dict[str, Any]) -> None:
        engine = self._roles.engine(role)
        if engine is not None:
            engine.load(found / role)
        else:
            _fill(self._roles.trainable(role), load_file(found / f"{role}.safetensors"))
            self._learner.optimisers[role].load_state_dict(state[role])

    def _optimisers(self) -> dict[str, Any]:
        whole = {role: each for role, each in self._learner.optimisers.items() if self._roles.engine(role) is None}
        return {"steps": self._learner.steps, **{role: each.state_dict() for role, each in whole.items()}}


def require_same_launch(found: Path, context: StageContext) -> None:
    """Refuse a checkpoint of another engine, or of another number of ranks where each keeps a share.

    Where nothing is shared out, what is learnt is the same on any number of them.

    Raises:
        TrivetError: naming both sides and what to do.
    """
    shared_out = engine_of(context).kind == "deepspeed"
    if shared_out or checkpoint.made_by(found).get("engine", str(NO_ENGINE)) != str(NO_ENGINE):
        require_resumable(found, context)


def _tensors(parameters: Sequence[Parameter]) -> dict[str, Tensor]:
    return {f"{index:05d}": value.contiguous() for index, value in enumerate(whole_copies(parameters))}


def _fill(parameters: Sequence[Parameter], tensors: dict[str, Tensor]) -> None:
    fill(parameters, [tensors[f"{index:05d}"] for index in range(len(parameters))])
