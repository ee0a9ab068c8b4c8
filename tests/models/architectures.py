"""Random models of many architectures as folders that a recipe's `model.base` could name, with the tiny tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    PaliGemmaConfig,
    Phi3Config,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3Config,
    SiglipVisionConfig,
    SmolVLMConfig,
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
    seeing = seeing_configurations()
    auto: Any = AutoModelForImageTextToText if name in seeing else AutoModelForCausalLM
    model: Any = auto.from_config({**configurations(), **seeing}[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(FACTOR)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


def seeing_configurations() -> dict[str, Any]:
    """Models that read images beside text, by the names that docs/models.md has; their ids of images are the last."""
    text = {**shape(), "vocab_size": VOCABULARY, "max_position_embeddings": 512}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    ids = {
        "image_token_id": 255, "video_token_id": 256, "vision_start_token_id": 257, "vision_end_token_id": 258
    }  # fmt: skip
    windows = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4
    }  # fmt: skip
    tower = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 4,
    }  # fmt: skip
    return {
        "qwen2_vl": Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
            **ids,
        ),
        "qwen2_5_vl": Qwen2_5_VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=windows, **ids),
        "smolvlm": SmolVLMConfig(
            text_config=LlamaConfig(**text), vision_config=tower, image_token_id=258, scale_factor=2
        ),
        "llava": LlavaConfig(
            text_config=LlamaConfig(**text), vision_config=CLIPVisionConfig(**tower), image_token_index=258
        ),
        "paligemma": PaliGemmaConfig(
            text_config=GemmaConfig(**text, head_dim=8), image_token_index=258, projection_dim=32,
            vision_config=SiglipVisionConfig(**tower, projection_dim=32),
        ),
    }  # fmt: skip
