"""Small random models of many architectures: the home of their shapes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    Qwen3Config,
)


def shape(layers: int = 2) -> dict[str, Any]:
    """What most configurations call their sizes."""
    return {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def gpt2_shape(layers: int = 2) -> dict[str, Any]:
    """The same in GPT-2's words."""
    return {
        "vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": layers, "n_head": 4, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def attending(layers: int = 2) -> dict[str, Any]:
    """Configurations of models that attend in streams."""
    sizes = shape(layers)
    return {
        "llama": LlamaConfig(**sizes),
        "gpt2": GPT2Config(**gpt2_shape(layers), **NO_DROPOUT),
        "mistral_window": MistralConfig(**sizes, sliding_window=5),
        "gemma3_windows": Gemma3TextConfig(**sizes, head_dim=8, sliding_window=4),
        "qwen3": Qwen3Config(**sizes, head_dim=8),
        "phi": PhiConfig(**{**sizes, "num_key_value_heads": 4}),
        "cohere": CohereConfig(**sizes, logit_scale=0.25),
        "mixtral": MixtralConfig(**sizes, num_local_experts=2, num_experts_per_tok=1),
    }


def build(config: Any, factor: float) -> Any:
    """A model with weights so many times larger than it would start with that attention, scales and caps matter."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return model.eval()
