"""The reward stage as a whole, on the tiny model: what it leaves, what it learns, how it survives interruptions."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_prep.build import encode_pairs, preference_pairs
from data_prep.chat import ChatFormatter
from data_prep.records import Message
from data_prep.split import prompt_hash
from evaluation.scores import RewardScorer, attach_members, load_members
from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.errors import DataError, PreemptedError, TrivetError
from pipeline.models import adapters
from pipeline.models.load import describe_tokenizer, load_base, load_tokenizer
from pipeline.models.reward_model import HEAD_KEY, member_folders, read_spec
from pipeline.models.source import identify
from pipeline.recipe.schema import Recipe
from pipeline.runtime import Ranks, StopRequest
from pipeline.stages import reward, reward_member
from pipeline.stages.reward_questions import questions
from pipeline.tracking import Tracker, read_metrics

BASE = "builtin:tiny-llama"
WORDS = ["tree", "stone", "river", "cloud", "lamp", "paper", "glass", "wheel", "bread", "chair"]


class StopAt(StopRequest):
    """Asks to stop at the n-th look between steps."""

    def __init__(self, looks: int):
        super().__init__()
        self._left = looks

    def agreed(self) -> bool:
        self._left -= 1
        return self._left == 0


def write_pairs(folder: Path, count: int, *, shuffled: bool = False, **more: Any) -> Path:
    """Pairs whose chosen answer is full of the letter a and whose rejected one of z, or either way round by chance."""
    draw = random.Random(0)
    lines = []
    for number in range(count):
        answers = [" ".join(letter * draw.randint(2, 6) for _ in range(draw.randint(1, 3))) for letter in "az"]
        if shuffled and draw.random() < 0.5:
            answers.reverse()
        row = {"prompt": f"Say {draw.choice(WORDS)} {number}.", "chosen": answers[0], "rejected": answers[1]}
        lines.append(row | {name: value(number) for name, value in more.items()})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_demonstrations(folder: Path, count: int) -> Path:
    draw = random.Random(1)
    rows = [{"instruction": f"Say {draw.choice(WORDS)} {n}.", "output": "a" * draw.randint(1, 9)} for n in range(count)]
    path = folder / "demonstrations.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def context_of(tmp_path, tiny_folder) -> Any:
    """Makes a context of a reward stage over the given pairs; its folder is `where`."""

    def make(
        pairs: Path,
        where: str = "reward",
        sft: Path | None = None,
        adapter: Any = None,
        parent: Any = None,
        **settings: Any,
    ) -> StageContext:
        data: dict[str, Any] = {"preference": {"sources": [{"path": str(pairs)}], "eval_fraction": 0.2}}
        if sft is not None:
            data["sft"] = {"sources": [{"path": str(sft)}]}
        stage = {
            "kind": "reward", "learning_rate": 1e-2, "max_steps": 4, "global_batch_size": 4, "precision": "fp32",
            "log_every": 1, "save_every": 2, **settings,
        }  # fmt: skip
        recipe = Recipe.model_validate(
            {
                "name": "x",
                "model": {"base": BASE, "adapter": adapter or {"r": 4}},
                "data": data,
                "stages": {"reward": stage},
            }
        )
        folder = tmp_path / where
        folder.mkdir(exist_ok=True)
        return StageContext(
            recipe=recipe,
            stage="reward",
            folder=folder,
            parents={},
            base=identify(BASE, None),
            base_folder=tiny_folder,
            ranks=Ranks(0, 0, 1),
            stop=StopRequest(),
            console=Console(None),
            tracker=Tracker(folder / "metrics.jsonl", "reward"),
        )

    return make


def artefact_of(context: StageContext, result: Any) -> Any:
    manifest = SimpleNamespace(kind="reward_model", form=result.form, stage="reward", metrics=result.metrics)
    return SimpleNamespace(path=context.folder, manifest=manifest)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def lines(context: StageContext) -> list[dict[str, Any]]:
    text = (context.folder / "held_out_pairs.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def clear_results(context: StageContext) -> None:
    """What the worker does before it repeats a stage: everything goes but metrics, checkpoints and work."""
    for path in context.folder.iterdir():
        if path.name not in ("metrics.jsonl", "checkpoints", "work"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# What it leaves


def test_what_the_stage_leaves(context_of, tmp_path, tiny_folder):
    """Weights with their head, the scale, every held-out pair, the prompts it saw, and every promised figure."""
    pairs = write_pairs(tmp_path, 60, fault=lambda n: "terse" if n % 2 else None)
    context = context_of(pairs, sft=write_demonstrations(tmp_path, 40))
    result = reward.run(context)
    artefact = artefact_of(context, result)
    assert result.form == "adapter" and member_folders(artefact) == [context.folder / "adapter"]
    assert HEAD_KEY in weights(context.folder / "adapter")
    spec = read_spec(artefact)
    assert spec.source == "data.sft, demonstrations" and 20 < spec.n <= 40
    assert (spec.members[0].offset, spec.members[0].scale) == (spec.offset, spec.scale)
    metrics = result.metrics
    assert {
        "eval_accuracy", "eval_accuracy_ci95", "eval_accuracy_before", "eval_ties", "eval_n", "eval_loss", "ece",
        "brier", "reliability", "accuracy_by_length", "accuracy_by_fault", "accuracy_by_source", "accuracy_by_family",
        "score_length_correlation", "pad_invariance_residual", "stress", "score_offset", "score_scale", "steps",
    } <= set(metrics)  # fmt: skip
    assert metrics["pad_invariance_residual"] < 1e-5
    assert set(metrics["stress"]) == {"padded", "repeated", "flattered", "reformatted", "truncated"}
    assert all(found["n"] == metrics["eval_n"] for found in metrics["stress"].values())
    json.dumps(metrics, allow_nan=False)
    written = lines(context)
    assert len(written) == metrics["eval_n"] == result.data["preference"]["eval_rows"]
    assert set(written[0]) == {
        "source", "row", "family", "fault", "score_chosen", "score_rejected", "margin", "gap", "gap_before",
        "chosen_tokens", "rejected_tokens",
    }  # fmt: skip
    scored = [json.loads(line) for line in (context.folder / "scored_answers.jsonl").read_text().splitlines()]
    raw = [line["raw"] for line in scored if line["answer"] == "reference"]
    assert len(raw) == spec.n and sum(raw) / len(raw) == pytest.approx(spec.offset)
    padding = [line for line in scored if line["answer"] == "padding"]
    assert {line["member"] for line in padding} == {1} and len(padding) > 1
    moved = [abs(line["alone"] - line["beside_longer"]) for line in padding]
    assert max(moved) == metrics["pad_invariance_residual"] and padding[0]["alone"] != padding[1]["alone"]
    wins = [(math.copysign(1, line["margin"]) + 1) / 2 for line in written]
    assert sum(wins) / len(wins) == pytest.approx(metrics["eval_accuracy"])
    assert len((context.folder / "train_prompts.txt").read_text().split()) == metrics["train_rows"]
    logged = [line for line in read_metrics(context.folder / "metrics.jsonl") if line["split"] == "eval"]
    of_eval = {line["name"]: line["value"] for line in logged if line["step"] == 4}
    assert of_eval == {"accuracy": metrics["eval_accuracy"], "margin": metrics["eval_margin"]}


def test_the_sealed_scores_are_those_of_a_fresh_load(context_of, tmp_path, tiny_folder):
    """On a causal base that knows nothing of training: the held-out pairs' scores to 1e-5, in units of the scale.

    And the reference answers have mean 0 and deviation 1, which is what the scale is for.
    """
    context = context_of(write_pairs(tmp_path, 60))
    result = reward.run(context)
    artefact = artefact_of(context, result)
    base = load_base(tiny_folder, context.recipe.model, frozen=True, precision="fp32")
    _, members = attach_members(base, artefact, "judge")
    scorer = RewardScorer(members, read_spec(artefact), 0, 4, "fp32", context.ranks)
    asked = asked_in(context)
    written = lines(context)
    for name in ("chosen", "rejected"):
        expected = [line[f"score_{name}"] for line in written]
        assert scorer.score(getattr(asked, name)) == pytest.approx(expected, abs=1e-5 / read_spec(artefact).scale)
    reference = torch.tensor(scorer.score(asked.reference), dtype=torch.float64)
    assert read_spec(artefact).source == "data.preference, chosen answers"
    assert abs(reference.mean()) < 1e-4 and abs(reference.std(correction=0) - 1) < 1e-4


def asked_in(context: StageContext) -> Any:
    """The questions that the stage asked."""
    formatter = ChatFormatter(load_tokenizer(context.base_folder, "auto"))
    train, held_out, _ = encode_pairs(context.recipe.data, formatter, context.recipe.seed)
    return questions(context, formatter, train, held_out)


def test_questions_end_where_answers_end(context_of, tmp_path, tiny_tokenizer):
    """Every sequence that is scored ends with the end of turn, demonstrations included."""
    asked = asked_in(context_of(write_pairs(tmp_path, 40), sft=write_demonstrations(tmp_path, 400)))
    assert len(asked.reference) == 256
    for rows in (asked.chosen, asked.rejected, asked.reference, [row.changed_ids for row in asked.stress]):
        assert rows and {row[-1] for row in rows} == {2}
    assert len({len(row) for row in asked.padded}) > 1


# What it learns


@pytest.mark.slow
def test_separable_pairs_are_learnt_to_the_last(context_of, tmp_path):
    """Held-out accuracy 1, loss far below log 2; before training the head knew nothing."""
    context = context_of(write_pairs(tmp_path, 150), max_steps=30, global_batch_size=8)
    metrics = reward.run(context).metrics
    assert metrics["eval_n"] >= 20
    assert metrics["eval_accuracy"] == 1.0 and metrics["eval_loss"] < 0.1 < math.log(2)
    assert metrics["eval_loss_before"] > 0.5
    assert metrics["accuracy_by_source"][str(tmp_path / "pairs.jsonl")] == {"accuracy": 1.0, "n": metrics["eval_n"]}


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(context_of, tmp_path):
    """Control: held-out accuracy stays within chance, and the loss is no better than log 2."""
    context = context_of(write_pairs(tmp_path, 300, shuffled=True), max_steps=30, global_batch_size=8)
    metrics = reward.run(context).metrics
    low, high = metrics["eval_accuracy_ci95"]
    assert metrics["eval_n"] >= 40
    assert low < 0.5 < high or abs(metrics["eval_accuracy"] - 0.5) < 0.15
    assert metrics["eval_loss"] > math.log(2) - 0.02


def test_margins_and_centring_change_what_is_learnt(context_of, tmp_path):
    pairs = write_pairs(tmp_path, 40, margin=lambda n: 2.0)
    plain = context_of(pairs, "plain", use_margins=False)
    asked = context_of(pairs, "margins")
    centred = context_of(pairs, "centred", use_margins=False, center_coefficient=1.0)
    scales = {}
    for context in (plain, asked, centred):
        result = reward.run(context)
        scales[context.folder.name] = read_spec(artefact_of(context, result))
    assert len({spec.offset for spec in scales.values()}) == 3
    assert abs(scales["centred"].offset) < abs(scales["plain"].offset)
    first = {where: train_losses(tmp_path / where)[0] for where in scales}
    assert first["margins"] > first["plain"] + 1.0, "-log sigmoid(d - 2) near d = 0 is 2.13, not 0.69"


def train_losses(folder: Path) -> list[float]:
    found = read_metrics(folder / "metrics.jsonl")
    return [line["value"] for line in found if line["split"] == "train" and line["name"] == "loss"]


def test_in_bfloat16(context_of, tmp_path):
    """Adapter and head are kept in float32, and scores have its resolution: padding moves them, ties are rare."""
    context = context_of(write_pairs(tmp_path, 60), precision="bf16", max_steps=2)
    metrics = reward.run(context).metrics
    found = weights(context.folder / "adapter")
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert not torch.equal(found[HEAD_KEY], found[HEAD_KEY].bfloat16().float())
    assert metrics["eval_ties"] == 0 and 0 < metrics["pad_invariance_residual"] < 0.05


def test_recomputed_activations_change_nothing(context_of, tmp_path):
    """Gradient checkpointing on the classifier under PEFT: the same weights to rounding."""
    pairs = write_pairs(tmp_path, 40)
    plain, checkpointed = context_of(pairs, "plain"), context_of(pairs, "other", gradient_checkpointing=True)
    for context in (plain, checkpointed):
        reward.run(context)
    found, expected = (weights(context.folder / "adapter") for context in (checkpointed, plain))
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in expected.items())


# Interruptions


@pytest.mark.slow
def test_resuming_changes_not_a_bit(context_of, tmp_path):
    """Stopped after its third step and run again: weights, scores and figures equal those of one go.

    Control: another seed gives other weights.
    """
    pairs = write_pairs(tmp_path, 40)
    whole, stopped = context_of(pairs, "whole"), context_of(pairs, "stopped")
    expected = reward.run(whole)
    with pytest.raises(PreemptedError, match="step 3 of 4 is saved"):
        reward.run(replace(stopped, stop=StopAt(3)))
    assert not (stopped.folder / "adapter").exists()
    found = reward.run(stopped)
    assert equal(weights(whole.folder / "adapter"), weights(stopped.folder / "adapter"))
    assert found.metrics == expected.metrics and lines(stopped) == lines(whole)
    assert train_losses(stopped.folder) == train_losses(whole.folder)
    other = context_of(pairs, "other")
    other = replace(other, recipe=other.recipe.model_copy(update={"seed": 18}))
    reward.run(other)
    assert not equal(weights(whole.folder / "adapter"), weights(other.folder / "adapter"))


@pytest.mark.slow
def test_a_finished_member_is_not_trained_again(context_of, tmp_path, monkeypatch):
    """Killed in the second member, and again before the seal: the first is trained once, results are those of one go.

    Every step of both stands in the metrics once.
    """
    pairs = write_pairs(tmp_path, 40)
    whole, stopped = (context_of(pairs, where, ensemble=2) for where in ("whole", "stopped"))
    expected = reward.run(whole)
    trained: list[int] = []
    train = reward_member._train

    def counted(context: Any, training: Any, index: int) -> Any:
        trained.append(index)
        return train(context, training, index)

    monkeypatch.setattr(reward_member, "_train", counted)
    with pytest.raises(PreemptedError, match="step 3 of 4"):
        reward.run(replace(stopped, stop=StopAt(7)))
    assert trained == [0, 1]
    assert not list((stopped.folder / "checkpoints").glob("checkpoint-*")), "of the first member nothing is needed"
    assert list((stopped.folder / "checkpoints" / "member_2").glob("checkpoint-3"))
    clear_results(stopped)
    reward.run(stopped)
    assert trained == [0, 1, 1]
    clear_results(stopped)
    found = reward.run(stopped)
    assert trained == [0, 1, 1]
    assert found.metrics == expected.metrics and lines(stopped) == lines(whole)
    for name in ("adapter", "adapter_2"):
        assert equal(weights(whole.folder / name), weights(stopped.folder / name))
    steps = [line["step"] for line in read_metrics(stopped.folder / "metrics.jsonl") if line["name"] == "loss"]
    assert steps == list(range(1, 9))
    assert train_losses(stopped.folder) == train_losses(whole.folder)
    ends = [line["step"] for line in read_metrics(stopped.folder / "metrics.jsonl") if line["split"] == "eval"]
    assert ends == [0, 0, 8, 8]


def test_what_a_kill_left_of_a_member_does_not_get_into_the_artefact(context_of, tmp_path):
    """The stage's work outlives the kill, and with it what was being written aside."""
    pairs = write_pairs(tmp_path, 40)
    whole, killed = context_of(pairs, "whole"), context_of(pairs, "killed")
    reward.run(whole)
    aside = killed.work / "adapter"
    aside.mkdir(parents=True)
    for name in (".adapter_config.json.4711.tmp", "adapter_model-00002-of-00002.safetensors"):
        (aside / name).write_text("{")
    reward.run(killed)
    names = [sorted(path.name for path in (context.folder / "adapter").iterdir()) for context in (whole, killed)]
    assert names[0] == names[1]


def test_members_differ(context_of, tmp_path):
    """In head, order of pairs and result; the first is the one that a lone model would be. Both count in the score."""
    pairs = write_pairs(tmp_path, 40)
    one, two = context_of(pairs, "one"), context_of(pairs, "two", ensemble=2, aggregate="min")
    reward.run(one)
    result = reward.run(two)
    first, second = weights(two.folder / "adapter"), weights(two.folder / "adapter_2")
    assert equal(first, weights(one.folder / "adapter"))
    assert not any(torch.equal(first[name], second[name]) for name in first)
    losses = train_losses(two.folder)
    assert losses[:4] == train_losses(one.folder) and losses[4:] != losses[:4]
    spec = read_spec(artefact_of(two, result))
    assert len(spec.members) == result.metrics["members"] == len(result.metrics["member_accuracy"]) == 2
    assert spec.aggregate == "min" and spec.members[0] != spec.members[1]
    assert spec.offset < 0, "the worse of two centred scores lies below their mean"


# Other ways to start


def sealed_policy(folder: Path, form: str, context: StageContext, base: Any = None) -> Any:
    tokenizer = describe_tokenizer(load_tokenizer(context.base_folder, "auto"))
    manifest = SimpleNamespace(form=form, stage="sft", tokenizer=tokenizer, base=base or context.base)
    return SimpleNamespace(path=folder, weights=folder / form, manifest=manifest)


def test_full_fine_tuning(context_of, tmp_path, tiny_folder):
    """Starts from the parent's full weights, trains all of them, leaves a model that scores as it did in training."""
    pairs = write_pairs(tmp_path, 40)
    context = context_of(pairs, adapter="none", learning_rate=1e-3)
    policy = load_base(tiny_folder, context.recipe.model, frozen=False, precision="fp32")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.2)
    policy.save_pretrained(tmp_path / "sft" / "model")
    parent = sealed_policy(tmp_path / "sft", "model", context)
    result = reward.run(replace(context, parents={"init": parent}))
    assert result.form == "model"
    found, start = weights(context.folder / "model"), weights(tmp_path / "sft" / "model")
    shared = found.keys() & start.keys()
    assert found.keys() - start.keys() == {"score.weight"} and len(shared) > 10
    for name in shared:
        assert not torch.equal(found[name], start[name])
        assert torch.allclose(found[name], start[name], atol=0.05), "a few small steps away from the policy"
    artefact = artefact_of(context, result)
    members = load_members(artefact, context.recipe.model, "fp32")
    scorer = RewardScorer(members, read_spec(artefact), 0, 4, "fp32", context.ranks)
    expected = [line["score_chosen"] for line in lines(context)]
    assert scorer.score(asked_in(context).chosen) == pytest.approx(expected, abs=1e-5 / read_spec(artefact).scale)


def test_an_adapter_is_started_from(context_of, tmp_path, tiny_folder):
    """One step of almost no size: the artefact's adapter is the policy's, its own prompts are in none of the pairs."""
    pairs = write_pairs(tmp_path, 40)
    context = context_of(pairs, max_steps=1, learning_rate=1e-12)
    torch.manual_seed(0)
    base = load_base(tiny_folder, context.recipe.model, frozen=True, precision="fp32")
    policy = adapters.attach_new(base, context.recipe.model.adapter, dropout=False)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    adapters.save(policy, tmp_path / "sft" / "adapter", BASE)
    held_out = [line["row"] for line in held_out_rows(context)]
    texts = [json.loads(line)["prompt"] for line in pairs.read_text().splitlines()]
    trained_on = [prompt_hash((Message(role="user", content=texts[row - 1]),)) for row in held_out[:3]]
    (tmp_path / "sft" / "train_prompts.txt").write_text("\n".join(trained_on) + "\n")
    result = reward.run(replace(context, parents={"init": sealed_policy(tmp_path / "sft", "adapter", context)}))
    found, start = weights(context.folder / "adapter"), weights(tmp_path / "sft" / "adapter")
    assert found.keys() - start.keys() == {HEAD_KEY}
    assert all(torch.allclose(found[name], value, atol=1e-9) for name, value in start.items())
    assert result.metrics["eval_n"] == len(held_out) - 3
    assert result.data["preference"]["dropped"]["held_out_but_trained_on_before"] == 3
    assert set(trained_on) < set((context.folder / "train_prompts.txt").read_text().split())


def held_out_rows(context: StageContext) -> Iterator[dict[str, Any]]:
    for record in preference_pairs(context.recipe.data, context.recipe.seed).held_out:
        yield {"row": record.origin.row}


def test_a_parent_of_another_kind_is_refused(context_of, tmp_path):
    context = context_of(write_pairs(tmp_path, 40))
    parent = sealed_policy(tmp_path, "model", context)
    with pytest.raises(TrivetError, match=r"sft was stored as a full model, but model\.adapter asks for adapter"):
        reward.run(replace(context, parents={"init": parent}))
    other = sealed_policy(tmp_path, "adapter", context, SimpleNamespace(name="another", fingerprint="f" * 64))
    with pytest.raises(TrivetError, match="its init sft belongs to base another"):
        reward.run(replace(context, parents={"init": other}))
    tokenizer = other.manifest.tokenizer.model_copy(update={"chat_template_sha256": "0" * 64})
    other = sealed_policy(tmp_path, "adapter", context)
    other.manifest.tokenizer = tokenizer
    with pytest.raises(TrivetError, match="another tokenizer or chat template"):
        reward.run(replace(context, parents={"init": other}))


# Bad results


def test_nothing_held_out_is_no_figure(context_of, tmp_path):
    """The stage goes through, and its figures are None: whoever stands on it must ask."""
    context = context_of(write_pairs(tmp_path, 24))
    data = context.recipe.data.model_copy(
        update={"preference": context.recipe.data.preference.model_copy(update={"eval_fraction": 0.0})}
    )
    context = replace(context, recipe=context.recipe.model_copy(update={"data": data}))
    metrics = reward.run(context).metrics
    assert metrics["eval_n"] == 0 and metrics["stress"] == {} and metrics["member_accuracy"] == [None]
    assert {metrics[name] for name in ("eval_accuracy", "eval_accuracy_before", "eval_loss", "ece", "brier")} == {None}
    assert metrics["pad_invariance_residual"] is None
    assert lines(context) == []


def test_a_constant_scorer_is_refused(context_of, tmp_path, monkeypatch):
    """It could not be scaled, and nothing could be gained from it."""
    monkeypatch.setattr(reward_member.SequenceScorer, "score", lambda self, rows, *_: [1.5] * len(rows))
    with pytest.raises(TrivetError, match=r"scores all \d+ reference answers alike \(deviation 0\.0e\+00\)"):
        reward.run(context_of(write_pairs(tmp_path, 24)))


def test_scores_that_are_not_finite_are_refused(context_of, tmp_path, monkeypatch):
    """After training; and nothing of it counts as finished."""
    score = reward_member.SequenceScorer.score

    def broken(self: Any, rows: Any, *more: Any) -> list[float]:
        found = score(self, rows, *more)
        return [math.nan, *found[1:]] if len(rows) > 20 else found

    monkeypatch.setattr(reward_member.SequenceScorer, "score", broken)
    context = context_of(write_pairs(tmp_path, 24))
    with pytest.raises(TrivetError, match=r"stage reward: the trained model scores 1 of \d+ answers nan; lower"):
        reward.run(context)
    assert not (context.work / "member_1.json").exists()


def test_demonstrations_that_cannot_be_used_are_a_sentence(context_of, tmp_path):
    context = context_of(write_pairs(tmp_path, 24), sft=write_demonstrations(tmp_path, 20))
    data = context.recipe.data
    data = data.model_copy(update={"sft": data.sft.model_copy(update={"max_length": 2})})
    context = replace(context, recipe=context.recipe.model_copy(update={"data": data}))
    with pytest.raises(DataError, match=r"demonstrations of data\.sft, and none of \d+ can be used"):
        reward.run(context)
