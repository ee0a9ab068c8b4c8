"""PPO's four roles on one base, and one rollout of them, as the stage puts them together. For the other benchmarks.

Policy, reference, value and an untrained reward model stand on one base, all but the reference with an adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from data_prep.records import Message, Origin, Prompt
from pipeline.batches import response_batch
from pipeline.models import adapters
from pipeline.models.forward import trunk_of, vocabulary_head, without_dropout
from pipeline.models.heads import new_head
from pipeline.models.load import load_base
from pipeline.models.roles import POLICY, REFERENCE, VALUE, Roles, Trunk
from pipeline.recipe.schema import AdapterSettings, ModelSettings
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.answers import Answer
from pipeline.rollouts.collect import MicroBatch, Shaping, collect, lay_out
from pipeline.rollouts.rewards import Episode
from pipeline.runtime import Ranks
from pipeline.stages.ppo_roles import adapter_parameters
from pipeline.stages.shared_trunk import trunk_cache

ALONE = Ranks(0, 0, 1)
REWARD = "reward"
PROMPT = Prompt(messages=(Message(role="user", content="x"),), origin=Origin(source="benchmark", row=1))


def scored_rollout(
    roles: Roles, prompts: Sequence[list[int]], answers: Sequence[Answer], settings: PpoSettings, pad: int, seed: int
) -> list[list[MicroBatch]]:
    """Answers scored by the reward role, with all that the policy learns from, as `pipeline.stages.ppo` does it.

    Only that the reward role reads them in the policy's passes, not in passes laid out for it.
    """
    episodes = [Episode(PROMPT, ids, answer, "") for ids, answer in zip(prompts, answers, strict=True)]
    lengths = [len(each.prompt_ids) + len(each.answer.ids) for each in episodes]
    samples = settings.samples_per_prompt
    layout = lay_out(lengths, settings.minibatches, settings.per_device_batch_size, ALONE, seed, samples=samples)
    scores = _scores(roles, episodes, layout, pad)
    used = [score - (not each.answer.stopped) for score, each in zip(scores, episodes, strict=True)]
    shaping = Shaping(
        temperature=settings.temperature, kl_coef=settings.kl_coef, gamma=settings.gamma,
        gae_lambda=settings.gae_lambda, whiten=settings.whiten_advantages, importance_cap=2.0,
        samples_per_prompt=samples,
    )  # fmt: skip
    return collect(roles, episodes, used, layout, shaping, pad)


@torch.no_grad()
def _scores(roles: Roles, episodes: list[Episode], layout: Any, pad: int) -> list[float]:
    found = {}
    for rows in (rows for micro_batches in layout for rows in micro_batches):
        batch = response_batch([episodes[i].prompt_ids for i in rows], [episodes[i].answer.ids for i in rows], pad)
        found.update(zip(rows, roles.scores(REWARD, batch).tolist(), strict=True))
    return [found[index] for index in range(len(episodes))]


def four_roles(base: Path, layers: str, precision: str, value_trunk: str | None = "own") -> tuple[Any, Roles]:
    """The policy's model and all roles.

    Args:
        base: folder of the base model.
        layers: that carry adapters: all, or top-N.
        precision: bf16 or fp32.
        value_trunk: what the value head stands on: an adapter of its own, or the policy's; None without a value model.
    """
    settings = ModelSettings(base=str(base), adapter=AdapterSettings(r=16, alpha=32, layers=layers))
    assert settings.adapter != "none"
    torch.manual_seed(0)
    model: Any = adapters.attach_new(
        load_base(base, settings, frozen=True, precision=precision), settings.adapter, dropout=False
    )
    of_value = {None: {}, "policy": {VALUE: adapters.TRAINED}, "own": {VALUE: VALUE}}[value_trunk]
    names: dict[str, str | None] = {POLICY: adapters.TRAINED, REFERENCE: None, **of_value, REWARD: REWARD}
    for name in (VALUE, REWARD):
        if name in names.values():
            model.add_adapter(name, model.peft_config[adapters.TRAINED])
    without_dropout(model).eval()
    trunk = trunk_of(model)
    trained = ((POLICY, adapters.TRAINED), (VALUE, VALUE))
    trunks = {
        role: Trunk(
            module=trunk, shared=model, adapter=name,
            trainable=adapter_parameters(model, name) if (role, name) in trained else (),
        )
        for role, name in names.items()
    }  # fmt: skip
    device = next(model.parameters()).device
    heads = {role: new_head(trunk.config.hidden_size, 0).to(device) for role in (VALUE, REWARD) if role in names}
    heads[REWARD].requires_grad_(False)
    recipe = SimpleNamespace(model=settings, stages={})
    context: Any = SimpleNamespace(recipe=recipe, stage="", console=SimpleNamespace(say=_to_stderr))
    head = vocabulary_head(model)
    return model, Roles(trunks, head, head, heads, model, precision, trunk_cache(context, model))


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
