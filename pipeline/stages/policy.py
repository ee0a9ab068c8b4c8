"""How a policy comes into a stage and leaves it: an adapter on the unchanged base, or full weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefact import Artefact, TokenizerEntry
from pipeline.context import StageContext, engine_of, require_same_base, require_same_tokenizer
from pipeline.durable import full_disk_named, require_room
from pipeline.errors import TrivetError
from pipeline.faults import reach
from pipeline.models import adapters
from pipeline.models.load import describe_tokenizer, load_base, load_tokenizer
from pipeline.models.shards import stored_bytes, whole_state


@dataclass(frozen=True, slots=True)
class Policy:
    """A trainable policy with its tokenizer."""

    model: Any
    tokenizer: Any
    description: TokenizerEntry
    form: str
    """`adapter` or `model`."""


def load_policy(
    context: StageContext,
    parent: Artefact | None,
    *,
    precision: str,
    dropout: bool,
    prepare: Callable[[Any], None] | None = None,
) -> Policy:
    """The policy a stage starts from: the parent's, or the base with a fresh adapter.

    Args:
        context: of the stage.
        parent: the artefact to continue, or None for the base model.
        precision: of the forward pass.
        dropout: whether a fresh adapter trains with its dropout.
        prepare: what is done to the base before an adapter is put on it.

    Raises:
        TrivetError: the parent belongs to another base, tokenizer or chat template, or is stored in another form.
    """
    settings = context.recipe.model
    tokenizer = load_tokenizer(context.base_folder, context.recipe.data.chat_template)
    description = describe_tokenizer(tokenizer)
    require_same_base(context)
    require_same_tokenizer(context, description)
    form = "model" if settings.adapter == "none" else "adapter"
    if parent is not None and parent.manifest.form != form:
        raise TrivetError(
            f"stage {context.stage}: {parent.manifest.stage} was stored as a full {parent.manifest.form}, but "
            f"model.adapter asks for {form}; remake it with `--force {parent.manifest.stage}`"
        )
    on_host = engine_of(context).spreads_parameters
    if settings.adapter == "none":
        weights = parent.weights if parent is not None else None
        model: Any = load_base(
            context.base_folder, settings, frozen=False, precision=precision, weights=weights, on_host=on_host
        )
        return Policy(model, tokenizer, description, form)
    base = load_base(context.base_folder, settings, frozen=True, precision=precision, on_host=on_host)
    if prepare is not None:
        prepare(base)
    if parent is None:
        model = adapters.attach_new(base, settings.adapter, dropout=dropout)
    else:
        model = adapters.attach_trained(base, parent.weights)
    return Policy(model, tokenizer, description, form)


def load_reference(context: StageContext, parent: Artefact | None, precision: str) -> Any:
    """A frozen second model for full fine-tuning, where no adapter can be switched to make the reference."""
    weights = parent.weights if parent is not None else None
    model = load_base(
        context.base_folder,
        context.recipe.model,
        frozen=False,
        precision=precision,
        weights=weights,
        on_host=engine_of(context).spreads_parameters,
    )
    return model.eval().requires_grad_(False)


def save_policy(policy: Policy, context: StageContext) -> None:
    """Write the trained weights and the tokenizer into the artefact's folder; every rank calls, the first writes."""
    state = whole_state(policy.model, trained_only=policy.form == "adapter")
    if not context.ranks.is_first:
        return
    folder = context.folder / policy.form
    needs = weights_bytes(policy.model, policy.form, state)
    with full_disk_named(folder, needs):
        reach("weights.begun", folder)
        require_room(folder, needs)
        save_weights(policy.model, folder, context, policy.form, state)
        reach("weights.written", folder)
        policy.tokenizer.save_pretrained(str(folder))


def weights_bytes(model: Any, form: str, state: dict[str, Any] | None) -> int:
    """What `save_weights` will write, the little beside the tensors aside."""
    if state is not None:
        return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return stored_bytes(each for each in model.parameters() if form == "model" or each.requires_grad)


def save_weights(model: Any, folder: Path, context: StageContext, form: str, state: dict[str, Any] | None) -> None:
    """Write a policy's or a reward model's weights, refusing empty ones and those that are not finite.

    Args:
        model: trained.
        folder: to write to.
        context: of the stage.
        form: `adapter` or `model`.
        state: the model's tensors, where no rank holds them whole.
    """
    if form == "adapter":
        adapters.save(model, folder, context.base.name, state)
        return
    model.save_pretrained(str(folder), safe_serialization=True, state_dict=state)
    for weights in sorted(folder.glob("*.safetensors")):
        adapters.require_sound(weights)
