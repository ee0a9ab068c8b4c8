"""Load a tokenizer and a base model as the recipe says: dtype, quantisation, attention, chat template, pad token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from data_prep.chat import ChatFormatter, begins_with_bos
from data_prep.templates import template_text
from pipeline.artefact import TokenizerEntry
from pipeline.durable import sha256_json
from pipeline.errors import SourceUnreachableError, TrivetError
from pipeline.faults import reach
from pipeline.models.quantised import compute_one_way, quantization_config
from pipeline.models.seeing import auto_class, keep_to_text, model_type, reads_images
from pipeline.models.stream_forward import attend_in_streams
from pipeline.recipe.schema import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_tokenizer(folder: Path, chat_template: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template that the recipe chooses.

    Args:
        folder: the model's local folder.
        chat_template: `auto`, a name of `data_prep.templates`, or a path to a .jinja file.

    A tokenizer without a pad token pads with its EOS: every mask here is carried, none is derived from ids.
    """
    from transformers import AutoTokenizer

    try:
        with untrusted(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise SourceUnreachableError(f"model.base: the tokenizer in {folder} cannot be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise SourceUnreachableError(f"model.base: the tokenizer in {folder} has no end-of-sequence token; set one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    behind_bos = begins_with_bos(tokenizer)
    tokenizer.chat_template = template_text(chat_template, tokenizer.chat_template, behind_bos=behind_bos)
    return tokenizer


@contextmanager
def untrusted(folder: Path) -> Iterator[None]:
    """While a library reads a folder that may come from anybody: what it refuses to run or cannot read is a sentence.

    Raises:
        SourceUnreachableError: the files want code of their own to be run, or a file of weights is damaged.
    """
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise SourceUnreachableError(
                f"{folder} can only be loaded by running the code that comes with it (`auto_map` in its "
                "configuration), which is never done; use a model of an architecture that transformers knows"
            ) from error
        if type(error).__name__ == "SafetensorError":
            raise SourceUnreachableError(
                f"the .safetensors files in {folder} are damaged or no such files ({error}); fetch or save them again"
            ) from error
        raise


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> TokenizerEntry:
    """What the next stage compares with its own tokenizer before it trusts this one's tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return TokenizerEntry(
        sha256=sha256_json(vocabulary),
        chat_template_sha256=sha256_json(tokenizer.chat_template),
        vocabulary=len(tokenizer),
        pad_id=tokenizer.pad_token_id,
        stop_ids=ChatFormatter(tokenizer).stop_ids,
        bos_id=tokenizer.bos_token_id,
    )


def load_base(
    folder: Path,
    settings: ModelSettings,
    *,
    frozen: bool,
    precision: str,
    weights: Path | None = None,
    on_host: bool = False,
) -> PreTrainedModel:
    """The causal language model, on this process's device; of one that reads images too, the language part is trained.

    Args:
        folder: the base model's local folder.
        settings: dtype, quantisation and attention.
        frozen: whether its own weights stay as they are (decides, with the precision, the dtype that `auto` means).
        precision: of the forward pass: bf16, fp16 or fp32.
        weights: folder of a fully fine-tuned model to load instead of the base's own weights.
        on_host: leave it in the host's memory instead, for an engine that spreads it over the ranks.

    Raises:
        RecipeError: quantisation was asked for and bitsandbytes is not installed.
        TrivetError: it is no language model, or one that reads images and does not take text alone.
        SourceUnreachableError: the files cannot be read, lack weights, or want code of their own to be run.
    """
    reach("model.begun")
    options = _options(settings, frozen, precision) | {"output_loading_info": True}
    try:
        with untrusted(weights or folder):
            found: Any = auto_class(weights or folder).from_pretrained(weights or folder, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise TrivetError(
            f"model.base: the one in {folder} is of type {model_type(folder)}, of which transformers has no causal "
            "language model: it may read sound, or be an encoder; name a text model that continues text"
        ) from error
    model, loaded = found
    if missing := sorted(loaded["missing_keys"]):
        # transformers fills them with chance and a warning.
        raise SourceUnreachableError(
            f"{weights or folder} lacks {missing[0]} of {type(model).__name__} ({len(missing)} in all): its "
            ".safetensors files are incomplete or of another model; fetch or save them again"
        )
    placed = _placed(model, settings, on_host)
    if reads_images(placed):
        keep_to_text(placed, weights or folder)
    return placed


def load_classifier(
    folder: Path,
    settings: ModelSettings,
    *,
    frozen: bool,
    precision: str,
    weights: Path | None = None,
    on_host: bool = False,
) -> PreTrainedModel:
    """The same transformer as transformers' sequence-classification model with one label; `score` is its head.

    Args:
        folder: as for `load_base`, and so are settings, frozen and precision.
        weights: folder of a fully fine-tuned policy or reward model to load instead of the base's own weights.
        on_host: as for `load_base`.

    Raises:
        TrivetError: the architecture has no such form in transformers, or the files lack some of its weights.
    """
    from transformers import AutoModelForSequenceClassification

    reach("model.begun")
    options = _options(settings, frozen, precision) | {"num_labels": 1, "output_loading_info": True}
    try:
        with untrusted(weights or folder):
            model, loaded = AutoModelForSequenceClassification.from_pretrained(weights or folder, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise _no_classifier(folder, "it is not among those of AutoModelForSequenceClassification") from error
    if not isinstance(getattr(model, "score", None), torch.nn.Module):
        raise _no_classifier(folder, f"{type(model).__name__} has no layer named score")
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("score."))
    if missing:
        raise TrivetError(f"{weights or folder} lacks {missing[0]} of {type(model).__name__} ({len(missing)} in all)")
    return _placed(model, settings, on_host)


def _options(settings: ModelSettings, frozen: bool, precision: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dtype": _dtype(settings, frozen, precision), "use_safetensors": True, "trust_remote_code": False,
    }  # fmt: skip
    if settings.attention != "auto":
        options["attn_implementation"] = settings.attention
    if settings.quantization != "none":
        options["quantization_config"] = quantization_config(settings.quantization, options["dtype"], device())
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    return options


def _placed(model: Any, settings: ModelSettings, on_host: bool) -> PreTrainedModel:
    if settings.quantization == "none" and not on_host:
        model.to(device())
    if settings.quantization != "none" and device().type == "cpu":
        compute_one_way(model)
    model.config.use_cache = True
    if settings.attention == "auto":
        attend_in_streams(model)
    return cast("PreTrainedModel", model)


def _no_classifier(folder: Path, why: str) -> TrivetError:
    return TrivetError(f"model.base: no reward model can be made of the one in {folder}: {why}; use dpo with it")


def device() -> torch.device:
    """This process's device: its own GPU, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _dtype(settings: ModelSettings, frozen: bool, precision: str) -> torch.dtype:
    if settings.dtype != "auto":
        return _DTYPES[settings.dtype]
    # Weights that are trained stay in float32: updates of a small learning rate vanish in bfloat16's eight bits. Frozen
    # ones would be cast to bfloat16 in every forward pass anyway.
    return torch.bfloat16 if frozen and precision == "bf16" else torch.float32
