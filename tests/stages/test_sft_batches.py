"""SFT's batches: packed, grouped and padded rows give one loss and one gradient, or packing is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import DataLoaderShard
from safetensors.torch import load_file
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPTNeoXConfig,
    MistralConfig,
    OPTConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import SFTConfig

from data_prep.chat import EncodedDemonstration
from pipeline import batch_order
from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.errors import PreemptedError, RecipeError
from pipeline.models.load import load_tokenizer
from pipeline.models.source import identify
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import SftSettings
from pipeline.runtime import Ranks, StopRequest, seed_everything
from pipeline.stages import sft
from pipeline.stages.sft import CommittedSFTTrainer
from pipeline.stages.sft_batches import IGNORED, batch_arguments, require_rows_apart, row_order, trainer_rows
from pipeline.tracking import Tracker, read_metrics

BASE = "builtin:tiny-llama"
LONGEST = 64
LEAKY = "blind_to_rows"
"""An attention that looks at everything before a token, whatever row it is of."""


def leaky_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any) -> Any:
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **rest)


@pytest.fixture(scope="module", autouse=True)
def _leaky() -> None:
    AttentionInterface.register(LEAKY, leaky_attention)


def encoded(count: int, seed: int = 0) -> list[EncodedDemonstration]:
    """Rows of 8 to 60 tokens, of which the last third is an answer."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randint(8, 60)
        ids = [draw.randrange(3, 250) for _ in range(length)]
        rows.append(EncodedDemonstration(ids, [place >= length - length // 3 for place in range(length)], False))
    return rows


def loss_and_gradients(model: Any, rows: list[EncodedDemonstration], folder: Path, **settings: Any) -> Any:
    """Of one optimiser step over all rows, by the stage's own trainer."""
    stage = SftSettings.model_validate(settings)
    dataset = trainer_rows(rows, stage, LONGEST, seed=3)
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=len(dataset), use_cpu=True, report_to="none", bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False,
        **batch_arguments(stage, LONGEST),
    )  # fmt: skip
    tokenizer = load_tokenizer(folder, "auto") if (folder / "tokenizer.json").is_file() else None
    trainer = CommittedSFTTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer,
        order=row_order(rows, stage, arguments.seed) if stage.group_by_length else None,
    )  # fmt: skip
    batches, tokens = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, torch.device("cpu"))
    model.zero_grad()
    loss = trainer.compute_loss(model, batches[0], num_items_in_batch=tokens)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, batches[0]


@pytest.fixture
def step(lively_model, tiny_folder, tmp_path) -> Any:
    """Loss and gradients on the lively tiny model; its folder is given for the tokenizer."""

    def run(rows: list[EncodedDemonstration], attention: str = "sdpa", **settings: Any) -> Any:
        lively_model.set_attn_implementation(attention)
        return loss_and_gradients(lively_model, rows, tiny_folder, **settings)

    return run


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of two gradients, of the largest entry of the first."""
    assert one.keys() == other.keys() and one
    largest = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_and_padded_rows_give_one_loss_and_one_gradient(step, attention):
    rows = encoded(7)
    loss, gradients, batch = step(rows, attention)
    packed_loss, packed_gradients, packed = step(rows, attention, packing=True)
    assert batch["input_ids"].shape[0] == 7 and "attention_mask" in batch
    assert packed["input_ids"].shape == (1, sum(len(row.input_ids) for row in rows)), "no position is padding"
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert difference(gradients, packed_gradients) < 1e-5


def test_rows_that_see_each_other_are_told_apart(step):
    """The control: the same comparison with an attention that does not keep packed rows apart."""
    rows = encoded(7)
    loss, gradients, _ = step(rows)
    leaking_loss, leaking_gradients, _ = step(rows, LEAKY, packing=True)
    assert abs(leaking_loss / loss - 1) > 1e-3
    assert difference(gradients, leaking_gradients) > 1e-2


def test_grouped_rows_give_the_same_loss(step):
    """Grouping changes which rows meet, not what a step over all of them learns."""
    rows = encoded(7)
    loss, gradients, _ = step(rows)
    grouped_loss, grouped_gradients, batch = step(rows, group_by_length=True, global_batch_size=7)
    lengths = batch["attention_mask"].sum(-1).tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert grouped_loss == pytest.approx(loss, rel=1e-5) and difference(gradients, grouped_gradients) < 1e-5


def test_an_attention_that_mixes_rows_is_refused(lively_model):
    rows = encoded(2)
    lively_model.train()
    for attention in ("sdpa", "eager"):
        lively_model.set_attn_implementation(attention)
        require_rows_apart(lively_model, rows, 0, "fp32", "sft")
        require_rows_apart(lively_model, rows, 0, "bf16", "sft")
    assert lively_model.training, "it is left as it was"
    lively_model.set_attn_implementation(LEAKY)
    for precision in ("fp32", "bf16"):
        with pytest.raises(
            RecipeError, match=r"stages\.tune\.packing: with LlamaForCausalLM and blind_to_rows attention"
        ):
            require_rows_apart(lively_model, rows, 0, precision, "tune")


SHAPE = {"vocab_size": 259, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "gemma2": (
        Gemma2Config(**SHAPE, num_key_value_heads=2, intermediate_size=96, head_dim=12, sliding_window=16),
        True,
    ),
    "mistral": (MistralConfig(**SHAPE, num_key_value_heads=2, intermediate_size=96, sliding_window=16), True),
    "gpt_neox": (GPTNeoXConfig(**SHAPE, intermediate_size=96), True),
    "opt": (OPTConfig(**SHAPE, ffn_dim=96, word_embed_proj_dim=48), False),
    "bloom": (BloomConfig(**SHAPE), False),
}
"""Whether the library's model keeps packed rows apart: the last two make their masks without looking at positions."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_library_s_models_are_judged_by_what_they_do(family):
    config, apart = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if apart:
        require_rows_apart(model, encoded(2), 0, "fp32", "sft")
    else:
        with pytest.raises(RecipeError, match=type(model).__name__):
            require_rows_apart(model, encoded(2), 0, "fp32", "sft")


def test_a_model_as_it_is_initialised_is_judged_rightly_too(tiny_model):
    """Its logits hardly depend on anything: the measure is relative to how much they do."""
    tiny_model.set_attn_implementation(LEAKY)
    with pytest.raises(RecipeError, match="packing: false"):
        require_rows_apart(tiny_model, encoded(2), 0, "fp32", "sft")


def test_unsaid_the_rows_are_handed_over_as_they_are():
    rows = encoded(5)
    stage = SftSettings()
    assert batch_arguments(stage, 99) == {
        "packing": False, "max_length": None, "train_sampling_strategy": "random",
    }  # fmt: skip
    found = trainer_rows(rows, stage, 99, seed=3)
    assert [row["input_ids"] for row in found] == [row.input_ids for row in rows]
    for row, given in zip(rows, found, strict=True):
        expected = [i if m else IGNORED for i, m in zip(row.input_ids, row.response_mask, strict=True)]
        assert given["labels"] == expected


def test_packing_loses_and_cuts_nothing():
    """Every row is whole in one sequence, with its labels; none is longer than allowed."""
    rows = encoded(200)
    packed = trainer_rows(rows, SftSettings(packing=True), LONGEST, seed=3)
    found = []
    for sequence in packed:
        assert len(sequence["input_ids"]) == sum(sequence["seq_lengths"]) <= LONGEST
        start = 0
        for length in sequence["seq_lengths"]:
            part = slice(start, start + length)
            mask = [label != IGNORED for label in sequence["labels"][part]]
            found.append((sequence["input_ids"][part], mask))
            start += length
    assert sorted(found) == sorted((row.input_ids, row.response_mask) for row in rows)
    assert len(packed) < len(rows)


# The stage as a whole


class StopAt(StopRequest):
    """Asks to stop at the n-th look between steps."""

    def __init__(self, looks: int):
        super().__init__()
        self._left = looks

    def agreed(self) -> bool:
        self._left -= 1
        return self._left == 0


@pytest.fixture
def context_of(tmp_path, tiny_folder) -> Any:
    def make(where: str, **settings: Any) -> StageContext:
        path = tmp_path / "rows.jsonl"
        if not path.is_file():
            draw = random.Random(1)
            words = [" ".join("ab" * draw.randint(1, 6) for _ in range(draw.randint(1, 4))) for _ in range(24)]
            rows = (f'{{"instruction": "Say {n}", "output": "{word}"}}\n' for n, word in enumerate(words))
            path.write_text("".join(rows))
        stage = {
            "kind": "sft", "learning_rate": 1e-2, "global_batch_size": 8, "epochs": 2, "precision": "fp32",
            "log_every": 1, "save_every": 50, **settings,
        }  # fmt: skip
        recipe = Recipe.model_validate(
            {
                "name": "x",
                "model": {"base": BASE, "adapter": {"r": 4}},
                "data": {"sft": {"sources": [{"path": str(path)}], "max_length": 256, "eval_fraction": 0.1}},
                "stages": {"sft": stage},
            }
        )
        folder = tmp_path / where
        folder.mkdir(exist_ok=True)
        return StageContext(
            recipe=recipe, stage="sft", folder=folder, parents={}, base=identify(BASE, None),
            base_folder=tiny_folder, ranks=Ranks(0, 0, 1), stop=StopRequest(), console=Console(None),
            tracker=Tracker(folder / "metrics.jsonl", "sft"),
        )  # fmt: skip

    return make


def run(context: StageContext) -> Any:
    """As a worker runs it: seeded."""
    seed_everything(context.recipe.seed)
    return sft.run(context)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_pass_has_an_order_of_its_own_on_every_data_loader(context_of, monkeypatch):
    """Also where the library does not say which pass begins, as with two ranks after a resume."""
    asked: list[int] = []
    order = batch_order.grouped_order

    def watched(lengths: Any, group: int, seed: int) -> list[int]:
        asked.append(seed)
        return order(lengths, group, seed)

    monkeypatch.setattr(batch_order, "grouped_order", watched)
    monkeypatch.setattr(DataLoaderShard, "set_epoch", lambda self, epoch: None)
    context = context_of("deaf", group_by_length=True)
    with pytest.raises(PreemptedError):
        run(replace(context, stop=StopAt(5)))
    run(context)
    drawn = asked[1:3] + asked[4:]  # the first of each run is the report's
    assert drawn == [17, 18, 18]


@pytest.mark.parametrize(
    "settings", [{"group_by_length": True}, {"packing": True, "global_batch_size": 2, "per_device_batch_size": 1}]
)
def test_a_stage_stopped_in_its_second_pass_goes_on_exactly(context_of, settings):
    """Bit for bit, and not as rows in the plain order would: which rows meet is the same after a resume."""
    whole, stopped, plain = context_of("whole", **settings), context_of("stopped", **settings), context_of("plain")
    expected = run(whole)
    at = expected.metrics["steps"] // 2 + 1
    with pytest.raises(PreemptedError, match=f"step {at} of {expected.metrics['steps']} is saved"):
        run(replace(stopped, stop=StopAt(at)))
    found = run(stopped)
    assert equal(weights(whole.folder), weights(stopped.folder))
    assert found.metrics == expected.metrics
    run(plain)
    assert not equal(weights(whole.folder), weights(plain.folder))
    used = "packed" if "packing" in settings else "grouped"
    assert expected.data["sft"]["padding"]["used"] == used
    losses = [line for line in read_metrics(whole.folder / "metrics.jsonl") if line["name"] == "loss"]
    assert losses[-2]["value"] < losses[1]["value"]
