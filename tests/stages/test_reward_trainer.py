"""The loss that TRL minimises is the one that `pipeline.algorithms` states, on the scores that we read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig

from data_prep.chat import EncodedPair
from data_prep.records import Message, Origin, PreferencePair
from pipeline.algorithms.bradley_terry import bradley_terry_loss
from pipeline.batches import pad_left
from pipeline.models import adapters
from pipeline.models.forward import causal_model
from pipeline.models.heads import new_head, sequence_scores, with_head
from pipeline.models.load import load_classifier, load_tokenizer
from pipeline.recipe.schema import AdapterSettings, ModelSettings
from pipeline.stages.reward_objective import margin_pairs
from pipeline.stages.reward_trainer import CommittedRewardTrainer, trainer_rows

ENCODED = [
    EncodedPair([1, 40, 41, 42], [50, 51, 2], [60, 2], False),
    EncodedPair([1, 43], [52, 53, 54, 55, 2], [61, 62, 2], False),
    EncodedPair([1, 44, 45, 46, 47, 48], [56, 2], [63, 64, 65, 66, 67, 2], False),
]
MARGINS = [0.7, None, -0.2]


def records(margins: list[Any]) -> list[PreferencePair]:
    origin, prompt = Origin(source="x", row=1), (Message(role="user", content="x"),)
    return [PreferencePair(prompt=prompt, chosen="a", rejected="b", origin=origin, margin=one) for one in margins]


@pytest.fixture
def trainer_of(tiny_folder, tmp_path) -> Any:
    def make(rows: list[dict[str, Any]], center: float | None = None, pad: str | None = None, **more: Any) -> Any:
        model: Any = load_classifier(tiny_folder, ModelSettings(base="x"), frozen=True, precision="fp32")
        with_head(model, new_head(48, 0))
        wrapped = adapters.attach_for_scores(model, AdapterSettings(r=4), None)
        tokenizer = load_tokenizer(tiny_folder, "auto")
        if pad is not None:
            tokenizer.pad_token = pad
        config = RewardConfig(
            output_dir=str(tmp_path), max_length=None, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
            gradient_checkpointing=False, center_rewards_coefficient=center, save_strategy="no", **more,
        )  # fmt: skip
        return CommittedRewardTrainer(
            model=wrapped, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )

    return make


def expected_loss(model: Any, rows: list[dict[str, Any]], center: float) -> torch.Tensor:
    head = causal_model(model).score
    chosen, rejected = (
        sequence_scores(model, head, *pad_left([row[name] for row in rows], 0))
        for name in ("chosen_ids", "rejected_ids")
    )
    margin = torch.tensor([row["margin"] for row in rows]) if "margin" in rows[0] else None
    return bradley_terry_loss(chosen, rejected, margin, center).mean()


@pytest.mark.parametrize("margins", [[None] * 3, MARGINS])
@pytest.mark.parametrize("center", [0.0, 0.3])
@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_the_loss_is_the_stated_one(trainer_of, margins, center, pad):
    """Value and gradient to 1e-5, on scores that are computed with other padding; pad may equal the end of turn.

    Controls: neither the margins nor the centring can be left out unnoticed.
    """
    rows = trainer_rows(margin_pairs(records(margins), ENCODED, use_margins=True))
    trainer = trainer_of(rows, center or None, pad)
    model = trainer.model.eval()
    loss = trainer.compute_loss(model, trainer.data_collator(rows))
    expected = expected_loss(model, rows, center)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    weights = [value for value in model.parameters() if value.requires_grad]
    ours, theirs = (torch.autograd.grad(one, weights, retain_graph=True) for one in (expected, loss))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)
    plain = [{name: value for name, value in row.items() if name != "margin"} for row in rows]
    if margins != [None] * 3:
        assert abs(expected_loss(model, plain, center).item() - loss.item()) > 0.05
    if center:
        assert abs(expected_loss(model, rows, 0.0).item() - loss.item()) > 0.05


def test_equal_scores_give_log_two(trainer_of):
    rows = trainer_rows(margin_pairs(records([None] * 3), ENCODED, use_margins=True))
    for row in rows:
        row["rejected_ids"] = row["chosen_ids"]
    trainer = trainer_of(rows)
    assert trainer.compute_loss(trainer.model.eval(), trainer.data_collator(rows)).item() == pytest.approx(0.6931472)


def test_rows_end_where_answers_end():
    """Prompt and answer as one; margins only where they are wanted and any pair states one."""
    rows = trainer_rows(margin_pairs(records(MARGINS), ENCODED, use_margins=True))
    assert rows[0] == {"chosen_ids": [1, 40, 41, 42, 50, 51, 2], "rejected_ids": [1, 40, 41, 42, 60, 2], "margin": 0.7}
    assert [row["margin"] for row in rows] == [0.7, 0.0, -0.2]
    for values, used in ((MARGINS, False), ([None] * 3, True)):
        without = trainer_rows(margin_pairs(records(values), ENCODED, use_margins=used))
        assert all("margin" not in row for row in without)


def test_the_head_is_put_back_into_float32(trainer_of, monkeypatch):
    """TRL casts everything trainable to bfloat16 where it takes the base for a quantised one."""
    from transformers import LlamaForSequenceClassification

    monkeypatch.setattr(LlamaForSequenceClassification, "is_loaded_in_4bit", True, raising=False)
    trainer = trainer_of(trainer_rows(margin_pairs(records([None] * 3), ENCODED, use_margins=True)))
    trained = {name: value.dtype for name, value in trainer.model.named_parameters() if value.requires_grad}
    heads = {dtype for name, dtype in trained.items() if "score" in name}
    assert heads == {torch.float32}
    assert {dtype for name, dtype in trained.items() if "score" not in name} == {torch.bfloat16}


def test_training_moves_adapter_and_head_and_nothing_else(trainer_of):
    rows = trainer_rows(margin_pairs(records(MARGINS), ENCODED, use_margins=True))
    trainer = trainer_of(rows, max_steps=3, learning_rate=1e-2, per_device_train_batch_size=3)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainable = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}
    assert moved == trainable
    assert any("score" in name for name in moved)
