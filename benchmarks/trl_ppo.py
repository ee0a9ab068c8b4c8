"""TRL 1.12's PPOTrainer on made-up prompts, for memory and speed alone; called by the other benchmarks.

    PYTHON_WITH_TRL_1_12 benchmarks/trl_ppo.py BASE_FOLDER ROWS PROMPT_WORDS ANSWER_TOKENS

Reward and value models are untrained. Needs an environment of its own: trl==1.12, and transformers that fit it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

BASE, ROWS, PROMPT, ANSWER = sys.argv[1], *map(int, sys.argv[2:5])
tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
words = ("apple", "river", "seven", "stone", "cloud", "garden", "paper", "window", "silver", "morning", "table")
texts = [" ".join(words[(i * 7 + j * (1 + i % 5)) % len(words)] for j in range(PROMPT)) for i in range(4 * ROWS)]
prompts = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in texts])
bf16 = (
    any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16")) or torch.cuda.is_available()
)


def classifier() -> AutoModelForSequenceClassification:
    """A reward or value model."""
    return AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1, dtype=torch.float32)


arguments = PPOConfig(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=ROWS,
    gradient_accumulation_steps=2,
    num_mini_batches=1,
    num_ppo_epochs=2,
    total_episodes=4 * ROWS,
    response_length=ANSWER,
    local_rollout_forward_batch_size=ROWS,
    missing_eos_penalty=1.0,
    bf16=bf16,
    use_cpu=not torch.cuda.is_available(),
    gradient_checkpointing=False,
    num_sample_generations=0,
    save_strategy="no",
    report_to=[],
)
arguments.stop_token_id = tokenizer.eos_token_id
PPOTrainer(
    args=arguments,
    processing_class=tokenizer,
    model=AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32),
    ref_model=None,
    reward_model=classifier(),
    value_model=classifier(),
    train_dataset=prompts,
    eval_dataset=prompts.select(range(ROWS)),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
).train()
