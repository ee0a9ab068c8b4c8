"""What is called between the steps of the library's trainers: progress, metrics, requests to stop, measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.batch_order import EpochSampler
from pipeline.context import StageContext
from pipeline.faults import reach

_UNTRACKED = ("epoch", "total_flos", "step")


class PassCallback(TrainerCallback):
    """Tells a sampler which pass begins: not every data loader of the library's hands that on.

    Args:
        sampler: of the trainer.
    """

    def __init__(self, sampler: EpochSampler):
        self._sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the pass, which a resumed run may be in the middle of."""
        self._sampler.set_epoch(int(round(state.epoch or 0.0, 6)))


class Watcher(Protocol):
    """Measures the model on a schedule while it trains; every rank makes the same calls."""

    @property
    def figures(self) -> Sequence[str]:
        """Names of what it logs on held-out data."""

    @property
    def stopped(self) -> str:
        """Why training is to end before its last step; empty if it is not."""

    def rewind(self, checkpoint: Path | None) -> None:
        """Go on from a complete checkpoint, or begin without one."""

    def due(self, step: int, last: int) -> bool:
        """Whether a measurement belongs after this step."""

    def look(self, step: int, logged: Sequence[Mapping[str, Any]]) -> None:
        """Measure; `logged` are the trainer's averages so far."""

    def save(self, checkpoint: Path) -> None:
        """Put its state into a checkpoint that is being written (first rank only)."""


class StepCallback(TrainerCallback):
    """Between steps: progress for the person, metrics for the tracker, an ear for requests to stop."""

    def __init__(self, context: StageContext):
        self._context = context
        self.preempted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock that the time left is told from."""
        self._context.expect_steps(state.max_steps)
        self._context.console.progress("step", state.global_step, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop if any rank was asked to; close the window of logged averages at every checkpoint."""
        reach("step.taken")
        if self._context.stop.agreed():
            self.preempted = state.global_step < state.max_steps
            control.should_save = True
            control.should_training_stop = True
        # Averages over a window that a checkpoint cuts would differ after resuming, so a save also logs.
        if control.should_save or state.global_step % args.save_steps == 0 or state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand the trainer's averages to the tracker and show the loss."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        values = {name: float(value) for name, value in logs.items() if _is_number(value) and name not in _UNTRACKED}
        self._context.tracker.log(state.global_step, "train", values)
        self._context.console.progress("step", state.global_step, state.max_steps, f"loss {values['loss']:.4f}")


class WatchCallback(TrainerCallback):
    """Calls the watcher before the first step, and has the trainer call it whenever it is due."""

    def __init__(self, watcher: Watcher):
        self._watcher = watcher

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure what training starts from, unless it goes on from later."""
        if state.global_step == 0:
            self._watcher.look(0, [])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Close the window of logged averages and ask for a measurement."""
        if self._watcher.due(state.global_step, state.max_steps):
            control.should_log = control.should_evaluate = True
        return control


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
