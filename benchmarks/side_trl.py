"""TRL's side of a comparison: its own trainer as its documentation shows it. Called by `compare`.

It learns from the tokens that our side learns from, and starts from the same adapter and score head, so that the curves
of both sides can be laid over each other.

python -m benchmarks.side_trl STAGE BASE_FOLDER ROWS.jsonl OPTIONS_JSON
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from benchmarks.meter import Measured, StepClock, count_work
from benchmarks.rows import read_rows
from pipeline.models.heads import new_head

TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig), "reward": (RewardTrainer, RewardConfig), "dpo": (DPOTrainer, DPOConfig)
}  # fmt: skip

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Of Llama and its like."""


def main() -> None:
    """Train and print what was measured."""
    stage, base, rows_file, options_json = sys.argv[1:5]
    options = json.loads(options_json)
    trainer_class, config_class = TRAINERS[stage]
    more = {"beta": 0.1} if stage == "dpo" else {}
    arguments = config_class(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options["batch_size"],
        gradient_accumulation_steps=options["accumulation"], max_steps=options["steps"], logging_steps=1,
        learning_rate=1e-4, save_strategy="no", report_to="none", disable_tqdm=True, bf16=options["bf16"],
        use_cpu=not torch.cuda.is_available(), max_length=options["max_length"], seed=0,
        gradient_checkpointing=False, **more,
    )  # fmt: skip
    task = "SEQ_CLS" if stage == "reward" else "CAUSAL_LM"
    measured = Measured(rows_per_step=options["batch_size"] * options["accumulation"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    trainer = trainer_class(
        model=_model(stage, base, options["peer_dtype"]),
        args=arguments,
        train_dataset=Dataset.from_list([_as_text(row, tokenizer) for row in read_rows(Path(rows_file))]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, task_type=task, **_places(base, options["peer_layers"])),
    )
    count_work(trainer.model, measured)
    trainer.add_callback(StepClock(measured))
    trainer.train()
    measured.print()


def _as_text(row: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    """A row behind the chat template, to whose answers TRL puts the end of turn.

    Of a row of messages it would learn the line break behind the end of turn too, which no answer ever gets to.
    """
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    answers = {name: turns[-1]["content"] for name, turns in row.items() if name != "prompt"}
    return {"prompt": prompt, **answers}


def _places(base: str, layers: str) -> dict[str, Any]:
    """Where the adapter goes; PEFT takes no `all-linear` beside layers."""
    if layers == "all":
        return {"target_modules": "all-linear"}
    count = AutoConfig.from_pretrained(base).num_hidden_layers
    top = int(layers.removeprefix("top-"))
    return {"target_modules": LINEAR, "layers_to_transform": list(range(count - top, count))}


def _model(stage: str, base: str, dtype: str) -> Any:
    options = {"dtype": getattr(torch, dtype)}
    if stage == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **options)
        model.score.weight.data.copy_(new_head(model.config.hidden_size, 0).weight)
        return model
    return AutoModelForCausalLM.from_pretrained(base, **options)


if __name__ == "__main__":
    main()
