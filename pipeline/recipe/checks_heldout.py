"""What must hold of the reward stage that is kept for judging: that it exists, and that nothing is trained against it.

Like `checks`, whose part it is: every check yields problems with the key to point at.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.recipe.lineage import earlier, heldout_reward, policy_of, reward_sources, split_part, why_not
from pipeline.recipe.places import KeyPath, Problem
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import DpoSettings, PpoSettings
from pipeline.recipe.vocabulary import nearest


def check_heldout(recipe: Recipe) -> Iterator[Problem]:
    """Yield what is wrong with `evaluation.heldout_reward`."""
    found, at = recipe.evaluation.heldout_reward, ("evaluation", "heldout_reward")
    if found is None:
        return
    rewards = [name for name, stage in recipe.stages.items() if stage.kind == "reward"]
    if found not in rewards:
        near = nearest(found, rewards)
        meant = f"; did you mean '{near}'?" if near else f" (there are: {', '.join(rewards) or 'none'})"
        yield Problem(at, f"'{found}' is no reward stage of this recipe{meant}")
        return
    if "score" not in recipe.evaluation.tasks:
        yield Problem(at, "has no effect without score in evaluation.tasks; add that, or remove it")
    against = [name for name in recipe.stages if found in {one.from_ for one in reward_sources(recipe, name)}]
    if against:
        text = f"{against[0]} is trained against {found}, so it is no second opinion; name another reward stage"
        yield Problem(at, text)
        return
    yield from _twins(recipe, found, at)


def check_watch(recipe: Recipe, name: str, stage: PpoSettings | DpoSettings) -> Iterator[Problem]:
    """Yield what is wrong with the reward stage that a PPO or DPO stage watches."""
    at: KeyPath = ("stages", name)
    found = stage.watch
    if found is None:
        if stage.stop_at_turn:
            yield Problem((*at, "stop_at_turn"), f"has no effect without watch; name {_A_STAGE[stage.kind]} there")
        if stage.select == "heldout":
            yield Problem((*at, "select"), f"heldout goes by the score of `watch`; name {_A_STAGE[stage.kind]} there")
        if isinstance(stage, DpoSettings):
            yield from _measured_by_nobody(stage, at)
        return
    possible = earlier(recipe, name, ("reward",))
    if found not in possible:
        yield Problem((*at, "watch"), why_not(recipe, name, found, possible, "reward model"))
    elif isinstance(stage, DpoSettings):
        # Nothing trains it against a reward model, so that any is a second opinion.
        return
    elif found in {one.from_ for one in reward_sources(recipe, name)}:
        text = f"{found} is what this stage is trained against; watch another reward stage"
        yield Problem((*at, "watch"), text)
    elif heldout_reward(recipe) != found:
        text = f"evaluation judges by {heldout_reward(recipe)}; watch the same one"
        yield Problem((*at, "watch"), text)
    else:
        yield from _twins(recipe, found, (*at, "watch"))


_A_STAGE = {"ppo": "a second reward stage", "dpo": "an earlier reward stage"}


def _measured_by_nobody(stage: DpoSettings, at: KeyPath) -> Iterator[Problem]:
    """Refuse settings of measurements that nobody makes, but not their defaults: resolved recipes write them."""
    for key in ("eval_every", "eval_prompts", "max_new_tokens"):
        if getattr(stage, key) != DpoSettings.model_fields[key].default:
            yield Problem((*at, key), f"has no effect without watch; name {_A_STAGE[stage.kind]} there")


def _twins(recipe: Recipe, found: str, at: KeyPath) -> Iterator[Problem]:
    """Refuse a second opinion that would be the first one once more, bit for bit."""
    for name, stage in recipe.stages.items():
        if stage.kind == "reward" and name != found and _training(recipe, name) == _training(recipe, found):
            text = f"{found} is trained just like {name}, so it would be the same model; give it a seed of its own"
            yield Problem(at, f"{text}, and a part of the pairs (data.split: {{{name}: 0.5, {found}: 0.5}})")
            return


def _training(recipe: Recipe, name: str) -> object:
    """All that decides what a reward stage's model becomes."""
    own = recipe.stages[name].model_dump(exclude={"init"})
    own["seed"] = recipe.seed if own["seed"] is None else own["seed"]
    return own, policy_of(recipe, name), split_part(recipe, name)
