"""Random models of many architectures as folders that a recipe's `model.base` could name, with the tiny tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2VLConfig,
    Qwen3Config,
)

from tests.models.small_models import NO_DROPOUT, gpt2_shape, shape

VOCABULARY = 259
FACTOR = 3.0
"""Of the weights: what a model says then depends on what it reads."""


def configurations() -> dict[str, Any]:
    """By the names that docs/models.md has."""
    sizes = {**shape(), "vocab_size": VOCABULARY, "max_position_embeddings": 512}
    return {
        "llama": LlamaConfig(**sizes),
        "mistral": MistralConfig(**sizes, sliding_window=24),
        "mixtral": MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2),
        "qwen3": Qwen3Config(**sizes, head_dim=8),
        "gemma2": Gemma2Config(**sizes, head_dim=8, sliding_window=24),
        "gemma3": Gemma3TextConfig(**sizes, head_dim=8, sliding_window=24),
        "phi3": Phi3Config(**sizes),
        "gpt2": GPT2Config(**{**gpt2_shape(), "vocab_size": VOCABULARY, "n_positions": 512}, **NO_DROPOUT),
        "mamba": MambaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, pad_token_id=0, eos_token_id=2
        ),
    }  # fmt: skip


def written(folder: Path, name: str, tiny_folder: Path) -> Path:
    """Write a model of that name."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(configurations()[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(FACTOR)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


def written_vision_model(folder: Path, tiny_folder: Path) -> Path:
    """The configuration of a model that sees; it is refused before any weight is read."""
    Qwen2VLConfig(vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder
