"""Names that a recipe does not take: other programs' words for its keys, what the pipeline decides, and secrets.

Used twice: for an unknown key (what was probably meant) and for `trainer_args` (fields that would clash with it).
All other names in `trainer_args` are checked in the stage's worker, against the library's own config class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.recipe.foreign_ppo import PPO_DECIDED, PPO_KEYS

# Field of the training library's config class -> the key of the stage's block.
STAGE_KEYS = {
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "per_device_batch_size",
    "train_batch_size": "global_batch_size",
    "bf16": "precision",
    "fp16": "precision",
    "bf16_full_eval": "precision",
    "fp16_full_eval": "precision",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup_ratio",
    "warmup_steps": "warmup_ratio",
    "max_grad_norm": "max_grad_norm",
    "weight_decay": "weight_decay",
    "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "logging_steps": "log_every",
    "logging_strategy": "log_every",
    "save_steps": "save_every",
    "save_strategy": "save_every",
    "deepspeed": "deepspeed",
    "fsdp": "deepspeed",
    "fsdp_config": "deepspeed",
}
DPO_KEYS = {
    "beta": "beta",
    "loss_type": "loss_type",
    "label_smoothing": "label_smoothing",
    "rpo_alpha": "rpo_alpha",
    "loss_weights": "rpo_alpha",
    "precompute_ref_log_probs": "precompute_reference",
    "precompute_ref_batch_size": "per_device_batch_size",
}
REWARD_KEYS = {
    "center_rewards_coefficient": "center_coefficient",
}
SFT_KEYS = {
    "packing": "packing",
    "packing_strategy": "packing",
    "padding_free": "packing",
    "train_sampling_strategy": "group_by_length",
    "parallelism_config": "sequence_parallel_size",
}
KIND_KEYS = {"sft": SFT_KEYS, "dpo": DPO_KEYS, "reward": REWARD_KEYS, "ppo": PPO_KEYS}
# ... -> the key elsewhere in the recipe.
RUN_KEYS = {
    "output_dir": "output_dir",
    "logging_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "report_to": "tracking",
    "project": "tracking.wandb.project",
    "run_name": "name",
    "max_length": "data.<name>.max_length",
    "max_seq_length": "data.<name>.max_length",
    "max_prompt_length": "data.<name>.max_length",
    "chat_template_path": "data.chat_template",
    "model_init_kwargs": "model",
    "eos_token": "model.base",
    "pad_token": "model.base",
}
# Words of other programs, never fields of a config class of ours.
ALIASES = {
    "lr": "learning_rate",
    "lr_scheduler": "schedule",
    "num_epochs": "epochs",
    "batch_size": "global_batch_size",
    "micro_batch_size": "per_device_batch_size",
    "gradient_clipping": "max_grad_norm",
    "dataset": "data.sft.sources",
    "datasets": "data.sft.sources",
    "model_name": "model.base",
    "model_name_or_path": "model.base",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attention",
    "load_in_8bit": "model.quantization",
    "load_in_4bit": "model.quantization",
    "lora_r": "model.adapter.r",
    "lora_rank": "model.adapter.r",
    "rank": "model.adapter.r",
    "lora_alpha": "model.adapter.alpha",
    "lora_dropout": "model.adapter.dropout",
    "lora_target_modules": "model.adapter.target_modules",
    "cutoff_len": "data.<name>.max_length",
    "wandb_project": "tracking.wandb.project",
    "ref_model": "policy",
    "margin_loss_enable": "use_margins",
    "sp_size": "sequence_parallel_size",
    "cp_size": "sequence_parallel_size",
    "context_parallel_size": "sequence_parallel_size",
    "sequence_parallel_degree": "sequence_parallel_size",
}
# Words of our own other stages, in a stage of a kind that says it differently.
OTHER_KINDS = {
    "sft": {"policy": "init"},
    "reward": {"policy": "init"},
    "dpo": {"init": "policy", "kl_coef": "beta"},
    "ppo": {"init": "policy", "beta": "kl_coef", "global_batch_size": "rollout_batch_size", "max_steps": "episodes"},
}
# Decided by the pipeline, with the reason.
DECIDED = {
    "gradient_accumulation_steps": "it follows from global_batch_size and per_device_batch_size, exactly",
    "auto_find_batch_size": "batch sizes are exact: set per_device_batch_size",
    "trust_remote_code": "a recipe never runs code from a model's repository",
    "dataset_text_field": "rows are formatted and tokenised before the trainer sees them",
    "dataset_kwargs": "rows are formatted and tokenised before the trainer sees them",
    "truncation_mode": "prompts lose their beginning, answers are never cut",
    "completion_only_loss": "the loss is on the answers' tokens",
    "assistant_only_loss": "the loss is on the answers' tokens",
    "shuffle_dataset": "the order of the rows follows from the seed",
    "remove_unused_columns": "the pipeline decides what a batch holds",
    "resume_from_checkpoint": "running the same command again resumes",
    "save_only_model": "checkpoints carry all that an exact resume needs",
    "save_total_limit": "the pipeline keeps the last complete checkpoint",
    "load_best_model_at_end": "a stage's artefact is its last step's",
    "ignore_data_skip": "a resume goes on at the exact row",
    "restore_callback_states_from_checkpoint": "a resume restores everything",
    "enable_jit_checkpoint": "the pipeline saves on signals itself",
    "push_to_hub": "a run writes to its own folder only",
    "hub_model_id": "a run writes to its own folder only",
    "hub_strategy": "a run writes to its own folder only",
    "logging_nan_inf_filter": "a value that is not finite ends the run",
    "eval_strategy": "held-out rows are measured before and after training",
    "eval_steps": "held-out rows are measured before and after training",
    "packing": "every row keeps its own place in the batch",
    "eval_packing": "every row keeps its own place in the batch",
    "do_train": "a stage always trains and evaluates",
    "do_eval": "a stage always trains and evaluates",
    "do_predict": "a stage always trains and evaluates",
    "disable_tqdm": "progress follows from the terminal",
    "local_rank": "ranks come from the launcher",
}
NO_SECRETS = "no secrets in a recipe: it is copied into every run; use the environment (WANDB_API_KEY, HF_TOKEN, ...)"
_SECRET = re.compile(r"(^|_)(token|(api)?keys?|secrets?|passwords?|passwd|credentials?)$", re.IGNORECASE)
_TOKENIZER_TOKENS = {f"{name}_token" for name in ("eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop")}


def is_secret(name: str) -> bool:
    """Whether a key that the schema does not know looks like a password or token."""
    return bool(_SECRET.search(name.replace("-", "_"))) and name not in _TOKENIZER_TOKENS


def stage_word(name: str, kind: str | None) -> tuple[str | None, str | None]:
    """Return what a word means in the block of a stage of that kind in particular: a key, or why there is none."""
    own = KIND_KEYS.get(kind or "", {}).get(name) or OTHER_KINDS.get(kind or "", {}).get(name)
    return own, PPO_DECIDED.get(name) if kind == "ppo" else None


def meant_key(name: str) -> str | None:
    """Return the recipe's key for another program's word, if there is one."""
    known = {**RUN_KEYS, **REWARD_KEYS, **DPO_KEYS, **STAGE_KEYS, **ALIASES}
    return known.get(name)


def trainer_arg_problem(name: str, kind: str) -> str | None:
    """Say why a stage of `kind` does not take `name` in `trainer_args`; None where the library decides."""
    if own := STAGE_KEYS.get(name) or KIND_KEYS.get(kind, {}).get(name):
        return f"is the recipe's to set: write `{own}` in the stage's block"
    if name in RUN_KEYS:
        data = "sft" if kind == "sft" else "preference"
        return f"is the recipe's to set: use `{RUN_KEYS[name].replace('<name>', data)}`"
    if name in DECIDED:
        return f"cannot be set: {DECIDED[name]}"
    return None


def secrets_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each key in free-form settings that looks like a secret."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if is_secret(key):
                yield (*path, key)
            yield from secrets_in(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from secrets_in(inner, (*path, i))
