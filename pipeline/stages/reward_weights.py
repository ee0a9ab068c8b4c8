"""How a reward model's weights come into its stage, lie aside while other members train, and get into the artefact."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pipeline.artefact import Artefact
from pipeline.context import StageContext, engine_of
from pipeline.durable import fsync_path, full_disk_named, require_room
from pipeline.faults import reach
from pipeline.models import adapters
from pipeline.models.heads import new_head, with_head
from pipeline.models.load import load_classifier
from pipeline.models.reward_model import member_name
from pipeline.models.shards import whole_state
from pipeline.stages.policy import save_weights, weights_bytes


def starting_model(context: StageContext, start: Artefact | None, form: str, precision: str) -> Any:
    """The policy's transformer under a new head, with the trainable adapter on it where `form` is `adapter`."""
    settings = context.recipe.model
    whole = form == "model"
    weights = start.weights if start is not None and whole else None
    model: Any = load_classifier(
        context.base_folder,
        settings,
        frozen=not whole,
        precision=precision,
        weights=weights,
        on_host=engine_of(context).spreads_parameters,
    )
    with_head(model, new_head(model.score.in_features, context.recipe.seed))
    if settings.adapter == "none":
        return model
    return adapters.attach_for_scores(model, settings.adapter, start.weights if start is not None else None)


def save_member(model: Any, tokenizer: Any, context: StageContext, form: str, index: int) -> None:
    """Put a trained member's weights, head included, and its tokenizer aside; every rank calls, the first writes."""
    state = whole_state(model, trained_only=form == "adapter")
    if not context.ranks.is_first:
        return
    folder = member_aside(context, form, index)
    # An attempt that was killed while it wrote may have left parts of files, which would get into the artefact.
    shutil.rmtree(folder, ignore_errors=True)
    needs = weights_bytes(model, form, state)
    with full_disk_named(folder, needs):
        reach("weights.begun", folder)
        require_room(folder, needs)
        save_weights(model, folder, context, form, state)
        reach("weights.written", folder)
        tokenizer.save_pretrained(str(folder))
        for path in [*folder.iterdir(), folder, folder.parent]:
            fsync_path(path)


def keep_members(context: StageContext, form: str, count: int) -> None:
    """Put every member's weights in their place in the artefact (first rank only).

    They are linked, not moved: a kill before the seal clears the artefact's folder but not the stage's work.
    """
    with full_disk_named(context.folder):
        for index in range(count):
            place = context.folder / member_name(form, index)
            shutil.copytree(member_aside(context, form, index), place, copy_function=_link_or_copy)


def member_aside(context: StageContext, form: str, index: int) -> Path:
    """Folder of a finished member's weights until the artefact is put together."""
    return context.work / member_name(form, index)


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
