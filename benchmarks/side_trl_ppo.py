"""TRL 1.12's PPOTrainer, the last release with one: its side of a comparison of PPO. Called by `compare`,
`ppo_memory` and `ppo_scores`.

    PYTHON_WITH_TRL_1_12 -m benchmarks.side_trl_ppo BASE_FOLDER PROMPTS.json OPTIONS_JSON

Reward and value models are whole models of their own, as it has no other way: the one in the folder `reward`, or
untrained. With `save_to` the trained policy is left there, merged. Of the project only `benchmarks.meter` is imported:
the environment needs trl==1.12, and transformers that fit it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.meter import Measured, StepClock, count_work

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Of Llama and its like; PEFT takes no `all-linear` beside layers."""


class Clock(StepClock):
    """Also notes the loss under the name that PPO logs it by."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the policy's loss."""
        if logs and "loss/policy_avg" in logs:
            self.measured.losses.append(float(logs["loss/policy_avg"]))


def main() -> None:
    """Train and print what was measured."""
    base, prompts_file, options_json = sys.argv[1:4]
    options = json.loads(options_json)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    rows = options["batch_size"] * options["accumulation"]
    prompts = Dataset.from_list([{"input_ids": ids} for ids in json.loads(Path(prompts_file).read_text())])
    measured = Measured(rows_per_step=rows)
    clock = Clock(measured)
    policy = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, options["peer_dtype"]))
    trainer = PPOTrainer(
        args=_arguments(options, tokenizer.eos_token_id),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=_classifier(options.get("reward", base), options),
        value_model=_classifier(options.get("reward", base), options),
        train_dataset=prompts,
        eval_dataset=prompts.select(range(min(rows, len(prompts)))),
        peft_config=_adapter(options, policy.config.num_hidden_layers),
        callbacks=[clock],
    )
    for model in (trainer.model.policy, trainer.model.value_model, trainer.reward_model):
        count_work(model, measured)
    clock.on_step_begin()
    trainer.train()
    if "save_to" in options:
        trainer.model.policy.merge_and_unload().save_pretrained(options["save_to"])
    measured.print()


def _classifier(base: str, options: dict[str, Any]) -> Any:
    dtype = getattr(torch, options["peer_dtype"])
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype)


def _adapter(options: dict[str, Any], layers: int) -> LoraConfig:
    top = options["peer_layers"]
    where: dict[str, Any] = {"target_modules": "all-linear"}
    if top != "all":
        first = layers - int(top.removeprefix("top-"))
        where = {"target_modules": LINEAR, "layers_to_transform": list(range(first, layers))}
    return LoraConfig(r=16, lora_alpha=32, task_type="CAUSAL_LM", **where)


def _arguments(options: dict[str, Any], stop_id: int) -> PPOConfig:
    arguments = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options["batch_size"],
        gradient_accumulation_steps=options["accumulation"],
        num_mini_batches=1,
        num_ppo_epochs=options["ppo_epochs"],
        total_episodes=options["batch_size"] * options["accumulation"] * options["steps"],
        response_length=options["answer"],
        local_rollout_forward_batch_size=options["batch_size"],
        missing_eos_penalty=options.get("missing_eos_penalty", 1.0),
        temperature=options.get("temperature", 1.0),
        kl_coef=options.get("kl_coef", 0.05),
        lam=options.get("gae_lambda", 0.95),
        learning_rate=options.get("learning_rate", 1e-5),
        seed=options.get("seed", 0),
        logging_steps=1,
        bf16=options["bf16"],
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
    )
    arguments.stop_token_id = stop_id
    return arguments


if __name__ == "__main__":
    main()
