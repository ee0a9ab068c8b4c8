"""Models that read images beside text: which class loads them, where their language part is, and what text they take.

Rows here are text, so the language part alone is trained and the rest stays as it came. Whether such a model is a
causal one of text when it is shown no image is not read off its name but tried, on a few tokens. Layer 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.durable import read_json
from pipeline.errors import TrivetError
from pipeline.models.forward import causal_model, evaluating

_PROBE, _PADDING = 12, 3
_AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-4}
_ROUGH_AGREEMENT = 0.25
"""What must not matter may matter this much, as a share of what another beginning of the text does."""


def auto_class(folder: Path) -> Any:
    """The class of transformers that loads a folder's model as a policy: of causal models, else of those that see.

    Args:
        folder: of a base, or of a fully fine-tuned policy.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as names

    kind = model_type(folder)
    sees = kind in names.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    only_sees = sees and kind not in names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return AutoModelForImageTextToText if only_sees else AutoModelForCausalLM


def model_type(folder: Path) -> str:
    """What a folder's configuration calls its architecture; `unknown` where it does not say."""
    file = folder / "config.json"
    return str(read_json(file).get("model_type", "unknown")) if file.is_file() else "unknown"


def reads_images(model: Any) -> bool:
    """Whether a loaded model has a part that sees; the text model out of such a family has none."""
    return type(causal_model(model)).__name__ in _seeing_classes()


def require_text_model(folder: Path, stage: str, kind: str) -> None:
    """Refuse a base that reads images for a kind of stage that takes text models alone.

    Args:
        folder: of the base model.
        stage: name of the stage.
        kind: `reward` or `ppo`.

    Raises:
        TrivetError: it is such a base.
    """
    from transformers.models.auto import modeling_auto as names

    found = model_type(folder)
    loaded = {**names.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, **names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}.get(found)
    if loaded in _seeing_classes():
        raise TrivetError(
            f"stage {stage}: the base model in {folder} reads images (type {found}), and a stage of kind {kind} takes "
            "text models alone; use stages of kind sft and dpo with it, or name a text model as model.base"
        )


def language_part(model: Any) -> tuple[str, Any]:
    """Path in the model, without PEFT's wrapper, and the transformer that reads text, below the vocabulary head.

    Raises:
        TrivetError: the model has none apart from what reads images.
    """
    inner = causal_model(model)
    part = inner.get_decoder()
    path = next((name for name, module in inner.named_modules() if module is part), "")
    if not path or path == inner.base_model_prefix:
        raise TrivetError(f"{type(inner).__name__} keeps no language part apart from what reads images")
    return path, part


def keep_to_text(model: Any, folder: Path) -> None:
    """Freeze all but the language part and the vocabulary head of a model that reads images, once it is seen to do.

    Args:
        model: as it was loaded.
        folder: where from, for the message.

    Raises:
        TrivetError: without images it is no causal language model; the message says what it does instead.
    """
    inner = causal_model(model)
    try:
        path, _ = language_part(inner)
        why = _unlike_a_text_model(inner)
    except (TrivetError, TypeError, ValueError, NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        why = str(error) if isinstance(error, TrivetError) else f"it takes no text alone ({error})"
    if why is not None:
        raise TrivetError(
            f"model.base: the one in {folder} is of type {inner.config.model_type}, which reads images, and cannot be "
            f"trained on rows of text: {why}; name a text model, or one of another family that sees"
        )
    output = {id(parameter) for parameter in inner.get_output_embeddings().parameters()}
    for name, parameter in inner.named_parameters():
        if not name.startswith(f"{path}.") and id(parameter) not in output:
            parameter.requires_grad_(False)


@torch.no_grad()
def _unlike_a_text_model(inner: Any) -> str | None:
    """In which way it is no causal model of text, or None."""
    if inner.config.is_encoder_decoder:
        return "it reads a text with an encoder and writes another"
    device = next(inner.parameters()).device
    # Ids that text begins with: those of images stand at the end of a vocabulary.
    ids_T = torch.arange(3, 3 + _PROBE, device=device) % inner.config.get_text_config().vocab_size
    with evaluating(inner):
        plain, first, last = (_logits(inner, each) for each in (ids_T, _other(ids_T, 0), _other(ids_T, -1)))
        placed = _logits(inner, ids_T, padding=_PADDING)
    scale = float((first - plain)[1:-1].abs().max())
    allowed = _AGREEMENT.get(next(inner.parameters()).dtype, _ROUGH_AGREEMENT) * scale
    for other, what in (
        (last, "what it gives at a token changes with the text behind it"),
        (placed, "padding changes what it gives"),
    ):
        # Written so that a value which is no number does not pass.
        off = float((other - plain)[:-1].abs().max())
        if not off <= allowed:
            return f"{what} (by {off:.2g}, another beginning by {scale:.2g})"
    return None


def _logits(inner: Any, ids_T: Tensor, padding: int = 0) -> Tensor:
    """Logits (T, V) in float32: plainly, or behind padding with positions of its own, as answers are generated."""
    if not padding:
        found: Tensor = inner(input_ids=ids_T[None], use_cache=False).logits[0]
        return found.float()
    ids_BT = torch.cat([ids_T.new_zeros(padding), ids_T])[None]
    mask_BT = torch.arange(ids_BT.shape[1], device=ids_T.device)[None] >= padding
    positions_BT = (mask_BT.long().cumsum(-1) - 1).clamp(min=0)
    found = inner(input_ids=ids_BT, attention_mask=mask_BT.long(), position_ids=positions_BT, use_cache=False).logits
    return found[0, padding:].float()


def _other(ids_T: Tensor, place: int) -> Tensor:
    changed = ids_T.clone()
    changed[place] = ids_T[_PROBE // 2]
    return changed


def _seeing_classes() -> set[str]:
    from transformers.models.auto import modeling_auto as names

    return {*names.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()}
