"""From a recipe to the nodes of a run: what each needs, the key that names its result, and why it runs or not.

A node's key is a hash of everything that its result depends on: resolved settings, seed, base weights, the content of
its data, its parents' keys and the algorithm's version. Equal keys mean equal results, whatever recipe they come from.
What only evaluation needs enters no training stage's key. Layer 5; imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.build import held_out_fraction
from data_prep.cleaning.contamination import evaluation_fingerprints
from data_prep.data_sets import other_set
from data_prep.fingerprint import source_fingerprint
from data_prep.split import shares_of
from data_prep.templates import template_text
from evaluation.judging.questions import questions_fingerprint
from pipeline import artefact
from pipeline.durable import sha256_json
from pipeline.models.source import BaseIdentity, identify
from pipeline.recipe.lineage import parents_of, prompts_from, reward_role, reward_sources, split_part, used_data
from pipeline.recipe.schema import DataSetSettings, Recipe
from pipeline.recipe.stage_settings import FUNCTION, RULES, DpoSettings, PpoSettings, RewardSource, StageSettings
from pipeline.reward_function import RewardFunction

ALGORITHM_VERSIONS = {"sft": 2, "reward": 2, "ppo": 4, "dpo": 2, "evaluation": 6}
"""Raised when a change of ours changes a kind's results, so that older artefacts are not taken for new ones."""
EVALUATION = "evaluation"
_NOT_IN_KEYS: dict[str, Any] = {
    **dict.fromkeys(("policy", "init", "reward_model", "rewards", "gate", "watch"), True),
    "vllm": {"url": True},
}
"""Names of earlier stages, whose keys count instead, and what says whether or where a stage runs, not what it makes."""
_LATER = {
    "sft": ("tokens_per_device", "sequence_parallel_size"), "reward": ("seed", "tokens_per_device"),
    "ppo": (
        "stop_at_turn", "value_trunk", "value_coef", "tokens_per_device", "samples_per_prompt", "advantage_estimator",
    ),
    "dpo": (
        "eval_every", "eval_prompts", "max_new_tokens", "select", "stop_at_turn", "tokens_per_device",
        "precompute_reference",
    ),
}  # fmt: skip
"""Settings that keys leave out at their default: artefacts from before there was a choice have them unsaid."""
_NOT_JUDGED_BY: dict[str, Any] = {"judge": {"url", "timeout", "attempts", "parallel", "questions", "question_tokens"}}
"""Where a judge is asked, and how patiently, is no part of what it says; questions count with their content."""


@dataclass(frozen=True, slots=True)
class Node:
    """One artefact to be made or found."""

    name: str
    kind: str
    key: str
    settings: dict[str, Any]
    """What the key was made of."""
    parents: dict[str, str]
    """Role to node name."""
    folder: Path


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to a node, and why."""

    node: Node
    action: Literal["run", "skip", "leave"]
    """`leave`: the command line asked for other stages only."""
    reason: str


def make_nodes(recipe: Recipe, base: BaseIdentity, store: Path, function: RewardFunction | None = None) -> list[Node]:
    """The nodes of a recipe in the order in which they run.

    Args:
        recipe: validated.
        base: identity of the base model.
        store: folder that holds the artefacts.
        function: the user's own reward, where the command line names one.

    Raises:
        DataError, SourceUnreachableError: a data source is missing or out of reach.
    """
    prints = _data_fingerprints(recipe)
    nodes: dict[str, Node] = {}
    for name in recipe.stages:
        parents = parents_of(recipe, name)
        settings = _stage_settings(recipe, name, base, prints, function)
        nodes[name] = _node(name, recipe.stages[name].kind, settings, parents, nodes, store)
    if recipe.evaluation.tasks:
        parents = {name: name for name in recipe.stages}
        settings = _evaluation_settings(recipe, base, prints)
        nodes[EVALUATION] = _node(EVALUATION, EVALUATION, settings, parents, nodes, store)
    return list(nodes.values())


def decide(nodes: Sequence[Node], previous: dict[str, str], forced: Sequence[str]) -> list[Decision]:
    """Which nodes run: those that are not sealed, were forced, or stand on one that is made anew by force.

    Args:
        nodes: in order.
        previous: node name to key, of the last run in this run directory.
        forced: names of nodes to make anew.
    """
    decisions: list[Decision] = []
    running: set[str] = set()
    anew: set[str] = set()
    for node in nodes:
        forced_below = [parent for parent in node.parents.values() if parent in anew]
        if node.name in forced:
            decision = Decision(node, "run", "forced")
        elif forced_below:
            decision = Decision(node, "run", f"{_listed(forced_below)} made anew")
        elif artefact.is_sealed(node.folder):
            same_run = previous.get(node.name) == node.key
            why = "finished earlier" if same_run else "made by another run with the same settings and data"
            decision = Decision(node, "skip", why)
        else:
            remade = [parent for parent in node.parents.values() if parent in running]
            decision = Decision(node, "run", _why_run(node, previous, remade))
        if decision.action == "run":
            running.add(node.name)
        if node.name in forced or forced_below:
            anew.add(node.name)
        decisions.append(decision)
    return decisions


def _why_run(node: Node, previous: dict[str, str], remade: Sequence[str]) -> str:
    if (node.folder / "checkpoints").is_dir() or (node.folder / "work").is_dir():
        return "was interrupted"
    if node.name in previous and previous[node.name] != node.key:
        return f"{', '.join(remade)} changed" if remade else "its settings or data changed"
    return "not made yet"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _node(
    name: str, kind: str, settings: dict[str, Any], parents: dict[str, str], nodes: dict[str, Node], store: Path
) -> Node:
    settings = {
        "schema": artefact.SCHEMA_VERSION,
        "kind": kind,
        "algorithm_version": ALGORITHM_VERSIONS[kind],
        **settings,
        "parents": {role: nodes[parent].key for role, parent in parents.items()},
    }
    key = sha256_json(settings)
    return Node(name, kind, key, settings, parents, store / f"{kind}-{key[:16]}")


def _stage_settings(
    recipe: Recipe, name: str, base: BaseIdentity, prints: dict[str, list[str]], function: RewardFunction | None
) -> dict[str, Any]:
    stage = recipe.stages[name]
    settings = {
        "stage": _own_settings(stage),
        "seed": recipe.seed,
        **_common_settings(recipe, base),
        "data": {which: _data_settings(recipe, which, prints) for which in used_data(recipe, name)},
        **_part_settings(recipe, name),
        **_decontamination(recipe),
    }
    if isinstance(stage, PpoSettings) or (isinstance(stage, DpoSettings) and stage.watch is not None):
        settings["prompts"] = {
            **recipe.data.prompts.model_dump(mode="json", by_alias=True),
            "from": prompts_from(recipe),
        }
    if isinstance(stage, PpoSettings):
        sources = enumerate(reward_sources(recipe, name))
        settings["rewards"] = [_reward_settings(recipe, name, index, source, function) for index, source in sources]
    return settings


def _own_settings(stage: StageSettings) -> dict[str, Any]:
    """The stage's own block, without what plays no part."""
    dump = stage.model_dump(mode="json", by_alias=True, exclude=_NOT_IN_KEYS)
    fields = type(stage).model_fields
    unsaid = [name for name in _LATER.get(dump["kind"], ()) if dump[name] == fields[name].default]
    return {name: value for name, value in dump.items() if name not in unsaid}


def _part_settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """Which prompts a stage trains on, where `data.split` says so: the others' parts matter only by what is before."""
    part = split_part(recipe, name)
    if part is None:
        return {}
    share = shares_of(recipe.data.split)[part]
    return {"part": [share.low, share.high]}


def _reward_settings(
    recipe: Recipe, name: str, index: int, source: RewardSource, function: RewardFunction | None
) -> dict[str, Any]:
    """What of a reward determines its scores: a stage's key is among the parents' already, others are content."""
    if source.from_ in recipe.stages:
        return {"parent": reward_role(index), "weight": source.weight}
    if source.from_ == FUNCTION:
        # One file may hold several functions.
        found = {"name": function.name, "content": function.sha256} if function else None
        return {"function": found, "weight": source.weight}
    if source.from_ == RULES:
        return {"rules": True, "weight": source.weight}
    where = f"stages.{name}.rewards.{index}.from"
    return {"model": identify(source.from_, source.revision, where).fingerprint, "weight": source.weight}


def _evaluation_settings(recipe: Recipe, base: BaseIdentity, prints: dict[str, list[str]]) -> dict[str, Any]:
    asked = recipe.evaluation.model_dump(mode="json", exclude=_NOT_JUDGED_BY)
    if not asked["policies"]:
        # Evaluations from before there was a choice have it unsaid.
        del asked["policies"]
    return {
        "evaluation": asked,
        # Which stage is the reference, and which reward model the judge, depends on it.
        "order": list(recipe.stages),
        "prompts": recipe.data.prompts.model_dump(mode="json", by_alias=True),
        "precision": [stage.precision for stage in recipe.stages.values()],
        "betas": [stage.beta for stage in recipe.stages.values() if isinstance(stage, DpoSettings)],
        **_common_settings(recipe, base),
        "data": {which: _data_settings(recipe, which, prints) for which in prints},
        **_questions(recipe),
    }


def _questions(recipe: Recipe) -> dict[str, Any]:
    """What the judge's questions are and how far they are answered; unsaid where there are none."""
    judge = recipe.evaluation.judge
    if judge is None or judge.questions is None:
        return {}
    return {"questions": {"content": questions_fingerprint(Path(judge.questions)), "tokens": judge.question_tokens}}


def _common_settings(recipe: Recipe, base: BaseIdentity) -> dict[str, Any]:
    return {
        "base": base.fingerprint,
        "model": _model_settings(recipe),
        "chat_template": template_text(recipe.data.chat_template, None)
        if recipe.data.chat_template != "auto"
        else "auto",
    }


def _model_settings(recipe: Recipe) -> dict[str, Any]:
    """What of the model determines results; how much of a frozen trunk's output is kept does not."""
    dump = recipe.model.model_dump(mode="json", exclude={"base", "revision"})
    if recipe.model.adapter != "none":
        del dump["adapter"]["trunk_cache_gib"]
        if recipe.model.adapter.layers == "all":
            # Artefacts from before there was a choice have it unsaid.
            del dump["adapter"]["layers"]
    return dump


def _data_settings(recipe: Recipe, which: str, prints: dict[str, list[str]]) -> dict[str, Any]:
    """What determines the rows of a data set, those included that it is held apart from."""
    dump = _set_settings(recipe, which, prints)
    if other_set(which, recipe.data) is not None:
        dump["other_set"] = _set_settings(recipe, "sft" if which == "preference" else "preference", prints)
    return {**dump, "held_out_fraction": held_out_fraction(recipe.data)}


def _set_settings(recipe: Recipe, which: str, prints: dict[str, list[str]]) -> dict[str, Any]:
    """A data set's own block: content instead of paths, which may move."""
    settings: DataSetSettings = getattr(recipe.data, which)
    dump = settings.model_dump(mode="json")
    for source, content in zip(dump["sources"], prints[which], strict=True):
        del source["path"], source["revision"]
        source["content"] = content
    if settings.clean.harm is not None:
        where = f"data.{which}.clean.harm.model"
        dump["clean"]["harm"]["model"] = identify(settings.clean.harm.model, None, where).fingerprint
    return dump


def _decontamination(recipe: Recipe) -> dict[str, Any]:
    """Which evaluation texts are kept out of training; what evaluation itself measures plays no part."""
    settings = recipe.data.decontaminate
    if settings is None:
        return {}
    return {"decontaminate": {"ngram": settings.ngram, "content": evaluation_fingerprints(settings)}}


def _data_fingerprints(recipe: Recipe) -> dict[str, list[str]]:
    found = {}
    for which in ("sft", "preference"):
        settings: DataSetSettings | None = getattr(recipe.data, which)
        if settings is not None:
            found[which] = [source_fingerprint(source) for source in settings.sources]
    return found
