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
        settings: rank, scale, target layers.
        dropout: whether the stage trains with the adapter's dropout.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout if dropout else 0.0,
        target_modules=settings.target_modules
        if isinstance(settings.target_modules, str)
        else [*settings.target_modules],
        use_dora=settings.type == "dora",
    )
    try:
        return cast("PeftModel", get_peft_model(_prepared(model), config))
    except ValueError as error:
        raise TrivetError(f"model.adapter.target_modules: {error}") from error


def attach_trained(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Wrap the base with a trainable copy of an earlier stage's adapter."""
    from peft import PeftModel

    base_folder = model.name_or_path
    wrapped = PeftModel.from_pretrained(_prepared(model), folder, adapter_name=TRAINED, is_trainable=True)
    # Every save looks the base up by this name; the recipe's name could send it to the hub.
    wrapped.peft_config[TRAINED].base_model_name_or_path = base_folder
    return cast("PeftModel", wrapped)


def attach_frozen(model: PreTrainedModel | PeftModel, folder: Path, name: str) -> PeftModel:
    """Add an earlier stage's adapter under a name, frozen, for evaluation."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
        return model
    return cast("PeftModel", PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=False))


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


def save(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write the trained adapter alone, refusing an empty or non-finite one.

    The configuration names the base as the recipe does, not the folder where this machine happened to find it.
    """
    model.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False)
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
            tensor = tensors.get_tensor(name)
            if tensor.numel() == 0:
                raise TrivetError(f"{weights}: tensor {name} was saved empty; nothing was handed on")
            if not torch.isfinite(tensor).all():
                raise TrivetError(
                    f"{weights}: tensor {name} holds values that are not finite; lower the stage's learning_rate"
                )


def _prepared(model: PreTrainedModel) -> PreTrainedModel:
    if not getattr(model, "is_quantized", False):
        return model
    from peft import prepare_model_for_kbit_training

    return cast("PreTrainedModel", prepare_model_for_kbit_training(model, use_gradient_checkpointing=False))


@contextmanager
def _nothing() -> Iterator[None]:
    yield
