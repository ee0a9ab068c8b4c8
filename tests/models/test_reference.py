"""The frozen reference of preference training, and the adapter's way from stage to stage.

The reference must be the policy that training starts from, the SFT policy, not the base below it, and must stay so.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trl import DPOConfig

from data_prep.chat import EncodedPair
from evaluation.likelihood import Scorer, pair_rows
from pipeline.errors import TrivetError
from pipeline.models import adapters
from pipeline.models.source import identify
from pipeline.models.stream_forward import attend_in_streams
from pipeline.recipe.schema import AdapterSettings, Recipe
from pipeline.recipe.stage_settings import DpoSettings
from pipeline.runtime import Ranks
from pipeline.stages.dpo import REFERENCE, CommittedDPOTrainer, _Judge, _row
from pipeline.stages.policy import Policy, load_policy, load_reference, save_policy

ALONE = Ranks(0, 0, 1)
BASE = "builtin:tiny-llama"
PAIRS = [
    EncodedPair([1, 40, 41, 42], [50, 51, 2], [60, 2], False),
    EncodedPair([1, 43], [52, 53, 54, 55, 2], [61, 62, 2], False),
    EncodedPair([1, 44, 45, 46, 47, 48], [56, 2], [63, 64, 65, 66, 67, 2], False),
]
SETTINGS = DpoSettings(beta=0.3, per_device_batch_size=2)


def context_of(folder: Path, base_folder: Path, adapter: Any, parent: Any = None) -> Any:
    """As much of a stage's context as loading and judging look at."""
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"base": BASE, "adapter": adapter},
            "data": {"preference": {"sources": [{"path": "x"}]}},
            "stages": {"dpo": {"kind": "dpo"}},
        }
    )
    return SimpleNamespace(
        recipe=recipe,
        stage="dpo",
        base=identify(BASE, None),
        base_folder=base_folder,
        folder=folder,
        ranks=ALONE,
        parents={} if parent is None else {"policy": parent},
        progress=lambda task: lambda done, total: None,
    )


def artefact_of(weights: Path, form: str, description: Any) -> Any:
    """What a sealed SFT artefact tells the next stage."""
    manifest = SimpleNamespace(form=form, stage="sft", tokenizer=description, base=identify(BASE, None))
    return SimpleNamespace(weights=weights, manifest=manifest)


def fresh(folder: Path) -> Any:
    """The base as stages load it, so that scores can be compared to the last bit."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert attend_in_streams(model) is None
    return model


def scores(model: Any, rows: list[EncodedPair] = PAIRS) -> list[float]:
    return [found.logp for found in Scorer(model, 0, 4, "fp32", ALONE).score(pair_rows(rows))]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[1, 40, 41, 50, 51, 2]])).logits


def imitate(model: Any, steps: int = 4) -> None:
    """Supervised steps on the chosen answers: what an SFT stage does to a policy."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=2e-2)
    for step in range(steps):
        row = PAIRS[step % len(PAIRS)]
        ids = torch.tensor([[*row.prompt_ids, *row.chosen_ids]])
        labels = ids.clone()
        labels[:, : len(row.prompt_ids)] = -100
        model.train()(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def parameters(model: Any, part: str) -> dict[str, torch.Tensor]:
    """Copies of the parameters of one adapter, or of the base (`part` empty)."""
    chosen = lambda name: f".{part}." in name if part else "lora_" not in name  # noqa: E731
    return {name: value.detach().clone() for name, value in model.named_parameters() if chosen(name)}


@pytest.fixture
def sft(tiny_folder, tmp_path) -> Any:
    """An SFT stage's result: the policy as it was saved, its own scores, the base's scores, and its artefact."""
    torch.manual_seed(0)
    context = context_of(tmp_path / "sft", tiny_folder, {"r": 4})
    policy = load_policy(context, None, precision="fp32", dropout=False)
    of_base = scores(policy.model)
    imitate(policy.model)
    save_policy(policy, context)
    artefact = artefact_of(tmp_path / "sft" / "adapter", "adapter", policy.description)
    return SimpleNamespace(
        scores=scores(policy.model), logits=logits(policy.model), of_base=of_base, artefact=artefact,
        weights=parameters(policy.model, adapters.TRAINED),
    )  # fmt: skip


@pytest.fixture
def dpo(sft, tiny_folder, tmp_path) -> Any:
    """A DPO stage at its beginning."""
    context = context_of(tmp_path / "dpo", tiny_folder, {"r": 4}, sft.artefact)
    policy = load_policy(context, sft.artefact, precision="fp32", dropout=False)
    config = DPOConfig(
        output_dir=str(tmp_path / "work"), beta=SETTINGS.beta, max_length=None, use_cpu=True, bf16=False,
        report_to="none", gradient_checkpointing=False, disable_tqdm=True, learning_rate=2e-2, max_steps=3,
        per_device_train_batch_size=3, save_strategy="no", max_grad_norm=100.0,
    )  # fmt: skip
    trainer = CommittedDPOTrainer(
        model=policy.model,
        args=config,
        train_dataset=Dataset.from_list([_row(row) for row in PAIRS]),
        processing_class=policy.tokenizer,
    )
    judge = judge_of(policy, None, "fp32", context)
    return SimpleNamespace(context=context, policy=policy, model=policy.model, trainer=trainer, judge=judge)


def judge_of(policy: Policy, reference: Any, precision: str, context: Any) -> _Judge:
    """The stage's own judge of held-out pairs, as `run` makes it."""
    size = 2 * SETTINGS.per_device_batch_size
    scorer = Scorer(policy.model, policy.description.pad_id, size, precision, context.ranks)
    return _Judge(policy, reference, scorer, SETTINGS.beta, context)


def of_reference(model: Any) -> list[float]:
    model.set_adapter(REFERENCE, inference_mode=True)
    found = scores(model)
    model.set_adapter(adapters.TRAINED)
    return found


# The reference


def test_the_reference_is_the_sft_policy_and_not_the_base(sft, dpo):
    """Exactly its log-probabilities, in the same batches. Control: the base's are far away."""
    assert of_reference(dpo.model) == sft.scores == scores(dpo.model)
    with dpo.model.disable_adapter():
        assert scores(dpo.model) == sft.of_base
    apart = [abs(a - b) for a, b in zip(sft.scores, sft.of_base, strict=True)]
    assert min(apart) > 0.1


def test_in_bfloat16_too(sft, tiny_folder, tmp_path):
    """On a bfloat16 base the adapter and its frozen copy stay in float32, and start as equal, bit for bit."""
    context = context_of(tmp_path / "dpo", tiny_folder, {"r": 4}, sft.artefact)
    policy = load_policy(context, sft.artefact, precision="bf16", dropout=False)
    config = DPOConfig(output_dir=str(tmp_path), max_length=None, use_cpu=True, bf16=True, report_to="none")
    rows = Dataset.from_list([_row(row) for row in PAIRS])
    CommittedDPOTrainer(model=policy.model, args=config, train_dataset=rows, processing_class=policy.tokenizer)
    dtypes = {
        part: {value.dtype for value in parameters(policy.model, part).values()} for part in (REFERENCE, "default")
    }
    assert dtypes == {REFERENCE: {torch.float32}, "default": {torch.float32}}
    assert next(iter(parameters(policy.model, "").values())).dtype == torch.bfloat16
    before = judge_of(policy, None, "bf16", context).reference_and_margins(PAIRS)
    assert before["margins"] == [0.0, 0.0, 0.0]
    assert before["reference"] == pytest.approx(sft.scores, rel=1e-2)
    assert before["reference"] != sft.scores


def test_trl_asks_the_same_reference(sft, dpo):
    """What the trainer itself computes as reference log-probabilities, to 1e-5 (it pads on the right)."""
    inputs = dpo.trainer.data_collator([_row(row) for row in PAIRS])
    found = torch.cat(dpo.trainer.compute_ref_log_probs(dpo.trainer.model, inputs)).tolist()
    assert found == pytest.approx(sft.scores, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(found, sft.of_base, strict=True)) > 0.1


def test_the_judge_starts_from_ties_against_it(sft, dpo):
    before = dpo.judge.reference_and_margins(PAIRS)
    assert before["reference"] == sft.scores
    assert before["margins"] == [0.0, 0.0, 0.0]
    assert dpo.judge.reference_and_margins([]) == {"reference": [], "margins": []}


def test_training_moves_the_policy_and_nothing_else(sft, dpo):
    """Three optimiser steps: the reference adapter and the base bitwise as before, in weights and in what they say."""
    model = dpo.model
    before = dpo.judge.reference_and_margins(PAIRS)
    frozen, base, trained = (parameters(model, part) for part in (REFERENCE, "", adapters.TRAINED))
    assert [p.requires_grad for n, p in model.named_parameters() if f".{REFERENCE}." in n] == [False] * len(frozen)
    dpo.trainer.train()
    assert dpo.trainer.state.global_step == 3
    for name, value in {**frozen, **base}.items():
        assert torch.equal(model.get_parameter(name), value), name
    moved = {name for name, value in trained.items() if not torch.equal(model.get_parameter(name), value)}
    assert moved == set(trained)
    assert of_reference(model) == sft.scores
    after = dpo.judge.margins(PAIRS, before["reference"])
    assert all(margin > 0.1 for margin in after), "three large steps on these very pairs must show"
    with model.disable_adapter():
        assert scores(model) == sft.of_base


def test_judging_leaves_the_policy_trainable(dpo):
    """Scoring the reference switches adapters; afterwards the trained one is active, has its gradient, and only it."""
    dpo.judge.reference_and_margins(PAIRS)
    assert dpo.model.active_adapter == adapters.TRAINED
    trainable = {name for name, value in dpo.model.named_parameters() if value.requires_grad}
    assert trainable == set(parameters(dpo.model, adapters.TRAINED))


def test_without_an_earlier_stage_the_reference_is_the_base(tiny_folder, tmp_path):
    context = context_of(tmp_path, tiny_folder, {"r": 4})
    policy = load_policy(context, None, precision="fp32", dropout=False)
    plain = fresh(tiny_folder).eval()
    config = DPOConfig(output_dir=str(tmp_path), max_length=None, use_cpu=True, bf16=False, report_to="none")
    rows = Dataset.from_list([_row(row) for row in PAIRS])
    CommittedDPOTrainer(model=policy.model, args=config, train_dataset=rows, processing_class=policy.tokenizer)
    assert of_reference(policy.model) == scores(plain)


def test_full_fine_tuning_has_a_second_frozen_model(tiny_folder, tmp_path):
    """The reference holds the parent's full weights, not the base's, and shares no memory with the policy."""
    first = context_of(tmp_path / "sft", tiny_folder, "none")
    policy = load_policy(first, None, precision="fp32", dropout=False)
    of_base = scores(policy.model)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_policy(policy, first)
    parent = artefact_of(tmp_path / "sft" / "model", "model", policy.description)
    context = context_of(tmp_path / "dpo", tiny_folder, "none", parent)
    started = load_policy(context, parent, precision="fp32", dropout=False)
    reference = load_reference(context, parent, "fp32")
    assert scores(started.model) == scores(reference) == scores(policy.model)
    assert min(abs(a - b) for a, b in zip(scores(reference), of_base, strict=True)) > 1e-3
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert all(parameter.requires_grad for parameter in started.model.parameters())
    before = scores(reference)
    with torch.no_grad():
        for parameter in started.model.parameters():
            parameter.mul_(1.5)
    assert scores(reference) == before != scores(started.model)
    judge = judge_of(started, reference, "fp32", context)
    assert judge.reference_and_margins(PAIRS)["reference"] == before


def test_a_parent_in_another_form_is_refused(sft, tiny_folder, tmp_path):
    context = context_of(tmp_path, tiny_folder, "none", sft.artefact)
    with pytest.raises(TrivetError, match=r"sft was stored as a full adapter, but model\.adapter asks for model"):
        load_policy(context, sft.artefact, precision="fp32", dropout=False)


# Hand-over of the adapter


def test_the_round_trip_is_exact(sft, tiny_folder):
    """Saved and attached to a fresh base: bitwise the same weights and logits, trainable, and one adapter only."""
    base = fresh(tiny_folder)
    plain = logits(base).clone()
    model = adapters.attach_trained(base, sft.artefact.weights)
    assert torch.equal(logits(model), sft.logits)
    assert not torch.allclose(logits(model), plain, atol=1e-2)
    found = parameters(model, adapters.TRAINED)
    assert found.keys() == sft.weights.keys()
    assert all(torch.equal(found[name], value) for name, value in sft.weights.items())
    assert {name for name, value in model.named_parameters() if value.requires_grad} == set(found)


def test_dpo_seals_its_own_adapter_and_not_the_reference(sft, dpo, tiny_folder, tmp_path):
    dpo.trainer.train()
    trained = logits(dpo.model)
    save_policy(dpo.policy, dpo.context)
    folder = dpo.context.folder / "adapter"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []
    assert not any(REFERENCE in name for name in load_file(folder / "adapter_model.safetensors"))
    again = adapters.attach_trained(fresh(tiny_folder), folder)
    assert torch.equal(logits(again), trained)
    assert not torch.equal(trained, sft.logits)


def test_several_policies_on_one_base(sft, dpo, tiny_folder):
    """As evaluation holds them: each by name, and the base bitwise itself when none is active."""
    dpo.trainer.train()
    after = scores(dpo.model)
    save_policy(dpo.policy, dpo.context)
    base = fresh(tiny_folder).eval()
    plain = logits(base).clone()
    model = adapters.attach_frozen(base, sft.artefact.weights, "stage_sft")
    model = adapters.attach_frozen(model, dpo.context.folder / "adapter", "stage_dpo").eval()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for _ in range(2):
        with adapters.active(model, "stage_sft"):
            assert scores(model) == sft.scores
        with adapters.active(model, "stage_dpo"):
            assert scores(model) == after
        with adapters.active(model, None):
            assert torch.equal(logits(model), plain)
    assert not any(parameter.requires_grad for parameter in model.parameters()), "switching must not unfreeze"
    assert scores(fresh(tiny_folder).eval()) == sft.of_base


def test_a_fresh_adapter_changes_nothing(tiny_folder):
    base = fresh(tiny_folder)
    plain = logits(base).clone()
    model = adapters.attach_new(base, AdapterSettings(), dropout=True)
    assert torch.equal(logits(model), plain)
    _, trainable = model.get_nb_trainable_parameters()
    assert trainable > 0


def test_the_configuration_names_the_base_as_the_recipe_does(sft, tiny_folder):
    """Not the folder where this machine keeps it, and the same bytes whatever order a set came in."""
    text = (sft.artefact.weights / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["base_model_name_or_path"] == BASE
    assert str(tiny_folder) not in text
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(config["target_modules"])
    assert not (sft.artefact.weights / "README.md").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(tiny_folder, tmp_path, value):
    model = adapters.attach_new(fresh(tiny_folder), AdapterSettings(r=4), dropout=False)
    adapters.save(model, tmp_path / "sound", BASE)
    name, parameter = next((n, p) for n, p in model.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        parameter[-1, -1] = value
    with pytest.raises(TrivetError, match=r"tensor \S+lora_B\S* holds values that are not finite"):
        adapters.save(model, tmp_path / "broken", BASE)
    assert "lora_B" in name


def test_empty_weights_are_refused(tmp_path):
    """How a sharded adapter gets lost: a tensor of no elements, or a file of no tensors."""
    save_file({"a": torch.ones(2), "b": torch.empty(0, 4)}, tmp_path / "one.safetensors")
    with pytest.raises(TrivetError, match="tensor b was saved empty"):
        adapters.require_sound(tmp_path / "one.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(TrivetError, match="without a single tensor"):
        adapters.require_sound(tmp_path / "none.safetensors")
    save_file({"a": torch.ones(2), "c": torch.ones(1, dtype=torch.bfloat16)}, tmp_path / "sound.safetensors")
    adapters.require_sound(tmp_path / "sound.safetensors")


def test_unknown_target_modules_are_a_sentence(tiny_model):
    with pytest.raises(TrivetError, match=r"model\.adapter\.target_modules"):
        adapters.attach_new(tiny_model, AdapterSettings(target_modules=("no_such_layer",)), dropout=False)


def test_policy_is_what_the_stages_expect(tiny_folder, tmp_path):
    policy = load_policy(context_of(tmp_path, tiny_folder, {"r": 4}), None, precision="fp32", dropout=False)
    assert isinstance(policy, Policy) and policy.form == "adapter"
    assert policy.description.stop_ids == (2,)
