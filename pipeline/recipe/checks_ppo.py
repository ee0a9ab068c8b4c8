"""What must hold between the settings of a PPO stage, and between it and what rewards it.

As everywhere, a value equal to the default is never a problem on its own: resolved recipes write every default.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from pydantic import BaseModel

from pipeline.errors import RecipeError
from pipeline.recipe.checks_heldout import check_watch
from pipeline.recipe.lineage import earlier, reward_sources, why_not
from pipeline.recipe.places import KeyPath, Places, Problem
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import FUNCTION, OF_VALUE_MODEL, RULES, PpoSettings

KL_STEP = 0.2
"""By how much of itself kl_coef can change per kl_horizon episodes (`pipeline.algorithms.kl.AdaptiveKL.LIMIT`)."""


def check_ppo(recipe: Recipe, name: str, stage: PpoSettings) -> Iterator[Problem]:
    """Yield what is wrong with a PPO stage beyond single values."""
    at: KeyPath = ("stages", name)
    yield from _reward(recipe, name, stage, at)
    yield from _rewards(recipe, name, stage, (*at, "rewards"))
    yield from _rollouts(stage, at)
    yield from _samples(stage, at)
    yield from _divergence(stage, at)
    yield from _unused(recipe, name, stage, at)
    yield from check_watch(recipe, name, stage)
    if stage.precision == "fp16":
        yield Problem((*at, "precision"), "PPO computes in bf16 or fp32, as fp16's range needs a scaled loss; use one")
    if stage.ptx_coef > 0 and recipe.data.sft is None:
        yield Problem((*at, "ptx_coef"), "mixes in demonstrations, but data.sft is absent")
    if stage.overlong_buffer > stage.max_new_tokens:
        yield Problem((*at, "overlong_buffer"), f"is longer than max_new_tokens ({stage.max_new_tokens})")
    starts_from_reward = stage.has_value_model and stage.value_init == "reward"
    if starts_from_reward and not _from_stage(recipe, name):
        yield Problem((*at, "value_init"), "there is no reward stage to start from; use zero")
    elif starts_from_reward and stage.value_trunk == "policy":
        text = "would have the policy's layers start as the reward model's; use zero, or value_trunk: own"
        yield Problem((*at, "value_init"), text)


def check_reward_function(recipe: Recipe, given: str | None, places: Places | None = None) -> None:
    """Check that a user's function is given where the recipe asks for one, and only there.

    Raises:
        RecipeError: naming the stage, or what to write in it.
    """
    asking = [
        (name, index)
        for name in recipe.stages
        for index, source in enumerate(reward_sources(recipe, name))
        if source.from_ == FUNCTION
    ]
    if given is not None and not asking:
        stage = next((name for name, each in recipe.stages.items() if isinstance(each, PpoSettings)), None)
        cure = f"add --set stages.{stage}.rewards='[{{from: {FUNCTION}}}]'" if stage else "it has no ppo stage at all"
        raise RecipeError(f"--reward {given}: no ppo stage of this recipe asks for a function; {cure}")
    if given is None and asking:
        name, index = asking[0]
        path: KeyPath = ("stages", name, "rewards", index, "from")
        where = f"{places.find(path)}: " if places else ""
        raise RecipeError(f"{where}stages.{name}.rewards: asks for a function; add `--reward file.py:function`")


def _reward(recipe: Recipe, name: str, stage: PpoSettings, at: KeyPath) -> Iterator[Problem]:
    """Check that there is something to optimise, and that `reward_model` names an earlier reward stage."""
    possible = earlier(recipe, name, ("reward",))
    found = stage.reward_model
    if found is not None and stage.rewards is not None:
        yield Problem((*at, "reward_model"), "goes without `rewards`; name the stage there with `from`, or remove one")
    elif found is not None and found not in possible:
        yield Problem((*at, "reward_model"), why_not(recipe, name, found, possible, "reward model"))
    elif stage.rewards == ():
        yield Problem((*at, "rewards"), f"is empty; name a reward, such as [{{from: {RULES}}}], or remove the key")
    elif not reward_sources(recipe, name):
        yield Problem(at, "has nothing to optimise: write a reward stage before it, or `rewards`", at_key=True)


def _rewards(recipe: Recipe, name: str, stage: PpoSettings, at: KeyPath) -> Iterator[Problem]:
    """Check each of the rewards that are written."""
    possible = earlier(recipe, name, ("reward",))
    seen: set[str] = set()
    for index, source in enumerate(stage.rewards or ()):
        found = source.from_
        if found not in possible and found not in (RULES, FUNCTION) and "/" not in found:
            text = why_not(recipe, name, found, [*possible, RULES, FUNCTION, "./FOLDER", "OWNER/MODEL"], "reward model")
            yield Problem((*at, index, "from"), text)
        if source.revision is not None and (found in possible or found in (RULES, FUNCTION)):
            yield Problem((*at, index, "revision"), f"'{found}' has no revisions; this key is for hub ids")
        if found in seen:
            yield Problem((*at, index), f"'{found}' stands here twice; write it once, with the sum of its weights")
        if source.weight == 0:
            yield Problem((*at, index, "weight"), "a reward of weight 0 has no effect; remove the reward")
        seen.add(found)


def _rollouts(stage: PpoSettings, at: KeyPath) -> Iterator[Problem]:
    """Check that the episodes are whole rollouts, some of which train the policy."""
    size = stage.rollout_batch_size
    rollouts, rest = divmod(stage.episodes, size)
    if rest:
        fits = " or ".join(str(count * size) for count in (rollouts, rollouts + 1) if count)
        text = f"{stage.episodes} is not a multiple of rollout_batch_size {size}; write episodes: {fits}"
        yield Problem((*at, "episodes"), text)
    elif stage.has_value_model and stage.value_warmup >= rollouts:
        text = f"the policy would never train: there are {rollouts} rollouts (episodes / rollout_batch_size)"
        yield Problem((*at, "value_warmup"), text)


def _samples(stage: PpoSettings, at: KeyPath) -> Iterator[Problem]:
    """Check that a prompt's answers stay together in a step, and that there are others where they are the baseline."""
    samples, step = stage.samples_per_prompt, stage.rollout_batch_size // stage.minibatches
    if not stage.has_value_model and samples == 1:
        text = "rloo compares an answer with others to its prompt, and samples_per_prompt is 1; write 2 or more of them"
        yield Problem((*at, "advantage_estimator"), text)
    # Minibatches that are not whole are a problem of their own.
    elif stage.rollout_batch_size % stage.minibatches == 0 and step % samples:
        least = 1 if stage.has_value_model else 2
        fits = ", ".join(str(count) for count in range(least, step + 1) if step % count == 0)
        cure = f"it can be {fits}" if fits else "lower minibatches, or raise rollout_batch_size"
        text = f"a step's {step} answers (rollout_batch_size / minibatches) are not whole prompts of {samples}; {cure}"
        yield Problem((*at, "samples_per_prompt"), text)


def _divergence(stage: PpoSettings, at: KeyPath) -> Iterator[Problem]:
    """Check what holds the policy near its reference."""
    if stage.kl_target is not None and stage.kl_coef == 0:
        yield Problem((*at, "kl_target"), "adapts kl_coef by factors, and 0 stays 0; write a kl_coef above 0")
    if stage.kl_target is not None and stage.kl_max is not None and stage.kl_target >= stage.kl_max:
        text = f"is not below kl_max ({stage.kl_max:g}), above which training stops"
        yield Problem((*at, "kl_target"), text)
    least = int(KL_STEP * stage.rollout_batch_size) + 1
    if stage.kl_target is not None and stage.kl_horizon < least:
        text = f"would let one rollout of {stage.rollout_batch_size} answers push kl_coef to 0; write {least} or more"
        yield Problem((*at, "kl_horizon"), text)


def _unused(recipe: Recipe, name: str, stage: PpoSettings, at: KeyPath) -> Iterator[Problem]:
    """Check that what is set can have an effect beside the other settings."""
    engine, from_stage = stage.rollout_engine, _from_stage(recipe, name)
    needs: dict[tuple[str, ...], tuple[str, bool]] = {
        ("kl_horizon",): ("kl_target", stage.kl_target is not None),
        ("value_coef",): ("value_trunk: policy", stage.value_trunk == "policy"),
        ("overlong_penalty",): ("overlong_buffer", stage.overlong_buffer > 0),
        ("normalise_scores",): ("a reward stage among the rewards", from_stage),
        # Asking nothing is true of any reward.
        ("gate", "min_accuracy"): ("a reward stage among the rewards", from_stage or stage.gate.min_accuracy == 0),
        ("vllm", "url"): ("rollout_engine: vllm_server", engine == "vllm_server"),
        ("vllm", "gpu_memory_utilization"): ("rollout_engine: vllm_colocate", engine == "vllm_colocate"),
        ("vllm", "importance_cap"): ("rollout_engine: paged, or one of vLLM's", engine == "paged" or "vllm" in engine),
    }
    if not stage.has_value_model:
        needs |= dict.fromkeys(((key,) for key in OF_VALUE_MODEL), ("advantage_estimator: gae", False))
    for key, (switch, effective) in needs.items():
        if not effective and _is_changed(stage, key):
            yield Problem((*at, *key), f"has no effect without {switch}; set that, or remove it")


def _is_changed(block: BaseModel, key: tuple[str, ...]) -> bool:
    """Whether a value differs from its default."""
    *outer, last = key
    inner: BaseModel = reduce(getattr, outer, block)
    return bool(getattr(inner, last) != type(inner).model_fields[last].get_default(call_default_factory=True))


def _from_stage(recipe: Recipe, name: str) -> bool:
    """Whether a reward stage of the recipe is among a PPO stage's rewards."""
    return any(source.from_ in recipe.stages for source in reward_sources(recipe, name))
