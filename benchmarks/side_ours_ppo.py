"""Our side of a comparison of PPO: the stage's own rollouts, roles and learner on given prompts. Called by `compare`.

python -m benchmarks.side_ours_ppo BASE_FOLDER PROMPTS.json OPTIONS_JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.meter import Measured, StepClock, count_streaming_head, count_work
from benchmarks.ppo_parts import ALONE, four_roles, scored_rollout
from data_prep.chat import ChatFormatter
from pipeline.models.load import load_tokenizer
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.answers import Sampling
from pipeline.rollouts.generate import Generator
from pipeline.stages.ppo_engine import PolicyEngine
from pipeline.stages.ppo_update import Learner


def main() -> None:
    """Train and print what was measured."""
    base, prompts_file, options_json = sys.argv[1:4]
    options = json.loads(options_json)
    prompts: list[list[int]] = json.loads(Path(prompts_file).read_text())
    tokenizer = load_tokenizer(Path(base), "auto")
    rows = options["batch_size"] * options["accumulation"]
    settings = PpoSettings(
        learning_rate=1e-5, epochs=options["ppo_epochs"], rollout_batch_size=rows, minibatches=1,
        per_device_batch_size=options["batch_size"], max_new_tokens=options["answer"], schedule="constant",
        warmup_ratio=0.0, value_trunk=options["value_trunk"], samples_per_prompt=options["samples_per_prompt"],
        advantage_estimator=options["advantage_estimator"],
    )  # fmt: skip
    precision = "bf16" if options["bf16"] else "fp32"
    of_value = settings.value_trunk if settings.has_value_model else None
    model, roles = four_roles(Path(base), options["adapter_layers"], precision, of_value)
    measured = Measured(rows_per_step=rows)
    count_work(model, measured)
    count_streaming_head(measured)
    stops, pad = ChatFormatter(tokenizer).stop_ids, tokenizer.pad_token_id
    engine = PolicyEngine(roles, lambda each: Generator(each, pad, stops, rows, precision, ALONE))
    learner = Learner(roles, settings, options["steps"], ALONE, None, pad)
    clock = StepClock(measured)
    clock.on_step_begin()
    for step in range(options["steps"]):
        roles.forget()
        picked = [prompts[(step * rows + index) % len(prompts)] for index in range(rows)]
        answers = engine.answers(picked, Sampling(settings.max_new_tokens, settings.temperature, step))
        minibatches = scored_rollout(roles, picked, answers, settings, pad, step)
        measured.losses.append(learner.learn(minibatches, step, value_only=False).means()["policy/loss"])
        clock.on_step_end()
    measured.print()


if __name__ == "__main__":
    main()
