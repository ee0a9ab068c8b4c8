"""One adapter carried through the stages: attached, loaded from an artefact, saved into the next.

Every policy of a run is the unchanged base plus one small adapter, so hand-over is exact, and several policies share
one base in memory under names of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pipeline.durable import read_json, write_json_atomically
from pipeline.errors import TrivetError
from pipeline.faults import spoil
from pipeline.models.decoder import adapter_targets
from pipeline.models.lora_pass import with_direct_passes
from pipeline.models.reward_model import HEAD_KEY, adapter_state
from pipeline.recipe.schema import AdapterSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TRAINED = "default"
"""Name of the adapter in training: TRL copies the adapter of this name when it makes a frozen reference."""


def attach_new(model: PreTrainedModel, settings: AdapterSettings, *, dropout: bool) -> PeftModel:
    """Wrap the base with a fresh adapter that changes nothing yet (its second factor is zero).

    Args:
        model: the base.
        settings: rank, scale, modules and layers that it goes to.
        dropout: whether the stage trains with the adapter's dropout.
    """
    from peft import TaskType

    return _wrapped(_prepared(model), _fresh_config(model, settings, TaskType.CAUSAL_LM, dropout=dropout), TRAINED)


def attach_trained(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Wrap the base with a trainable copy of an earlier stage's adapter."""
    from peft import PeftModel

    base_folder = model.name_or_path
    wrapped = PeftModel.from_pretrained(_prepared(model), folder, adapter_name=TRAINED, is_trainable=True)
    # Every save looks the base up by this name; the recipe's name could send it to the hub.
    wrapped.peft_config[TRAINED].base_model_name_or_path = base_folder
    return cast("PeftModel", with_direct_passes(wrapped))


def attach_frozen(model: PreTrainedModel | PeftModel, folder: Path, name: str) -> PeftModel:
    """Add an earlier stage's adapter under a name, frozen, for evaluation."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
        return with_direct_passes(model)
    found = PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False)
    return cast("PeftModel", with_direct_passes(found))


def attach_for_scores(model: PreTrainedModel, settings: AdapterSettings, start: Path | None) -> PeftModel:
    """Wrap a sequence-classification model with a trainable adapter and a trainable copy of its head, `score`.

    Args:
        model: as `load_classifier` gives it.
        settings: of a fresh adapter, which changes nothing yet.
        start: folder of a policy's adapter to begin with a copy of, or None for a fresh one.

    Raises:
        TrivetError: the policy's adapter does not fit on this model.
    """
    from peft import TaskType

    if start is None:
        return _wrapped(_prepared(model), _fresh_config(model, settings, TaskType.SEQ_CLS, dropout=False), TRAINED)
    wrapped = _wrapped(_prepared(model), _retasked(start, TaskType.SEQ_CLS), TRAINED)
    base: Any = wrapped.get_base_model()
    head = base.score.modules_to_save[TRAINED].weight
    # PEFT looks for the head among the tensors it is given; a policy's file has none.
    _copy_tensors(wrapped, {**adapter_state(start), HEAD_KEY: head.detach().clone()}, TRAINED, start)
    return wrapped


def attach_reward(model: PreTrainedModel | PeftModel, folder: Path, name: str) -> PeftModel:
    """Put a reward model's adapter on a causal language model under a name, frozen and not switched on.

    The trunk under it gives exactly the hidden states of the reward model; its head is `reward_model.head_of(folder)`.

    Args:
        model: the reward model's base, with other adapters on it or without.
        folder: of a member's adapter.
        name: that no adapter has yet.

    Raises:
        TrivetError: the adapter does not fit on this model.
    """
    from peft import PeftModel, TaskType

    config = _retasked(folder, TaskType.CAUSAL_LM, frozen=True)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        with_direct_passes(model)
    else:
        model = _wrapped(model, config, name)
    _copy_tensors(model, adapter_state(folder), name, folder)
    for path, parameter in model.named_parameters():
        if f".{name}." in path:
            parameter.requires_grad_(False)
    return model


@contextmanager
def active(model: Any, name: str | None) -> Iterator[None]:
    """Run the block with one frozen adapter active, or with none (the base)."""
    if name is None:
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        with model.disable_adapter() if hasattr(model, "disable_adapter") else _nothing():
            yield
        # PEFT unfreezes the adapter that it turns on again.
        for parameter in frozen:
            parameter.requires_grad_(False)
        return
    model.set_adapter(name, inference_mode=True)
    yield


@contextmanager
def held_in(model: Any, precision: str) -> Iterator[None]:
    """Within the block, LoRA's factors in the type that a forward pass would cast them to anyway, each time anew.

    The numbers stay the same to the bit; a pass over one token, as in generation, is full of such casts.

    Args:
        model: with adapters or without, called under autocast within the block.
        precision: of the forward pass.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    named = dict(model.named_parameters())
    # DoRA takes norms of its factors in float32.
    if dtype is None or any(".lora_magnitude_vector." in name for name in named):
        yield
        return
    factors = [(each, each.data) for name, each in named.items() if ".lora_A." in name or ".lora_B." in name]
    try:
        for parameter, whole in factors:
            parameter.data = whole.to(dtype)
        yield
    finally:
        for parameter, whole in factors:
            parameter.data = whole


def save(model: PeftModel, folder: Path, base_name: str, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write the trained adapter alone, refusing an empty or non-finite one.

    The configuration names the base as the recipe does, not the folder where this machine happened to find it.

    Args:
        model: with the adapter on it.
        folder: to write to.
        base_name: of the recipe.
        state: the model's tensors as `shards.whole_state` gives them, where ranks hold shares of them.
    """
    model.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False, state_dict=state)
    (folder / "README.md").unlink(missing_ok=True)
    config = read_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = base_name
    config["inference_mode"] = True
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    write_json_atomically(folder / "adapter_config.json", config)
    require_sound(folder / "adapter_model.safetensors")


def require_sound(weights: Path) -> None:
    """Refuse weights that are empty (a known way to lose a sharded adapter) or not finite.

    Raises:
        TrivetError: naming the first tensor at fault.
    """
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as tensors:
        names = list(tensors.keys())
        if not names:
            raise TrivetError(f"{weights} was saved without a single tensor; nothing was handed on")
        for name in names:
            tensor = spoil("weights", tensors.get_tensor(name))
            if tensor.numel() == 0:
                raise TrivetError(f"{weights}: tensor {name} was saved empty; nothing was handed on")
            if not torch.isfinite(tensor).all():
                raise TrivetError(
                    f"{weights}: tensor {name} holds values that are not finite; lower the stage's learning_rate"
                )


def _fresh_config(model: Any, settings: AdapterSettings, task: str, *, dropout: bool) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type=task,
        r=settings.r,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout if dropout else 0.0,
        use_dora=settings.type == "dora",
        **adapter_targets(model, settings),
    )


def _retasked(folder: Path, task: str, *, frozen: bool = False) -> Any:
    """A saved adapter's configuration, for a model of another kind; PEFT adds the head of a classifying one itself."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save, config.inference_mode = task, None, frozen
    # PEFT fills it in, and warns where it finds another name than the local folder's.
    config.base_model_name_or_path = None
    return config


def _wrapped(model: PreTrainedModel, config: Any, name: str) -> PeftModel:
    from peft import get_peft_model

    try:
        return cast("PeftModel", with_direct_passes(get_peft_model(model, config, adapter_name=name)))
    except ValueError as error:
        raise TrivetError(f"model.adapter.target_modules: {error}") from error


def _copy_tensors(model: PeftModel, tensors: dict[str, torch.Tensor], name: str, folder: Path) -> None:
    """Fill the adapter of a name, all of it and with nothing left over."""
    from peft import set_peft_model_state_dict

    found: Any = set_peft_model_state_dict(model, tensors, adapter_name=name)
    missing = [key for key in found.missing_keys if f".{name}." in key]
    if missing or found.unexpected_keys:
        what = f"lacks {missing[0]}" if missing else f"has {found.unexpected_keys[0]}, which the model has no place for"
        raise TrivetError(f"the adapter in {folder} does not fit on {type(model.get_base_model()).__name__}: it {what}")


def _prepared(model: PreTrainedModel) -> PreTrainedModel:
    if not getattr(model, "is_quantized", False):
        return model
    from peft import prepare_model_for_kbit_training

    return cast("PreTrainedModel", prepare_model_for_kbit_training(model, use_gradient_checkpointing=False))


@contextmanager
def _nothing() -> Iterator[None]:
    yield
