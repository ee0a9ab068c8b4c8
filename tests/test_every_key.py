"""Every key of a recipe is read by something: changing it changes what a run would do.

A key that nothing reads is the worst kind of bug here: a user believes it. For each key of the schema the table below
holds a change, and the test asserts that the change shows in what the pipeline would hand to the libraries and to the
file system: trainer arguments, adapter and model options, encoded rows, prompts and sampling of the evaluation, W&B's
options, the run directory. A PPO stage is run, on a tiny model, and what it logs and leaves is compared. A new key
without a line here fails.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.recipe import LoadedRecipe, loads_recipe
from pipeline.recipe.vocabulary import is_block, members, schema_keys

RECIPE = """
name: every
model: {base: "builtin:tiny-llama", adapter: {r: 4}}
data:
  sft: {sources: [{path: builtin:alpaca_sample, limit: 12}, {path: builtin:alpaca_sample, limit: 6}], eval_limit: 6}
  preference: {sources: [{path: builtin:preference_sample, limit: 8}], eval_limit: 6}
stages:
  sft: {max_steps: 2}
  dpo: {max_steps: 2}
  more: {kind: sft, max_steps: 2}
  rpo: {kind: dpo, loss_type: rpo}
  reward: {max_steps: 2}
  judge: {kind: reward, max_steps: 2}
  late: {kind: dpo, max_steps: 2, global_batch_size: 4, learning_rate: 0.01, precision: fp32}
  ppo:
    episodes: 8
    rollout_batch_size: 4
    per_device_batch_size: 2
    learning_rate: 0.01
    max_new_tokens: 4
    precision: fp32
    gate: {min_accuracy: 0}
    eval_prompts: 3
"""

QUESTIONS = Path(__file__).parent / "data" / "questions.jsonl"
"""Two questions in MT-bench's form."""
PLAIN_ROWS = Path(__file__).parent / "data" / "plain_pairs.jsonl"
"""Pairs whose rows do not name their split, so that the hash of the prompt decides."""
DIRTY_ROWS = Path(__file__).parent / "data" / "dirty_pairs.jsonl"
"""A row at fault for every cleaning rule."""
EVALUATION_SETS = Path(__file__).parent / "data" / "evaluation_sets"
PAIRS_WITH_MARGINS = Path(__file__).parent / "data" / "margin_pairs.jsonl"

CHANGES: dict[str, str] = {
    "name": "name=other",
    "seed": "seed=18",
    "output_dir": "output_dir=elsewhere",
    "rank_timeout": "rank_timeout=60",
    "model.base": "model.base=builtin:smollm2-135m-instruct",
    "model.revision": "model.revision=abc",
    "model.dtype": "model.dtype=bfloat16",
    "model.quantization": "model.quantization=nf4",
    "model.attention": "model.attention=eager",
    "model.adapter": "model.adapter=none",
    "model.adapter.type": "model.adapter.type=dora",
    "model.adapter.r": "model.adapter.r=8",
    "model.adapter.alpha": "model.adapter.alpha=7",
    "model.adapter.dropout": "model.adapter.dropout=0.1",
    "model.adapter.target_modules": "model.adapter.target_modules=[q_proj]",
    "model.adapter.layers": "model.adapter.layers=top-1",
    "model.adapter.trunk_cache_gib": "model.adapter.trunk_cache_gib=0",
    "data.chat_template": "data.chat_template=alpaca",
    "data.prompts.from": "data.prompts.from=sft",
    "data.prompts.max_prompt_length": "data.prompts.max_prompt_length=20",
    "data.split": "data.split={reward: 0.3}",
    "data.decontaminate": f"data.decontaminate={{against: [{EVALUATION_SETS}/gsm8k]}}",
    "data.decontaminate.against": f"data.decontaminate.against=[{EVALUATION_SETS}/gsm8k]",
    "data.decontaminate.ngram": "data.decontaminate.ngram=9",
    "data.decontaminate.folder": f"data.decontaminate.folder={EVALUATION_SETS}",
    "data.sft": "data.sft.eval_limit=7",
    "data.preference": "data.preference.eval_limit=7",
    "evaluation.tasks": "evaluation.tasks=[kl]",
    "evaluation.policies": "evaluation.policies=[dpo]",
    "evaluation.prompts": "evaluation.prompts=3",
    "evaluation.kl_prompts": "evaluation.kl_prompts=2",
    "evaluation.max_new_tokens": "evaluation.max_new_tokens=5",
    "evaluation.batch_size": "evaluation.batch_size=2",
    "evaluation.best_of_n": "evaluation.best_of_n=[2, 4]",
    "evaluation.heldout_reward": "evaluation.heldout_reward=judge",
    "evaluation.judge": "evaluation.judge={url: 'http://a', model: m}",
    "evaluation.judge.url": "evaluation.judge={url: 'http://b', model: m}",
    "evaluation.judge.model": "evaluation.judge={url: 'http://a', model: n}",
    "evaluation.judge.prompts": "evaluation.judge={url: 'http://a', model: m, prompts: 2}",
    "evaluation.judge.timeout": "evaluation.judge={url: 'http://a', model: m, timeout: 5}",
    "evaluation.judge.attempts": "evaluation.judge={url: 'http://a', model: m, attempts: 2}",
    "evaluation.judge.parallel": "evaluation.judge={url: 'http://a', model: m, parallel: 1}",
    "evaluation.judge.questions": f"evaluation.judge={{url: 'http://a', model: m, questions: {QUESTIONS}}}",
    "evaluation.judge.question_tokens": "evaluation.judge.question_tokens=9",
    "tracking.wandb": "tracking.wandb={}",
    "tracking.wandb.project": "tracking.wandb={project: other}",
    "tracking.wandb.entity": "tracking.wandb={entity: team}",
    "tracking.wandb.log_weights": "tracking.wandb={log_weights: true}",
    "stages": "stages.last={kind: sft}",
    "stages.sft.init": "stages.more.init=sft",
    "stages.sft.packing": "stages.sft.packing=true",
    "stages.sft.group_by_length": "stages.sft.group_by_length=true",
    "stages.sft.sequence_parallel_size": "stages.sft.sequence_parallel_size=2",
    "stages.dpo.policy": "stages.dpo.policy=base",
    "stages.dpo.beta": "stages.dpo.beta=0.3",
    "stages.dpo.loss_type": "stages.dpo.loss_type=hinge",
    "stages.dpo.label_smoothing": "stages.dpo.label_smoothing=0.1",
    "stages.dpo.rpo_alpha": "stages.rpo.rpo_alpha=0.5",
    "stages.dpo.watch": "stages.late.watch=judge",
    "stages.dpo.eval_every": "stages.late.eval_every=1",
    "stages.dpo.eval_prompts": "stages.late.eval_prompts=2",
    "stages.dpo.max_new_tokens": "stages.late.max_new_tokens=5",
    "stages.dpo.select": "stages.late.select=heldout",
    "stages.dpo.stop_at_turn": "stages.late.stop_at_turn=true",
}
for data_set, source in (("sft", "alpaca_sample"), ("preference", "preference_sample")):
    CHANGES |= {
        f"data.{data_set}.sources": f"data.{data_set}.sources=[{{path: builtin:{source}, limit: 4}}]",
        f"data.{data_set}.max_length": f"data.{data_set}.max_length=150",
        f"data.{data_set}.eval_fraction": f"data.{data_set}.eval_fraction=0.6",
        f"data.{data_set}.eval_limit": f"data.{data_set}.eval_limit=3",
        f"data.{data_set}.sources[].path": f"data.{data_set}.sources.0.path=builtin:missing",
        f"data.{data_set}.sources[].format": f"data.{data_set}.sources.0.format=hh",
        f"data.{data_set}.sources[].revision": f"data.{data_set}.sources.0.revision=v1",
        f"data.{data_set}.sources[].split": f"data.{data_set}.sources.0.split=test",
        f"data.{data_set}.sources[].limit": f"data.{data_set}.sources.0.limit=5",
        f"data.{data_set}.sources[].weight": f"data.{data_set}.sources.1.weight=5",
        f"data.{data_set}.sources[].count": f"data.{data_set}.sources=[{{path: builtin:{source}, count: 4}}]",
        f"data.{data_set}.sources[].map": f"data.{data_set}.sources.0.map={{instruction: task}}",
        f"data.{data_set}.sources[].on_bad_row": f"data.{data_set}.sources.0.on_bad_row=quarantine",
        f"data.{data_set}.shuffle": f"data.{data_set}.shuffle=true",
    }
CLEANING = {
    "repair": "false",
    "empty_answers": "keep",
    "languages": "[en]",
    "language_confidence": "0.9999",
    "min_characters": "5",
    "max_characters": "90",
    "min_words": "3",
    "max_words": "15",
    "min_tokens": "6",
    "max_tokens": "90",
    "min_word_length": "3.5",
    "max_word_length": "4.5",
    "duplicate_lines": "0.2",
    "repetition": "0.2",
    "special_characters": "0.1",
    "profanity": "answers",
    "harm": "{model: judge}",
    "harm.model": "another",
    "harm.label": "bad",
    "harm.threshold": "0.9",
    "harm.where": "anywhere",
    "refusals": "drop",
    "url_answers": "drop",
    "truncated": "drop",
    "placeholders": "drop",
    "personal_data": "mask",
    "secrets": "mask",
    "min_quality": "0.9",
    "near_duplicates": "{}",
    "near_duplicates.of": "prompts",
    "near_duplicates.threshold": "1.0",
    "near_duplicates.held_out": "false",
    "near_duplicates.other_set": "true",
}
PAIR_CLEANING = {"label_conflicts": "drop", "near_equal_pairs": "0.8"}
for data_set, rules in (("sft", CLEANING), ("preference", CLEANING | PAIR_CLEANING)):
    CHANGES[f"data.{data_set}.clean"] = f"data.{data_set}.clean.min_characters=5"
    CHANGES |= {f"data.{data_set}.clean.{rule}": f"data.{data_set}.clean.{rule}={to}" for rule, to in rules.items()}
for stage in ("sft", "reward", "ppo", "dpo"):
    CHANGES |= {
        f"stages.{stage}.kind": f"stages.again={{kind: {stage}}}",
        f"stages.{stage}.learning_rate": f"stages.{stage}.learning_rate=1e-6",
        f"stages.{stage}.epochs": f"stages.{stage}.epochs=3",
        f"stages.{stage}.per_device_batch_size": f"stages.{stage}.per_device_batch_size=1",
        f"stages.{stage}.tokens_per_device": f"stages.{stage}.tokens_per_device=1",
        f"stages.{stage}.precision": f"stages.{stage}.precision=bf16",
        f"stages.{stage}.schedule": f"stages.{stage}.schedule=constant",
        f"stages.{stage}.warmup_ratio": f"stages.{stage}.warmup_ratio=0.5",
        f"stages.{stage}.max_grad_norm": f"stages.{stage}.max_grad_norm=1e-3",
        f"stages.{stage}.weight_decay": f"stages.{stage}.weight_decay=0.1",
        f"stages.{stage}.gradient_checkpointing": f"stages.{stage}.gradient_checkpointing=true",
        f"stages.{stage}.log_every": f"stages.{stage}.log_every=2",
        f"stages.{stage}.save_every": f"stages.{stage}.save_every=1",
        f"stages.{stage}.deepspeed": f"stages.{stage}.deepspeed=none",
    }
for stage in ("sft", "reward", "dpo"):
    CHANGES |= {
        f"stages.{stage}.max_steps": f"stages.{stage}.max_steps=9",
        f"stages.{stage}.global_batch_size": f"stages.{stage}.global_batch_size=8",
        f"stages.{stage}.engine": f"stages.{stage}.engine=trl",
        f"stages.{stage}.trainer_args": f"stages.{stage}.trainer_args={{adam_beta1: 0.5}}",
    }
CHANGES |= {
    "stages.dpo.precompute_reference": "stages.dpo.precompute_reference=true",
    "stages.reward.init": "stages.reward.init=base",
    "stages.reward.center_coefficient": "stages.reward.center_coefficient=0.1",
    "stages.reward.use_margins": "stages.reward.use_margins=false",
    "stages.reward.seed": "stages.reward.seed=5",
    "stages.reward.ensemble": "stages.reward.ensemble=2",
    "stages.reward.aggregate": "stages.reward.aggregate=min",
    "stages.reward.variance_weight": "stages.reward.variance_weight=0.7",
    "stages.ppo.value_learning_rate": "stages.ppo.value_learning_rate=1e-6",
    "stages.ppo.policy": "stages.ppo.policy=base",
    "stages.ppo.reward_model": "stages.ppo.reward_model=reward",
    "stages.ppo.rewards": "stages.ppo.rewards=[{from: judge}, {from: function}]",
    "stages.ppo.rewards[].from": "stages.ppo.rewards.0.from=reward",
    "stages.ppo.rewards[].revision": "stages.ppo.rewards.0.revision=v1",
    "stages.ppo.rewards[].weight": "stages.ppo.rewards.0.weight=2",
    "stages.ppo.normalise_scores": "stages.ppo.normalise_scores=false",
    "stages.ppo.gate.min_accuracy": "stages.ppo.gate.min_accuracy=0.99",
    "stages.ppo.episodes": "stages.ppo.episodes=16",
    "stages.ppo.rollout_batch_size": "stages.ppo.rollout_batch_size=8",
    "stages.ppo.generation_batch_size": "stages.ppo.generation_batch_size=1",
    "stages.ppo.minibatches": "stages.ppo.minibatches=2",
    "stages.ppo.max_new_tokens": "stages.ppo.max_new_tokens=3",
    "stages.ppo.temperature": "stages.ppo.temperature=0.5",
    "stages.ppo.rollout_engine": "stages.ppo.rollout_engine=paged",
    "stages.ppo.vllm.url": "stages.ppo.vllm.url=http://127.0.0.1:9",
    "stages.ppo.vllm.gpu_memory_utilization": "stages.ppo.vllm.gpu_memory_utilization=0.5",
    "stages.ppo.vllm.importance_cap": "stages.ppo.vllm.importance_cap=1.5",
    "stages.ppo.kl_coef": "stages.ppo.kl_coef=1",
    "stages.ppo.kl_target": "stages.ppo.kl_target=1",
    "stages.ppo.kl_horizon": "stages.ppo.kl_horizon=50",
    "stages.ppo.kl_max": "stages.ppo.kl_max=1e-6",
    "stages.ppo.gamma": "stages.ppo.gamma=0.5",
    "stages.ppo.gae_lambda": "stages.ppo.gae_lambda=0.1",
    "stages.ppo.whiten_advantages": "stages.ppo.whiten_advantages=false",
    "stages.ppo.clip_range": "stages.ppo.clip_range=1e-4",
    "stages.ppo.clip_range_high": "stages.ppo.clip_range_high=1e-4",
    "stages.ppo.dual_clip": "stages.ppo.dual_clip=1.0001",
    "stages.ppo.value_clip": "stages.ppo.value_clip=1e-4",
    "stages.ppo.loss_aggregation": "stages.ppo.loss_aggregation=sequence_sum",
    "stages.ppo.entropy_coef": "stages.ppo.entropy_coef=1",
    "stages.ppo.stop_kl": "stages.ppo.stop_kl=1e-9",
    "stages.ppo.value_init": "stages.ppo.value_init=zero",
    "stages.ppo.value_warmup": "stages.ppo.value_warmup=1",
    "stages.ppo.value_trunk": "stages.ppo.value_trunk=policy",
    "stages.ppo.samples_per_prompt": "stages.ppo.samples_per_prompt=2",
    "stages.ppo.advantage_estimator": "stages.ppo.advantage_estimator=rloo",
    "stages.ppo.value_coef": "stages.ppo.value_coef=5",
    "stages.ppo.missing_eos_penalty": "stages.ppo.missing_eos_penalty=3",
    "stages.ppo.overlong_buffer": "stages.ppo.overlong_buffer=2",
    "stages.ppo.overlong_penalty": "stages.ppo.overlong_penalty=3",
    "stages.ppo.score_clip": "stages.ppo.score_clip=0.1",
    "stages.ppo.ptx_coef": "stages.ppo.ptx_coef=1",
    "stages.ppo.eval_every": "stages.ppo.eval_every=1",
    "stages.ppo.eval_prompts": "stages.ppo.eval_prompts=2",
    "stages.ppo.select": "stages.ppo.select=last",
    "stages.ppo.watch": "stages.ppo.watch=judge",
    "stages.ppo.stop_at_turn": "stages.ppo.stop_at_turn=true",
}

BESIDES: dict[str, list[str]] = {
    "model.adapter.trunk_cache_gib": ["model.adapter.layers=top-1"],
    "model.revision": ["model.base=owner/name"],
    "data.sft.sources[].weight": ["data.sft.sources.0.weight=1", "data.sft.sources.1.weight=1"],
    "data.preference.sources[].weight": [
        "data.preference.sources=[{path: builtin:preference_sample, limit: 8, weight: 1}, "
        "{path: builtin:preference_sample, limit: 4, weight: 1}]"
    ],
    "stages.reward.use_margins": [f"data.preference.sources=[{{path: {PAIRS_WITH_MARGINS}}}]"],
    "stages.reward.aggregate": ["stages.reward.ensemble=2"],
    "stages.reward.variance_weight": ["stages.reward.ensemble=2", "stages.reward.aggregate=mean_minus_variance"],
    "stages.ppo.rewards[].from": ["stages.ppo.rewards=[{from: judge}]"],
    "stages.ppo.rewards[].revision": ["stages.ppo.rewards=[{from: owner/name}]"],
    "stages.ppo.rewards[].weight": ["stages.ppo.rewards=[{from: judge}]"],
    "stages.ppo.kl_horizon": ["stages.ppo.kl_target=1"],
    "stages.ppo.stop_kl": ["stages.ppo.minibatches=2"],
    "stages.ppo.select": ["stages.ppo.kl_coef=5", "stages.ppo.learning_rate=0.05"],
    "evaluation.heldout_reward": ["stages.judge.seed=5"],
    "stages.ppo.watch": ["stages.judge.seed=5", "stages.ppo.reward_model=reward"],
    "stages.ppo.stop_at_turn": ["stages.judge.seed=5", "stages.ppo.watch=judge"],
    "stages.ppo.overlong_penalty": ["stages.ppo.overlong_buffer=2"],
    "stages.ppo.value_coef": ["stages.ppo.value_trunk=policy"],
    "stages.ppo.advantage_estimator": ["stages.ppo.samples_per_prompt=2"],
    "stages.ppo.vllm.url": ["stages.ppo.rollout_engine=vllm_server"],
    "stages.ppo.vllm.gpu_memory_utilization": ["stages.ppo.rollout_engine=vllm_colocate"],
    "stages.ppo.vllm.importance_cap": ["stages.ppo.rollout_engine=vllm_server"],
}
"""What a key needs beside it to have an effect: in the recipe that is changed and in the one it is compared with."""
for data_set in ("sft", "preference"):
    BESIDES |= {
        f"data.{data_set}.eval_fraction": [f"data.{data_set}.sources=[{{path: {PLAIN_ROWS}}}]"],
        f"data.{data_set}.sources[].revision": [f"data.{data_set}.sources=[{{path: 'hub:a/b'}}]"],
        f"data.{data_set}.sources[].split": [f"data.{data_set}.sources=[{{path: 'hub:a/b'}}]"],
    }
    dirty = f"data.{data_set}.sources=[{{path: {DIRTY_ROWS}}}]"
    BESIDES |= {f"data.{data_set}.clean.{rule}": [dirty] for rule in CLEANING | PAIR_CLEANING}
    BESIDES[f"data.{data_set}.clean.language_confidence"].append(f"data.{data_set}.clean.languages=[en]")
    for rule in ("model", "label", "threshold", "where"):
        BESIDES[f"data.{data_set}.clean.harm.{rule}"].append(f"data.{data_set}.clean.harm={{model: judge}}")
    for rule in ("of", "threshold", "held_out"):
        BESIDES[f"data.{data_set}.clean.near_duplicates.{rule}"].append(f"data.{data_set}.clean.near_duplicates={{}}")
    # The bundled samples ask some of their questions in the same words.
    BESIDES[f"data.{data_set}.clean.near_duplicates.other_set"] = [
        f"data.{data_set}.clean.near_duplicates={{threshold: 0.3}}"
    ]
_DIRTY_SFT = f"data.sft.sources=[{{path: {DIRTY_ROWS}}}]"
_AGAINST = f"data.decontaminate={{against: [{EVALUATION_SETS}/gsm8k]}}"
BESIDES |= {
    "data.decontaminate": [_DIRTY_SFT],
    "data.decontaminate.against": [_DIRTY_SFT, f"data.decontaminate={{against: [{PLAIN_ROWS}]}}"],
    "data.decontaminate.ngram": [_DIRTY_SFT, _AGAINST],
    "data.decontaminate.folder": [_DIRTY_SFT, "data.decontaminate={against: [gsm8k]}"],
}
for key in ("eval_every", "eval_prompts", "max_new_tokens", "select", "stop_at_turn"):
    watching = ["stages.late.watch=judge", "stages.late.eval_prompts=3", "stages.late.max_new_tokens=4"]
    BESIDES[f"stages.dpo.{key}"] = [*watching, *(["stages.late.eval_every=1"] if key == "stop_at_turn" else [])]
for key in ("url", "model", "prompts", "timeout", "attempts", "parallel"):
    BESIDES[f"evaluation.judge.{key}"] = ["evaluation.judge={url: 'http://a', model: m}"]
BESIDES["evaluation.judge.questions"] = BESIDES["evaluation.judge.url"]
BESIDES["evaluation.judge.question_tokens"] = [CHANGES["evaluation.judge.questions"]]
for stage in ("sft", "reward", "ppo", "dpo"):
    BESIDES[f"stages.{stage}.precision"] = [f"stages.{stage}.precision=fp32"]

LEAVES = [key for key in schema_keys() if not all(is_block(part) for part in members(key.field.annotation))]


def test_every_key_has_a_change() -> None:
    assert {key.path for key in LEAVES} - set(CHANGES) == set()
    assert set(CHANGES) - {key.path for key in schema_keys()} == set()


@dataclass(frozen=True)
class World:
    """What stages find around them."""

    folder: Path
    """For what they leave; the stages write to the same places every time, as a refusal may name them."""
    tiny_folder: Path
    artefacts: dict[str, Any]
    """A sealed one for each stage that others stand on."""
    function: Any
    """A reward of one's own."""


class Probes:
    """What a run of a recipe would ask of libraries, data and file system, as comparable data."""

    def __init__(self, world: World):
        self._parts: dict[str, Callable[[Any], Any]] = {
            "files": lambda recipe: (str(LoadedRecipe(recipe, Path()).output_dir), [*recipe.stages], recipe.name),
            "model": _model,
            "frozen_trunk": _frozen_trunk,
            "trainers": _trainers,
            "environments": _environments,
            "peers": _peers,
            "parents": _parents,
            "sft_rows": lambda recipe: _rows(recipe, "sft", world.tiny_folder),
            "preference_rows": lambda recipe: _rows(recipe, "preference", world.tiny_folder),
            "evaluation": lambda recipe: _evaluation(recipe, world.tiny_folder),
            "tracking": _tracking,
            "reward": lambda recipe: _reward(_context_of(recipe, "reward", world)),
            "engine": lambda recipe: _engine(_context_of(recipe, "ppo", world)),
            "ppo": lambda recipe: _ppo(_context_of(recipe, "ppo", world)),
            "watch": lambda recipe: _watch(_context_of(recipe, "late", world)),
        }
        self._known: dict[tuple[str, ...], Any] = {}

    def differ(self, one: list[str], other: list[str], first: str) -> bool:
        """Whether two sets of overrides would make different runs; the part named first is where to look first."""
        parts = sorted(self._parts, key=lambda part: part != first)
        return any(self.effect(part, one) != self.effect(part, other) for part in parts)

    def effect(self, part: str, overrides: list[str], *, anew: bool = False) -> Any:
        """What one part looks like."""
        key = (part, *overrides)
        if anew or key not in self._known:
            recipe = loads_recipe(RECIPE, overrides=overrides).recipe
            self._known[key] = _outcome(lambda: self._parts[part](recipe))
        return self._known[key]

    def __iter__(self) -> Any:
        return iter(self._parts)


@pytest.fixture(scope="module")
def probes(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Probes:
    from pipeline.reward_function import find

    folder = tmp_path_factory.mktemp("every-key")
    (folder / "mine.py").write_text("def f(prompts, answers):\n    return [len(answer) % 3 for answer in answers]\n")
    return Probes(World(folder, tiny_folder, _artefacts(folder, tiny_folder), find(f"{folder}/mine.py:f")))


@pytest.mark.parametrize("path", sorted(CHANGES))
def test_a_changed_key_changes_the_run(path: str, probes: Probes) -> None:
    beside = BESIDES.get(path, [])
    block, _, rest = path.partition(".")
    kind = rest.split(".")[0] if block == "stages" else f"{rest.split('.')[0]}_rows" if block == "data" else ""
    assert probes.differ(beside, [*beside, CHANGES[path]], first=kind if kind in probes else "trainers")


def test_an_equal_recipe_has_equal_effects(probes: Probes) -> None:
    """Else every change would pass."""
    for part in probes:
        before = probes.effect(part, [])
        assert probes.effect(part, [], anew=True) == before, part
        assert "Error: " not in str(before)[:40], f"{part} is refused: {before}"


def _outcome(part: Any) -> Any:
    """The value, or the sentence in which the pipeline refuses: both are effects."""
    from pipeline.errors import TrivetError

    try:
        return part()
    except TrivetError as error:
        return f"{type(error).__name__}: {error}"


def _model(recipe: Any) -> Any:
    """Which weights, loaded how, with which adapter."""
    from unittest import mock

    import peft
    import transformers

    from pipeline.models import adapters, load, source

    with mock.patch.object(source, "_hub_commit", lambda base, revision, where: f"commit-{revision}"):
        identity = source.identify(recipe.model.base, recipe.model.revision)
    model = mock.MagicMock()
    model.get_base_model.return_value = _small_model()
    loaded = (model, {"missing_keys": []})
    with (
        mock.patch.object(transformers.AutoModelForCausalLM, "from_pretrained", return_value=loaded) as loading,
        mock.patch.object(peft, "get_peft_model", lambda base, config, **rest: config),
        mock.patch.object(adapters, "with_direct_passes", lambda config: config),
    ):
        options = _outcome(lambda: load.load_base(Path("x"), recipe.model, frozen=True, precision="fp32") and None)
        model.is_quantized = False
        config = None
        if recipe.model.adapter != "none":
            config = str(
                sorted(adapters.attach_new(model, recipe.model.adapter, dropout=True).to_dict().items(), key=str)
            )
    return identity, options, str(loading.call_args), config


def _small_model() -> Any:
    """A real one, where a stand-in would have no layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 8}
    return LlamaForCausalLM(LlamaConfig(**size))


def _frozen_trunk(recipe: Any) -> Any:
    """How many layers lie below the adapter, and whether what they give is kept."""
    from pipeline.models import adapters
    from pipeline.models.stream_forward import attend_in_streams
    from pipeline.stages.shared_trunk import trunk_cache

    if recipe.model.adapter == "none":
        return None
    model = adapters.attach_new(_small_model(), recipe.model.adapter, dropout=False)
    assert attend_in_streams(model) is None
    context = SimpleNamespace(recipe=recipe, stage="sft", console=SimpleNamespace(say=print))
    found = trunk_cache(context, model)
    return found and (len(found.trunk.frozen), found.has_room_for(1))


def _context(recipe: Any, stage: str, folder: Path = Path("folder")) -> Any:
    from pipeline.runtime import Ranks

    return SimpleNamespace(
        recipe=recipe, stage=stage, checkpoints=folder / "checkpoints", ranks=Ranks(0, 0, 1), parents={},
        console=SimpleNamespace(say=print),
    )  # fmt: skip


def _trainers(recipe: Any) -> Any:
    from trl import DPOConfig, SFTConfig

    from pipeline.recipe import DpoSettings, SftSettings, ds_config_file
    from pipeline.runtime import Ranks
    from pipeline.stages.dpo_loss import loss_arguments
    from pipeline.stages.engine import choose_engine
    from pipeline.stages.offline import training_arguments
    from pipeline.stages.sft_batches import batch_arguments
    from pipeline.stages.sft_pieces import Sharing

    found = {}
    for name, settings in recipe.stages.items():
        if not isinstance(settings, (SftSettings, DpoSettings)):
            continue
        is_dpo = isinstance(settings, DpoSettings)
        if is_dpo:
            fixed = {"beta": settings.beta, **loss_arguments(settings)}
        else:
            groups = Sharing.of(settings, Ranks(0, 0, 2), name).groups
            fixed = {"groups": groups, **batch_arguments(settings, recipe.data.sft.max_length)}
        without_engine = settings.model_copy(update={"deepspeed": "none"})
        arguments = training_arguments(
            DPOConfig if is_dpo else SFTConfig, without_engine, _context(recipe, name), **fixed
        )
        kept = {key: str(value) for key, value in arguments.to_dict().items() if key != "logging_dir"}
        engine = choose_engine(_context(recipe, name), without_engine, [])
        # What the objective reads itself; that both change losses or passes, the stages' own tests show.
        read = [getattr(settings, key, None) for key in ("rpo_alpha", "precompute_reference")]
        found[name] = kept, str(ds_config_file(settings.deepspeed)), read, engine
    return found


def _environments(recipe: Any) -> Any:
    """Whether each stage's process is told of the engine that the launch configured."""
    from unittest import mock

    from pipeline import processes

    found = {}
    with mock.patch.dict("os.environ", {"ACCELERATE_USE_DEEPSPEED": "true"}):
        for name, settings in recipe.stages.items():
            assignment = SimpleNamespace(settings={"stage": settings.model_dump()})
            found[name] = "ACCELERATE_USE_DEEPSPEED" in processes._worker_environment(1, assignment)
    return found


def _peers(recipe: Any) -> Any:
    """How a worker joins the others."""
    from unittest import mock

    import accelerate

    from pipeline import worker
    from pipeline.runtime import Ranks

    with mock.patch.object(accelerate, "PartialState") as joined:
        worker._start_peers(Ranks(0, 0, 2), recipe)
    return str(joined.call_args)


def _parents(recipe: Any) -> Any:
    from unittest import mock

    from pipeline import plan
    from pipeline.models import source
    from pipeline.models.source import BaseIdentity

    with (
        mock.patch.object(plan, "source_fingerprint", lambda source: source.path),
        mock.patch.object(source, "_hub_commit", lambda base, revision, where: f"commit-{revision}"),
    ):
        nodes = plan.make_nodes(recipe, BaseIdentity("b", None, "f"), Path("store"))
    models = [[each.get("model") for each in node.settings.get("rewards", ())] for node in nodes]
    return [(node.name, node.kind, node.parents) for node in nodes], models


def _rows(recipe: Any, data_set: str, tiny_folder: Path) -> Any:
    from unittest import mock

    from data_prep import build, data_sets
    from data_prep.chat import ChatFormatter
    from data_prep.cleaning import cleaner
    from pipeline.models.load import load_tokenizer

    asked = []

    def remember(read: Any) -> Any:
        def reading(spec: Any) -> Any:
            asked.append(spec)
            return read(spec)

        return reading

    def classifier(settings: Any) -> Any:
        """In place of a model on disk: what it says depends on which model it is, and on the label."""
        return lambda texts: [len(f"{settings.model}{settings.label}{text}") % 10 / 10 for text in texts]

    with (
        mock.patch.object(build, "kept_or_made", lambda *given: given[-1]()),
        mock.patch.object(cleaner, "load_classifier", classifier),
        mock.patch.object(data_sets, "read_demonstrations", remember(data_sets.read_demonstrations)),
        mock.patch.object(data_sets, "read_pairs", remember(data_sets.read_pairs)),
    ):
        formatter = ChatFormatter(load_tokenizer(tiny_folder, recipe.data.chat_template))
        encode = build.encode_demonstrations if data_set == "sft" else build.encode_pairs
        return _outcome(lambda: _ids(encode(recipe.data, formatter, recipe.seed))), asked


def _ids(encoded: Any) -> Any:
    train, held_out, report = encoded
    return [str(row) for row in train.rows], [str(row) for row in held_out.rows], report


def _evaluation(recipe: Any, tiny_folder: Path) -> Any:
    """What evaluation asks of generator and scorer, with stand-ins for both and for the policies."""
    from contextlib import contextmanager
    from unittest import mock

    from data_prep.chat import ChatFormatter
    from evaluation import measuring
    from evaluation.judging import grading
    from evaluation.judging import policies as judging
    from evaluation.judging.grading import Graded
    from evaluation.judging.win_rate import Verdict
    from evaluation.likelihood import Likelihood
    from pipeline.models.load import load_tokenizer
    from pipeline.rollouts.answers import Answer

    calls: list[Any] = []

    class Stub:
        names = ("base", "dpo")

        def __init__(self, *args: Any):
            calls.append(("policies", sorted(args[-1])))

        @contextmanager
        def use(self, name: str) -> Any:
            yield name

    def answers(self: Any, prompts: Any, sampling: Any, progress: Any = None) -> Any:
        calls.append(("answers", self.batch_size, list(map(list, prompts)), sampling))
        return [Answer([2], True) for _ in prompts]

    def score(self: Any, rows: Any, progress: Any = None) -> Any:
        calls.append(("score", self.batch_size, len(rows)))
        return [Likelihood(-1.0, 1) for _ in rows]

    def judge_all(matches: Any, endpoint: Any, cache: Any, *, parallel: int, progress: Any) -> Any:
        asked = (endpoint.url, endpoint.model, endpoint.timeout, endpoint.attempts)
        calls.append(("judged", len(matches), parallel, asked))
        return [Verdict(a_first=0.5, b_first=0.5, a_length=1, b_length=1) for _ in matches]

    context = _context(recipe, "evaluation")
    context.base_folder = tiny_folder
    context.ranks = SimpleNamespace(is_first=False)
    context.progress = lambda task: print
    context.stop = SimpleNamespace(agreed=lambda: False)
    formatter = ChatFormatter(load_tokenizer(tiny_folder, recipe.data.chat_template))
    with (
        mock.patch.object(measuring, "Policies", Stub),
        mock.patch.object(measuring, "once", lambda context, name, compute: compute()),
        mock.patch.object(measuring.Generator, "answers", answers),
        mock.patch.object(measuring.Scorer, "score", score),
        mock.patch.object(judging, "judge_all", judge_all),
        mock.patch.object(
            grading, "grade_all", lambda questions, *rest, **more: [Graded(answers=(), grades=()) for _ in questions]
        ),
    ):
        evaluation = measuring.Measurements(context, formatter, 0, "fp32", {})
        rows = {name: evaluation.row(name) for name in Stub.names}
        scored = {"scores": [0.5] * len(evaluation._sampled_prompts)}
        evaluation._rewards._scores = lambda judge, rows, name: scored  # type: ignore[method-assign]
        further = evaluation.reference_scores({evaluation.reference: [1.0] * len(evaluation._sampled_prompts)})
        answers = {name: evaluation._answers(name) for name in ("base", evaluation.reference)}
        judged = evaluation.judged(answers).figures
        graded = evaluation.graded()
    return rows, further, judged, graded, calls, evaluation.judges


def _tracking(recipe: Any) -> Any:
    from pipeline.console import Console
    from pipeline.wandb_mirror import WandbMirror

    if recipe.tracking.wandb is None:
        return None
    mirror = WandbMirror(recipe.tracking.wandb, Path("run"), recipe.name, "sft", "key", Console(None))
    return mirror._options, mirror._weights


def _artefacts(folder: Path, tiny_folder: Path) -> dict[str, Any]:
    """An SFT policy and a reward model, made by the stages themselves; both reward stages are taken to have left it."""
    from pipeline.artefact import open_artefact
    from pipeline.assignment import Assignment
    from pipeline.models.source import identify
    from pipeline.worker import run_here

    recipe = loads_recipe(RECIPE).recipe
    for stage, parents in (("sft", {}), ("reward", {"init": str(folder / "sft")})):
        assignment = Assignment(
            stage=stage, kind=stage, key=stage * 16, algorithm_version=1, settings={},
            recipe=recipe.model_dump(mode="json", by_alias=True), folder=str(folder / stage), run_dir=str(folder),
            parents=parents, base=identify(recipe.model.base, None), base_folder=str(tiny_folder),
        )  # fmt: skip
        run_here(assignment)
    sft, reward = (open_artefact(folder / stage) for stage in ("sft", "reward"))
    return {"sft": sft, "more": sft, "reward": reward, "judge": reward}


def _context_of(recipe: Any, stage: str, world: World) -> Any:
    """A stage's context as its worker makes it, with a tracker that remembers nothing."""
    from pipeline.console import Console
    from pipeline.context import StageContext
    from pipeline.models.source import identify
    from pipeline.recipe import parents_of
    from pipeline.runtime import Ranks, StopRequest
    from pipeline.tracking import SilentTracker

    folder = world.folder / "stages" / stage
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return StageContext(
        recipe=recipe, stage=stage, folder=folder,
        parents={role: world.artefacts[name] for role, name in parents_of(recipe, stage).items()},
        base=identify("builtin:tiny-llama", None), base_folder=world.tiny_folder, ranks=Ranks(0, 0, 1),
        stop=StopRequest(), console=Console(None), tracker=SilentTracker(), reward_function=world.function,
    )  # fmt: skip


def _reward(context: Any) -> Any:
    """A reward stage, all but its training: what its trainer is given, and what becomes of the members' scores."""
    from unittest import mock

    from pipeline.stages import reward, reward_member

    given: list[Any] = []

    def trainer(*, model: Any, args: Any, **rest: Any) -> Any:
        arguments = {name: str(value) for name, value in args.to_dict().items()}
        paths = {name for name, value in arguments.items() if str(context.folder) in value}
        rows = [*rest.get("train_dataset", rest.get("rows"))]
        given.append(({name: arguments[name] for name in arguments.keys() - paths}, rows))
        return SimpleNamespace(state=SimpleNamespace(global_step=0))

    with (
        mock.patch.object(reward_member, "CommittedRewardTrainer", trainer),
        mock.patch.object(reward_member, "StreamTrainer", trainer),
        mock.patch.object(reward_member, "fit", lambda trainer, context, before: None),
    ):
        result = reward.run(context)
    return given, result.metrics, result.precision, (context.folder / "reward_model.json").read_text()


def _engine(context: Any) -> Any:
    """What would sample a PPO stage's answers on a machine with a GPU, with stand-ins for vLLM."""
    from unittest import mock

    from pipeline.stages import ppo_engine

    settings = context.recipe.stages["ppo"]
    formatter = SimpleNamespace(stop_ids=(2,))
    given: list[Any] = []

    def engine(*args: Any, **options: Any) -> None:
        given.append((args, options))

    with (
        mock.patch.object(ppo_engine, "device", lambda: SimpleNamespace(type="cuda")),
        mock.patch.object(ppo_engine, "ServerEngine", engine),
        mock.patch.object(ppo_engine, "ColocatedEngine", engine),
        mock.patch.object(ppo_engine, "_decodes_in_streams", lambda *rest, must: must),
    ):
        ppo_engine.make_engine(context, settings, mock.sentinel.roles, formatter, 0, "fp32")
    return str(given)


def _ppo(context: Any) -> Any:
    """A PPO stage, run: what it logs and leaves, the shapes of its batches, and when it saves."""
    from unittest import mock

    from evaluation.overoptimisation import Turn
    from pipeline import checkpoint
    from pipeline.rollouts.generate import Generator
    from pipeline.stages import ppo, ppo_setup

    turn = Turn(step=0.0, kl=0.0, best=1.0, last=0.0)
    seen: list[Any] = []

    def spy(owner: Any, name: str, note: Callable[..., Any]) -> Any:
        """Replace a function by one that does the same and notes something of its arguments and its result."""
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            seen.append((name, note(result, *args)))
            return result

        return mock.patch.object(owner, name, watched)

    def logged(step: int, split: str, values: Any) -> None:
        timed = ("time/", "mem/", "tok_per_s")
        seen.append((step, split, {name: value for name, value in values.items() if not name.startswith(timed)}))

    with (
        mock.patch.object(context.tracker, "log", logged),
        mock.patch.object(ppo_setup, "make_engine", _as_vllm(ppo_setup.make_engine)),
        # So short a run shows none of its own.
        mock.patch.object(ppo, "turn_so_far", lambda measured, scores: turn if scores else None),
        spy(checkpoint, "commit", lambda result, folder, *rest: folder.name),
        spy(Generator, "_batch", lambda result, self, prompts, *rest: len(prompts)),
        spy(ppo, "collect", lambda result, *rest: [[micro.rows for micro in part] for part in result]),
        spy(ppo, "make_roles", lambda result, *rest: result[0].model.is_gradient_checkpointing),
    ):
        result = ppo.run(context)
    return seen, result.metrics, result.precision


def _watch(context: Any) -> Any:
    """A DPO stage that watches a reward model, run: when it measures what on which prompts, and what it hands on."""
    from unittest import mock

    from evaluation.overoptimisation import Turn
    from pipeline.stages import dpo, dpo_watch

    if context.recipe.stages[context.stage].watch is None:
        return None
    turn = Turn(step=0.0, kl=0.0, best=1.0, last=0.0)
    seen: list[Any] = []
    scores = iter(range(9, 0, -1))

    def worse_and_worse(self: Any, rows: Any, progress: Any = None) -> list[float]:
        seen.append([len(ids) for ids in rows])
        return [float(next(scores))] * len(rows)

    with (
        mock.patch.object(
            context.tracker, "log", lambda step, split, values: seen.append((step, split, sorted(values)))
        ),
        mock.patch.object(dpo_watch.RewardScorer, "score", worse_and_worse),
        # So short a run shows none of its own.
        mock.patch.object(dpo_watch, "turn_so_far", lambda looks, logged: turn if logged else None),
    ):
        result = dpo.run(context)
    return seen, result.metrics["steps"], result.metrics["selected_step"]


def _as_vllm(make_engine: Callable[..., Any]) -> Callable[..., Any]:
    """Let the policy itself stand in for vLLM, and report much lower log-probabilities than it has."""
    from dataclasses import replace

    def make(context: Any, settings: Any, *rest: Any) -> Any:
        if not settings.rollout_engine.startswith("vllm"):
            return make_engine(context, settings, *rest)
        inner = make_engine(context, settings.model_copy(update={"rollout_engine": "generate"}), *rest)

        def answers(*args: Any) -> Any:
            return [replace(answer, logps=[-9.0] * len(answer.ids)) for answer in inner.answers(*args)]

        return SimpleNamespace(answers=answers)

    return make
