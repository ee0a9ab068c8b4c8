"""Scores of given answers by reward models: what they are, what they must not depend on, what scoring leaves behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluation import sharing
from evaluation.scores import RewardScorer, SequenceScorer, attach_members, load_members
from evaluation.sharing import over_ranks
from pipeline.models import adapters
from pipeline.models.forward import causal_model, trunk_of
from pipeline.models.heads import new_head, with_head
from pipeline.models.load import load_base, load_classifier
from pipeline.models.reward_model import MemberScale, RewardSpec
from pipeline.recipe.schema import AdapterSettings, ModelSettings
from pipeline.runtime import Ranks

ALONE = Ranks(0, 0, 1)
SETTINGS = ModelSettings(base="builtin:tiny-llama")
ROWS = [[1, *range(40 + n, 43 + 3 * n), 2] for n in range(9)]


def spec(*members: tuple[float, float], **values: Any) -> RewardSpec:
    scales = tuple(MemberScale(offset=offset, scale=scale) for offset, scale in members)
    return RewardSpec(
        **{
            "offset": scales[0].offset, "scale": scales[0].scale, "members": scales, "aggregate": "mean",
            "variance_weight": 0.1, "n": 9, "source": "x", **values,
        }
    )  # fmt: skip


def stir(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def classifier(folder: Path, seed: int) -> Any:
    model: Any = load_classifier(folder, SETTINGS, frozen=True, precision="fp32")
    return with_head(model, new_head(48, seed))


def raw(model: Any, batch_size: int = 4, precision: str = "fp32", ranks: Ranks = ALONE, pad_id: int = 0) -> list[float]:
    return SequenceScorer(model, causal_model(model).score, pad_id, batch_size, precision, ranks).score(ROWS)


@pytest.fixture
def sealed(tiny_folder, tmp_path) -> Any:
    """A reward model of two members on disk, each one's raw scores, and a base that a policy's adapter is on."""
    scores = []
    for number in (1, 2):
        model = adapters.attach_for_scores(classifier(tiny_folder, number), AdapterSettings(r=4), None)
        stir(model, number)
        adapters.save(model, tmp_path / ("adapter" if number == 1 else "adapter_2"), "x")
        scores.append(raw(model))
    artefact = SimpleNamespace(path=tmp_path, manifest=SimpleNamespace(form="adapter", kind="reward_model", stage="r"))
    base = load_base(tiny_folder, SETTINGS, frozen=True, precision="fp32")
    policy = adapters.attach_new(base, AdapterSettings(r=4), dropout=False)
    stir(policy, 9)
    return SimpleNamespace(raw=scores, artefact=artefact, policy=policy)


@torch.no_grad()
def one_by_one(model: Any) -> list[float]:
    head = causal_model(model).score.weight[0].double()
    found = [trunk_of(model)(input_ids=torch.tensor([row])).last_hidden_state[0, -1].double() @ head for row in ROWS]
    return [float(score) for score in found]


# Raw scores


def test_equal_to_a_plain_loop(tiny_folder):
    model = classifier(tiny_folder, 0)
    expected = one_by_one(model.eval())
    for batch_size in (1, 2, 4, 9, 100):
        assert raw(model, batch_size) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-2
    assert raw(model, pad_id=2) == raw(model, pad_id=77), "what padding holds is masked"


def test_low_precision_is_near_and_not_equal(tiny_folder):
    model = classifier(tiny_folder, 0)
    low, full = raw(model, precision="bf16"), raw(model)
    assert low != full and low == pytest.approx(full, abs=0.05)
    assert any(score != torch.tensor(score).bfloat16().item() for score in low), "the head itself is in float32"


def test_the_mode_is_put_back(tiny_folder):
    model = classifier(tiny_folder, 0)
    for training in (True, False):
        raw(model.train(training))
        assert model.training is training


def test_ranks_share_the_rows(tiny_folder):
    model = classifier(tiny_folder, 0)
    whole = raw(model, 1)
    assert [raw(model, 1, ranks=Ranks(rank, rank, 2)) for rank in (0, 1)] == [whole[0::2], whole[1::2]]
    assert SequenceScorer(model, model.score, 0, 4, "fp32", ALONE).score([]) == []


def test_sharing_keeps_the_order_and_counts():
    seen: list[tuple[int, int]] = []
    rows = [[0] * length for length in (3, 5, 1, 5, 2)]
    found = over_ranks(rows, 2, ALONE, lambda batch: [10 * i for i in batch], lambda *at: seen.append(at))
    assert found == [0, 10, 20, 30, 40]
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(("count", "mine", "others", "calls"), [(5, 3, 2, 2), (5, 2, 3, 2), (1, 0, 1, 1), (0, 0, 0, 0)])
def test_a_spread_model_is_called_equally_often_on_every_rank(monkeypatch, count, mine, others, calls):
    """Else the ranks wait for one another for ever; results stay those of this rank's own rows."""
    rank = 0 if mine >= others else 1
    most = max(1, -(-max(mine, others) // 2)) if count else 0
    gathered: list[list[Any]] = []

    def gather(values: list[Any]) -> list[Any]:
        gathered.append(values)
        return [most] if len(gathered) == 1 and count else values

    monkeypatch.setattr(sharing, "gather_lists", gather)
    seen: list[list[int]] = []

    def compute(batch: list[int]) -> list[int]:
        seen.append(batch)
        return [10 * index for index in batch]

    rows = [[0] * (index + 1) for index in range(count)]
    found = over_ranks(rows, 2, Ranks(rank, rank, 2), compute, together=True)
    assert len(seen) == calls and found == [10 * index for index in range(rank, count, 2)]


# Sealed reward models


def test_members_on_a_shared_base_score_as_in_training(sealed):
    """Each through its own adapter and head, to 1e-5, then centred, scaled and averaged."""
    _, members = attach_members(sealed.policy, sealed.artefact, "judge")
    assert [member.adapter for member in members] == ["judge_1", "judge_2"]
    scales = spec((0.3, 2.0), (-0.1, 0.5), offset=0.2, scale=3.0)
    found = RewardScorer(members, scales, 0, 4, "fp32", ALONE).score(ROWS)
    first, second = sealed.raw
    expected = [(((a - 0.3) / 2 + (b + 0.1) / 0.5) / 2 - 0.2) / 3 for a, b in zip(first, second, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 0.1, "members that differ"


@pytest.mark.parametrize("case", ["policy", "base", "inner"])
def test_scoring_leaves_the_model_as_it_was(sealed, case):
    """The policy's adapter active and trainable, all adapters off, or another one switched on behind PEFT's back."""
    model, members = attach_members(sealed.policy, sealed.artefact, "judge")
    scorer = RewardScorer(members[:1], spec((0.0, 1.0)), 0, 4, "fp32", ALONE)
    ids = torch.tensor([ROWS[3]])

    def state() -> tuple[Any, ...]:
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits
        return model.active_adapter, {n for n, p in model.named_parameters() if p.requires_grad}, logits

    if case == "base":
        model.base_model.disable_adapter_layers()
    if case == "inner":
        model.base_model.set_adapter("judge_2", inference_mode=True)
    name, trainable, logits = state()
    assert scorer.score(ROWS) == pytest.approx(sealed.raw[0], abs=1e-5)
    again = state()
    assert (again[0], again[1]) == (name, trainable)
    assert torch.equal(again[2], logits)
    assert bool(trainable) is (case == "policy")


def test_a_bare_base_is_wrapped(sealed, tiny_folder):
    base = load_base(tiny_folder, SETTINGS, frozen=True, precision="fp32")
    model, members = attach_members(base, sealed.artefact, "judge")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    found = RewardScorer(members[:1], spec((0.0, 1.0)), 0, 4, "fp32", ALONE).score(ROWS)
    assert found == pytest.approx(sealed.raw[0], abs=1e-5)


def test_full_models_score_as_in_training(tiny_folder, tmp_path):
    """Two of them, stored whole; their heads come from their files."""
    expected = []
    for number in (1, 2):
        model = classifier(tiny_folder, number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0 + 0.1 * number)
        model.save_pretrained(tmp_path / ("model" if number == 1 else "model_2"))
        expected.append(raw(model))
    artefact: Any = SimpleNamespace(path=tmp_path, manifest=SimpleNamespace(form="model"))
    members = load_members(artefact, SETTINGS, "fp32")
    for member, scores in zip(members, expected, strict=True):
        found = RewardScorer((member,), spec((0.0, 1.0)), 0, 4, "fp32", ALONE).score(ROWS)
        assert found == pytest.approx(scores, abs=1e-5)
    assert not any(parameter.requires_grad for member in members for parameter in member.model.parameters())
