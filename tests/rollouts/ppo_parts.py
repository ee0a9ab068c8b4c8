"""A PPO stage's parts on tiny random models: a policy, a reward model, roles over them, rollouts of random answers."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from data_prep.records import Message, Origin, Prompt
from pipeline import reward_function
from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.models import adapters
from pipeline.models.heads import new_head, with_head
from pipeline.models.load import describe_tokenizer, load_classifier, load_tokenizer
from pipeline.models.reward_model import SPEC, MemberScale, RewardSpec, member_name
from pipeline.models.roles import Roles
from pipeline.models.source import identify
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.answers import Answer
from pipeline.rollouts.collect import MicroBatch, Shaping, collect, lay_out
from pipeline.rollouts.rewards import Episode
from pipeline.runtime import Ranks, StopRequest, barrier, seed_everything
from pipeline.stages.policy import Policy, load_policy, save_policy
from pipeline.stages.ppo_roles import make_roles
from pipeline.tracking import SilentTracker, Tracker

ALONE = Ranks(0, 0, 1)
BASE = "builtin:tiny-llama"
EOS, PAD = 2, 0
LORA: dict[str, Any] = {"r": 4}
REWARD = "reward_1_1"
"""Role of the only reward model's only member."""


@dataclass(frozen=True)
class Parts:
    """What `make_roles` made, and from what."""

    context: Any
    settings: PpoSettings
    policy: Policy
    roles: Roles


def lively_base(folder: Path, tiny_folder: Path, kind: str = "llama") -> Path:
    """A random model whose words depend strongly on what it reads, and where: with absolute positions for `gpt2`."""
    model: Any
    if kind == "llama":
        model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    else:
        torch.manual_seed(3)
        shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=259, bos_token_id=1, eos_token_id=EOS, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


def recipe_of(adapter: Any, **ppo: Any) -> Recipe:
    return Recipe.model_validate({
        "name": "x",
        "model": {"base": BASE, "adapter": adapter},
        "data": {"preference": {"sources": [{"path": "x"}]}},
        "stages": {"reward": {"kind": "reward"}, "ppo": {"kind": "ppo", **ppo}},
    })  # fmt: skip


def context_of(folder: Path, base: Path, adapter: Any, parents: dict[str, Any], **ppo: Any) -> Any:
    """As much of a stage's context as the roles look at."""
    return SimpleNamespace(
        recipe=recipe_of(adapter, **ppo), stage="ppo", base=identify(BASE, None), base_folder=base, folder=folder,
        ranks=ALONE, parents=parents, console=Console(None),
    )  # fmt: skip


def stir(parameters: Iterable[tuple[str, torch.Tensor]], seed: int, size: float = 0.2) -> None:
    """Give weights that training would have moved: second factors of an adapter, or all of a full model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters:
            if "lora_B" in name:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
            elif "lora_" not in name and parameter.requires_grad:
                parameter.mul_(1 + 0.3 * size * torch.randn(parameter.shape, generator=generator))


def trained_policy(folder: Path, base: Path, adapter: Any) -> Any:
    """What a sealed SFT policy tells the next stage."""
    context = context_of(folder, base, adapter, {})
    torch.manual_seed(1)
    policy = load_policy(context, None, precision="fp32", dropout=True)
    stir(policy.model.named_parameters(), seed=1)
    save_policy(policy, context)
    return described(folder, base, policy.form, "policy", "sft")


def trained_reward(folder: Path, base: Path, adapter: Any, members: int = 1) -> Any:
    """A sealed reward model, or an ensemble of them."""
    form = "model" if adapter == "none" else "adapter"
    settings = recipe_of(adapter).model
    for index in range(members):
        model: Any = load_classifier(base, settings, frozen=form == "adapter", precision="fp32")
        with_head(model, new_head(model.score.in_features, index))
        torch.manual_seed(2 + index)
        if settings.adapter != "none":
            model = adapters.attach_for_scores(model, settings.adapter, None)
        stir(model.named_parameters(), seed=10 + index)
        if form == "adapter":
            adapters.save(model, folder / member_name(form, index), BASE)
        else:
            model.save_pretrained(folder / member_name(form, index))
    scales = tuple(MemberScale(offset=0.5 + index, scale=2.0) for index in range(members))
    spec = RewardSpec(
        offset=0.25, scale=1.5, members=scales, aggregate="mean", variance_weight=0.1, n=9, source="demonstrations"
    )
    (folder / SPEC).write_text(spec.model_dump_json())
    return described(folder, base, form, "reward_model", "reward")


def described(folder: Path, base: Path, form: str, kind: str, stage: str) -> Any:
    """As much of a sealed artefact as a stage looks at."""
    description = describe_tokenizer(load_tokenizer(base, "auto"))
    manifest = SimpleNamespace(
        form=form, kind=kind, stage=stage, tokenizer=description, base=identify(BASE, None), metrics={}
    )
    return SimpleNamespace(path=folder, weights=folder / form, manifest=manifest)


def make_parts(
    folder: Path, base: Path, adapter: Any = LORA, *, policy: bool = True, members: int = 1, **ppo: Any
) -> Parts:
    """The roles of a stage.

    Args:
        folder: of the stage.
        base: folder of the base model.
        adapter: the recipe's `model.adapter`.
        policy: whether there is an earlier policy.
        members: of the reward model; 0 for none.
        ppo: settings of the stage.
    """
    parents = {}
    if policy:
        parents["policy"] = _once(trained_policy, base, adapter)
    if members:
        parents["reward_1"] = _once(trained_reward, base, adapter, members)
    context = context_of(folder, base, adapter, parents, **ppo)
    settings: Any = context.recipe.stages["ppo"]
    torch.manual_seed(0)
    made, roles = make_roles(context, settings, "fp32")
    return Parts(context, settings, made, roles)


def _once(make: Callable[..., Any], base: Path, adapter: Any, *rest: Any) -> Any:
    """A parent that is made when this process first asks for it; nobody writes into it."""
    key = (make.__name__, base, str(adapter), rest)
    if key not in _PARENTS:
        _PARENTS[key] = make(base.parent / f"{base.name}-parent-{os.getpid()}-{len(_PARENTS)}", base, adapter, *rest)
    return _PARENTS[key]


_PARENTS: dict[tuple[Any, ...], Any] = {}


def some_episodes(count: int = 12, seed: int = 0, longest: int = 12) -> list[Episode]:
    """Random prompts and answers of very uneven lengths, one of a single token; most end by themselves."""
    draw = random.Random(seed)
    prompt = Prompt(messages=(Message(role="user", content="x"),), origin=Origin(source="x", row=1))
    found = []
    for index in range(count):
        length = 1 if index == 1 else longest if index == 2 else draw.randint(1, longest)
        ids = [draw.randrange(3, 259) for _ in range(length)]
        stopped = index % 4 != 3
        if stopped:
            ids[-1] = EOS
        prompt_ids = [1, *(draw.randrange(3, 259) for _ in range(draw.randint(1, 9)))]
        found.append(Episode(prompt, prompt_ids, Answer(ids, stopped), f"answer {index}"))
    return found


def some_scores(count: int = 12, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0, 1) for _ in range(count)]


def shaping_of(settings: PpoSettings) -> Shaping:
    return Shaping(
        temperature=settings.temperature, kl_coef=settings.kl_coef, gamma=settings.gamma,
        gae_lambda=settings.gae_lambda, whiten=settings.whiten_advantages, importance_cap=2.0,
        samples_per_prompt=settings.samples_per_prompt,
    )  # fmt: skip


def collected(
    parts: Parts, episodes: Sequence[Episode], scores: Sequence[float], ranks: Ranks = ALONE, seed: int = 5
) -> list[list[MicroBatch]]:
    """One rollout as the stage prepares it for learning."""
    settings = parts.settings
    lengths = [len(episode.prompt_ids) + len(episode.answer.ids) for episode in episodes]
    samples = settings.samples_per_prompt
    layout = lay_out(lengths, settings.minibatches, settings.per_device_batch_size, ranks, seed, samples=samples)
    return collect(parts.roles, episodes, scores, layout, shaping_of(settings), PAD)


# A whole stage

REWARD_FILE = """import random


def shorter(prompts, answers):
    # Draws too: an interrupted run must see the same draws.
    return [-len(a) / 10 + 0.01 * random.random() for a in answers]
"""


def write_rows(path: Path, count: int = 12, check: Any = None) -> Path:
    """Demonstrations, every third of them held out."""
    rows = [
        {
            "instruction": f"Say {'abcdefghijklmnop'[n]}.", "output": "ok", "split": "eval" if n % 3 == 2 else "train",
            "check": check or {"max_chars": 6},
        }
        for n in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stage_context(
    folder: Path,
    base: Path,
    adapter: Any = LORA,
    *,
    parents: dict[str, Any] | None = None,
    ranks: Ranks = ALONE,
    stop: StopRequest | None = None,
    data: dict[str, Any] | None = None,
    seed: int = 0,
    quantization: str = "none",
    **ppo: Any,
) -> StageContext:
    """A stage as its worker starts it, in a folder that may hold an interrupted attempt: four rollouts of eight.

    What the console says is in `folder.parent / "said.txt"`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, rewarding = folder.parent / "rows.jsonl", folder.parent / "mine.py"
    if ranks.is_first:
        if not rows.is_file():
            write_rows(rows)
        rewarding.write_text(REWARD_FILE)
    barrier()
    settings: dict[str, Any] = {
        "kind": "ppo", "rewards": [{"from": "function"}], "episodes": 32, "rollout_batch_size": 8, "minibatches": 2,
        "per_device_batch_size": 2, "max_new_tokens": 5, "eval_every": 2, "save_every": 2, "eval_prompts": 4,
        "missing_eos_penalty": 0, "learning_rate": 5e-3, "precision": "fp32", **ppo,
    }  # fmt: skip
    recipe = Recipe.model_validate({
        "name": "x",
        "seed": seed,
        "model": {"base": BASE, "adapter": adapter, "quantization": quantization},
        "data": {"sft": {"sources": [{"path": str(rows)}]}, **(data or {})},
        "stages": {**{name: {"kind": name} for name in ("reward",) if parents}, "ppo": settings},
    })  # fmt: skip
    stream = (folder.parent / "said.txt").open("a") if ranks.is_first else None
    tracker = Tracker(folder / "metrics.jsonl", "ppo") if ranks.is_first else SilentTracker()
    seed_everything(recipe.seed)
    return StageContext(
        recipe=recipe, stage="ppo", folder=folder, parents=parents or {}, base=identify(BASE, None), base_folder=base,
        ranks=ranks, stop=stop or StopRequest(), console=Console(stream), tracker=tracker,
        reward_function=reward_function.find(f"{rewarding}:shorter"),
    )  # fmt: skip


class StopAfter(StopRequest):
    """A request to stop that comes while a given rollout is learnt from, or scored, or its answers are sampled."""

    def __init__(self, rollouts: int, phase: str = "learning"):
        super().__init__()
        # Each rollout looks once behind its answers, once behind their scores and once at its end.
        self._left = 3 * rollouts - ("learning", "scoring", "sampling").index(phase)

    def agreed(self) -> bool:
        self._left -= 1
        return self._left <= 0


def sealed_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What a stage hands on."""
    files = sorted(path for form in ("adapter", "model") for path in (folder / form).glob("*.safetensors"))
    assert files, f"no weights in {folder}"
    return {name: tensor for path in files for name, tensor in load_file(path).items()}
