"""Base models of a given size with random weights, for speed and memory where real weights cannot be had.

    python -m benchmarks.shapes {135m,360m,1b,7b} FOLDER

FOLDER is then a base model like any other: `python -m benchmarks.compare --base FOLDER`, `model.base: FOLDER`. Weights
are bfloat16; tokenizer and chat template are the embedded model's. What such a model says means nothing; it seldom
ends an answer, so that sampling costs what the longest answers cost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from pipeline.models.source import tokenizer_folder

# Hidden and inner size, layers, heads, heads of keys and values: of SmolLM2 135M and 360M, Llama 3.2 1B, Llama 2 7B.
SHAPES = {
    "135m": (576, 1536, 30, 9, 3),
    "360m": (960, 2560, 32, 15, 5),
    "1b": (2048, 8192, 16, 32, 8),
    "7b": (4096, 11008, 32, 32, 32),
}


def main() -> None:
    """Write one and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=tuple(SHAPES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    size = write_shape(options.shape, options.folder)
    print(f"{options.folder}: {size / 1e6:.0f} million parameters, random")


def write_shape(name: str, target: Path) -> int:
    """Write a base model of that shape; the same weights each time.

    Returns:
        Its number of parameters.
    """
    hidden, inner, layers, heads, key_heads = SHAPES[name]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder("builtin:smollm2-135m-instruct", None))
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=len(tokenizer), max_position_embeddings=8192,
        tie_word_embeddings=name != "7b", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return int(model.num_parameters())


if __name__ == "__main__":
    main()
