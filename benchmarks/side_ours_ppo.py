"""Our side of a comparison of PPO: the stage's own rollouts, roles and learner on given prompts. Called by `compare`.

python -m benchmarks.side_ours_ppo BASE_FOLDER PROMPTS.json OPTIONS_JSON

Policy, reference, value and an untrained reward model stand on one base, the last two with adapters of their own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.meter import Measured, StepClock, count_tokens
from data_prep.chat import ChatFormatter
from data_prep.records import Message, Origin, Prompt
from pipeline.models import adapters
from pipeline.models.forward import trunk_of, vocabulary_head, without_dropout
from pipeline.models.heads import new_head
from pipeline.models.load import load_base, load_tokenizer
from pipeline.models.roles import POLICY, REFERENCE, VALUE, Roles, Trunk
from pipeline.recipe.schema import AdapterSettings, ModelSettings
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.answers import Sampling
from pipeline.rollouts.collect import Shaping, collect, lay_out
from pipeline.rollouts.generate import Generator
from pipeline.rollouts.rewards import Episode
from pipeline.runtime import Ranks
from pipeline.stages.ppo_engine import PolicyEngine
from pipeline.stages.ppo_roles import adapter_parameters
from pipeline.stages.ppo_update import Learner
from pipeline.stages.shared_trunk import trunk_cache

ALONE = Ranks(0, 0, 1)
REWARD = "reward"
PROMPT = Prompt(messages=(Message(role="user", content="x"),), origin=Origin(source="benchmark", row=1))


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
        warmup_ratio=0.0,
    )  # fmt: skip
    precision = "bf16" if options["bf16"] else "fp32"
    model, roles = _roles(Path(base), options["adapter_layers"], precision)
    measured = Measured(rows_per_step=rows)
    count_tokens(model, measured)
    stops, pad = ChatFormatter(tokenizer).stop_ids, tokenizer.pad_token_id
    engine = PolicyEngine(roles, lambda each: Generator(each, pad, stops, rows, precision, ALONE))
    learner = Learner(roles, settings, options["steps"], ALONE, None, pad)
    clock = StepClock(measured)
    clock.on_step_begin()
    for step in range(options["steps"]):
        picked = [prompts[(step * rows + index) % len(prompts)] for index in range(rows)]
        measured.losses.append(_rollout(picked, step, roles, engine, learner, settings, pad))
        clock.on_step_end()
    measured.print()


def _rollout(
    prompts: list[list[int]], step: int, roles: Roles, engine: Any, learner: Learner, settings: PpoSettings, pad: int
) -> float:
    """As `pipeline.stages.ppo` does it; returns the policy's mean loss."""
    roles.forget()
    answers = engine.answers(prompts, Sampling(settings.max_new_tokens, settings.temperature, step))
    episodes = [Episode(PROMPT, ids, answer, "") for ids, answer in zip(prompts, answers, strict=True)]
    lengths = [len(each.prompt_ids) + len(each.answer.ids) for each in episodes]
    layout = lay_out(lengths, settings.minibatches, settings.per_device_batch_size, ALONE, step)
    scores = _scores(roles, episodes, layout, pad)
    used = [score - (not each.answer.stopped) for score, each in zip(scores, episodes, strict=True)]
    shaping = Shaping(
        temperature=settings.temperature, kl_coef=settings.kl_coef, gamma=settings.gamma,
        gae_lambda=settings.gae_lambda, whiten=settings.whiten_advantages, importance_cap=2.0,
    )  # fmt: skip
    minibatches = collect(roles, episodes, used, layout, shaping, pad)
    return learner.learn(minibatches, step, value_only=False).means()["policy/loss"]


@torch.no_grad()
def _scores(roles: Roles, episodes: list[Episode], layout: Any, pad: int) -> list[float]:
    from pipeline.batches import response_batch

    found = {}
    for rows in layout[0]:
        batch = response_batch([episodes[i].prompt_ids for i in rows], [episodes[i].answer.ids for i in rows], pad)
        found.update(zip(rows, roles.scores(REWARD, batch).tolist(), strict=True))
    return [found[index] for index in range(len(episodes))]


def _roles(base: Path, layers: str, precision: str) -> tuple[Any, Roles]:
    settings = ModelSettings(base=str(base), adapter=AdapterSettings(r=16, alpha=32, layers=layers))
    assert settings.adapter != "none"
    torch.manual_seed(0)
    model: Any = adapters.attach_new(
        load_base(base, settings, frozen=True, precision=precision), settings.adapter, dropout=False
    )
    for name in (VALUE, REWARD):
        model.add_adapter(name, model.peft_config[adapters.TRAINED])
    without_dropout(model).eval()
    trunk = trunk_of(model)
    names = {POLICY: adapters.TRAINED, REFERENCE: None, VALUE: VALUE, REWARD: REWARD}
    trunks = {
        role: Trunk(
            module=trunk, shared=model, adapter=name,
            trainable=adapter_parameters(model, name) if name and role in (POLICY, VALUE) else (),
        )
        for role, name in names.items()
    }  # fmt: skip
    device = next(model.parameters()).device
    heads = {role: new_head(trunk.config.hidden_size, 0).to(device) for role in (VALUE, REWARD)}
    heads[REWARD].requires_grad_(False)
    context: Any = SimpleNamespace(recipe=SimpleNamespace(model=settings), console=SimpleNamespace(say=_to_stderr))
    head = vocabulary_head(model)
    return model, Roles(trunks, head, head, heads, model, precision, trunk_cache(context, model))


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
