"""What SFT and DPO share: the library's trainer, made safe to kill, honest about NaN, and bit-identical on resume.

A stage mixes `CommittedTrainer` into the library's class, has `training_arguments` make its arguments, and calls `fit`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from data_prep.records import Origin
from pipeline import checkpoint
from pipeline.batch_order import EpochSampler
from pipeline.context import StageContext, engine_of
from pipeline.errors import PreemptedError, RecipeError, TrivetError
from pipeline.faults import reach, spoil
from pipeline.models.adapters import require_sound
from pipeline.models.forward import has_dropout
from pipeline.models.saved_state import state_being_read
from pipeline.models.shards import stored_bytes
from pipeline.recipe import draws_of_step, ds_config_file
from pipeline.recipe.engines import stage_engine
from pipeline.recipe.stage_settings import OfflineSettings
from pipeline.runtime import barrier, resolve_precision, seed_everything
from pipeline.stages import spreading
from pipeline.stages.batch_rows import StepRows, last_complete
from pipeline.stages.fully_sharded import FullyShardedTrainer, spread_each_batch
from pipeline.stages.offline_callbacks import PassCallback, StepCallback, WatchCallback, Watcher
from pipeline.stages.spreading import Before, BeginCallback

_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
_TWO_MOMENTS = ("adamw_torch", "adamw_torch_fused")
"""Optimisers that keep two numbers of its own type with every weight."""


class CommittedTrainer(FullyShardedTrainer):
    """Mixin for a library trainer: checkpoints count only once committed, values that are not finite stop the run."""

    made_by: Mapping[str, Any] = {}
    """Kept with every checkpoint."""
    watcher: Watcher | None = None
    """Called where the library would evaluate: after a step's averages are logged, before its checkpoint."""
    sampler: EpochSampler | None = None
    """In whose order rows are drawn; None for the library's own."""
    origins: Sequence[Origin] = ()
    """Where the rows come from, in the order of the training set; empty where nobody said."""
    step_rows: StepRows | None = None
    """What the running step is computed on, once there is one."""

    def draw_by(self, sampler: EpochSampler) -> None:
        """Draw rows in the order of this sampler."""
        self.sampler = sampler
        self.add_callback(PassCallback(sampler))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # The library's own draws from the process's generator, whose state differs after a resume and between ranks.
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        saved = folder / f"checkpoint-{self.state.global_step}"
        with checkpoint.being_written(saved, self.checkpoint_bytes() if self.is_world_process_zero() else None):
            super()._save_checkpoint(model, trial)
            if self.watcher is not None and self.is_world_process_zero():
                self.watcher.save(saved)
        barrier()
        if self.is_world_process_zero():
            for weights in sorted(saved.rglob("*.safetensors")):
                require_sound(weights)
            checkpoint.commit(saved, self.made_by)
            checkpoint.keep_only(folder, saved)
        barrier()

    def checkpoint_bytes(self) -> int:
        """What a checkpoint takes at least: weights in training, and AdamW's two moments of each."""
        model: Any = self.model
        trained = stored_bytes(each for each in model.parameters() if each.requires_grad)
        return 3 * trained if str(self.args.optim).rpartition(".")[2].lower() in _TWO_MOMENTS else trained

    def _save_rng_state(self, output_dir: Any) -> None:
        reach("checkpoint.torn", Path(output_dir))
        super()._save_rng_state(output_dir)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """What the stage measures on a schedule, in the place of the library's own evaluation."""
        if self.watcher is None:
            return super().evaluate(*args, **kwargs)
        self.control.should_evaluate = False
        self.watcher.look(self.state.global_step, self.state.log_history)
        if self.watcher.stopped:
            # A checkpoint of the end would take one step more when it is gone on from.
            self.control.should_training_stop, self.control.should_save = True, False
        return {}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card in a checkpoint: it is not a release."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The library's loss; one that is not finite ends the stage before it reaches gradients or weights."""
        reach("step.begun")
        self.note_rows(args[1] if len(args) > 1 else kwargs["inputs"])
        found = super().compute_loss(*args, **kwargs)
        loss = spoil("loss", found[0] if isinstance(found, tuple) else found)
        self.require_finite_loss(loss)
        return (loss, *found[1:]) if isinstance(found, tuple) else loss

    def note_rows(self, batch: Any) -> None:
        """Remember what a micro-batch is made of until the next step."""
        if self.step_rows is None:
            self.step_rows = StepRows()
        self.step_rows.note(self.state.global_step, batch)

    def require_finite_loss(self, loss: torch.Tensor) -> None:
        """Refuse a loss that is not finite.

        Raises:
            TrivetError: naming the step, the rows of the micro-batch and the last checkpoint.
        """
        if not torch.isfinite(loss):
            raise self._not_finite("loss", loss.item(), last_only=True)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = spoil("gradient", super()._get_grad_norm(model, grad_norm=grad_norm))
        # With fp16 the loss scaler meets overflow by design and skips such steps itself. DeepSpeed has taken the step
        # by now, but nothing of it has been saved.
        if norm is not None and not self.args.fp16 and not torch.isfinite(torch.as_tensor(norm)):
            raise self._not_finite("gradient norm", float(norm), last_only=False)
        return norm

    def _not_finite(self, what: str, value: float, *, last_only: bool) -> TrivetError:
        rows = self.step_rows.told(self.train_dataset, self.origins, last_only=last_only) if self.step_rows else ""
        kept = last_complete(Path(str(self.args.output_dir)))
        return TrivetError(
            f"the {what} became {value} at step {self.state.global_step + 1}; training stopped and nothing of this "
            f"step is kept; {kept}{f'. It was computed on rows {rows}' if rows else ''}. Lower learning_rate, set "
            "max_grad_norm, or use precision: fp32"
        )


def training_arguments(
    config_class: type, settings: OfflineSettings, context: StageContext, *, groups: int | None = None, **fixed: Any
) -> TrainingArguments:
    """The library's own configuration, from the recipe's settings and `trainer_args`.

    Args:
        config_class: `SFTConfig`, `DPOConfig`.
        settings: of the stage.
        context: of the stage.
        groups: of processes that compute different rows; None where each process is one.
        fixed: what the stage itself decides.

    Raises:
        RecipeError: a name in `trainer_args` that the class does not have, or a value it refuses.
    """
    where = f"stages.{context.stage}"
    on_gpu = torch.cuda.is_available()
    precision = resolve_precision(settings.precision)
    rows, draws = draws_of_step(
        settings.global_batch_size, settings.per_device_batch_size, settings.tokens_per_device,
        groups or context.ranks.world_size, where,
    )  # fmt: skip
    values: dict[str, Any] = {
        "output_dir": str(context.checkpoints),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": draws,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "lr_scheduler_type": _SCHEDULES[settings.schedule],
        "warmup_steps": settings.warmup_ratio,
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": settings.weight_decay,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "seed": context.recipe.seed,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "no",
        "deepspeed": _deepspeed_config(settings.deepspeed),
        **fixed,
    }
    if not on_gpu and context.ranks.world_size > 1:
        values["ddp_backend"] = "gloo"
    _require_known(settings.trainer_args, config_class, where)
    engine = stage_engine(settings.deepspeed, os.environ)
    if engine.kind == "fsdp":
        values["accelerator_config"] = spread_each_batch()
    if not on_gpu and engine.kind == "deepspeed":
        spreading.without_compiling()
    try:
        return config_class(**{**values, **settings.trainer_args})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {config_class.__name__} refuses these settings: {error}") from error


def fit(trainer: CommittedTrainer, context: StageContext, before: Before, watcher: Watcher | None = None) -> None:
    """Train to the end, from the newest complete checkpoint if there is one.

    Args:
        trainer: with the rows to train on.
        context: of the stage.
        before: what is measured of the model before the first step.
        watcher: measures the model on a schedule, and may end training.

    Raises:
        RecipeError: the engine that was asked for is not the one that would train.
        PreemptedError: asked to stop; everything is saved.
        TrivetError: training ended before its last step, or met a value that is not finite.
    """
    callback = StepCallback(context)
    trainer.add_callback(callback)
    trainer.add_callback(BeginCallback(before))
    trainer.remove_callback(PrinterCallback)
    trainer.made_by = spreading.made_by(context)
    resume_from = _checkpoint_to_resume(context, watcher, on_any_ranks=not has_dropout(trainer.model))
    if watcher is not None:
        trainer.watcher = watcher
        trainer.add_callback(WatchCallback(watcher))
        watcher.rewind(resume_from)
    spreading.take_engine(trainer, context)
    if context.ranks.is_first and (warning := checkpoint.will_fit(context.checkpoints, trainer.checkpoint_bytes())):
        context.console.say(warning)
    # Evaluation before training draws from the same generators, but only in runs that were not interrupted after it.
    seed_everything(context.recipe.seed)
    with state_being_read(resume_from, engine_of(context)):
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if watcher is not None and watcher.stopped:
        return
    if callback.preempted:
        raise PreemptedError(
            f"stage {context.stage} was asked to stop; step {trainer.state.global_step} of {trainer.state.max_steps} "
            "is saved, run the same command again to go on"
        )
    if trainer.state.global_step < trainer.state.max_steps:
        raise TrivetError(
            f"stage {context.stage} ended at step {trainer.state.global_step} of {trainer.state.max_steps}; "
            f"see {context.folder.parent} and the log"
        )


def _checkpoint_to_resume(context: StageContext, watcher: Watcher | None, *, on_any_ranks: bool) -> Path | None:
    found, passed_over = checkpoint.newest_complete(context.checkpoints)
    if found is not None:
        spreading.require_resumable(found, context, on_any_ranks=on_any_ranks)
    if context.ranks.is_first:
        for broken in passed_over:
            context.console.say(f"{broken.name} was not complete when the run ended; it is left out")
        stay = () if watcher is None else watcher.figures
        context.tracker.rewind(checkpoint.step_of(found) if found else -1, keep_held_out=stay)
        if found:
            context.console.say(f"going on from step {checkpoint.step_of(found)}")
    barrier()
    if context.ranks.is_first:
        checkpoint.keep_only(context.checkpoints, found)
    return found


def _deepspeed_config(choice: str) -> str | None:
    found = ds_config_file(choice)
    return None if found is None else str(found)


def _require_known(arguments: Mapping[str, Any], config_class: type, where: str) -> None:
    known = {field.name for field in dataclasses.fields(config_class) if field.init}
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"{where}.trainer_args.{name}: {config_class.__name__} has no such field{hint}")
