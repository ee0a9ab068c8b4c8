"""A reward model's way through files: it starts from the SFT policy, is saved with its head, and read back in full."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CodeGenConfig, CodeGenForCausalLM

from pipeline.batches import pad_left, pad_right, positions
from pipeline.errors import TrivetError
from pipeline.models import adapters
from pipeline.models.forward import causal_model, hidden_states, trunk_of
from pipeline.models.heads import new_head, sequence_scores, with_head
from pipeline.models.load import load_base, load_classifier
from pipeline.models.reward_model import (
    HEAD_KEY,
    MemberScale,
    RewardSpec,
    adapter_state,
    combine,
    head_of,
    member_folders,
    normalise,
    read_spec,
)
from pipeline.recipe.schema import AdapterSettings, ModelSettings

BASE = "builtin:tiny-llama"
SETTINGS = ModelSettings(base=BASE)
PAIRS = [([1, 40 + n, 50, 2], [1, 40 + n, *range(60, 63 + n), 2]) for n in range(8)]
"""Eight pairs of whole sequences, each ending with the end of turn."""
ROWS = [row for pair in PAIRS for row in pair]


def base(folder: Path, precision: str = "fp32") -> Any:
    return load_base(folder, SETTINGS, frozen=True, precision=precision)


def classifier(folder: Path, precision: str = "fp32", seed: int = 0) -> Any:
    model: Any = load_classifier(folder, SETTINGS, frozen=True, precision=precision)
    return with_head(model, new_head(model.score.in_features, seed))


def stir(model: Any, seed: int = 0) -> None:
    """Give an adapter weights that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def hidden(model: Any) -> torch.Tensor:
    ids, mask = pad_right(ROWS, 0)
    return hidden_states(trunk_of(model.eval()), ids, mask, positions(mask))


@torch.no_grad()
def scores(model: Any, head: Any) -> list[float]:
    return sequence_scores(model.eval(), head, *pad_left(ROWS, 0)).tolist()


@pytest.fixture(params=["lora", "dora"])
def sft(request, tiny_folder, tmp_path) -> Any:
    """An SFT policy's adapter on disk, and the policy itself."""
    torch.manual_seed(0)
    settings = AdapterSettings(r=4, type=request.param)
    policy = adapters.attach_new(base(tiny_folder), settings, dropout=False)
    stir(policy)
    adapters.save(policy, tmp_path / "sft", BASE)
    return SimpleNamespace(model=policy, folder=tmp_path / "sft", settings=settings)


@pytest.fixture
def trained(sft, tiny_folder, tmp_path) -> Any:
    """A reward model that started from it and has moved, saved under a base that PEFT can find by itself."""
    model = adapters.attach_for_scores(classifier(tiny_folder), sft.settings, sft.folder)
    stir(model, seed=1)
    with torch.no_grad():
        causal_model(model).score.modules_to_save.default.weight.add_(0.05)
    adapters.save(model, tmp_path / "adapter", str(tiny_folder))
    head = causal_model(model).score
    return SimpleNamespace(model=model, folder=tmp_path / "adapter", scores=scores(model, head), hidden=hidden(model))


# Where it starts


def test_it_starts_from_the_sft_policy(sft, tiny_folder):
    """Hidden states equal the SFT policy's bit for bit. Control: the base's differ."""
    model = adapters.attach_for_scores(classifier(tiny_folder), sft.settings, sft.folder)
    assert torch.equal(hidden(model), hidden(sft.model))
    assert not torch.allclose(hidden(model), hidden(base(tiny_folder)), atol=1e-2)


def test_without_a_policy_it_starts_from_the_base(tiny_folder):
    model = adapters.attach_for_scores(classifier(tiny_folder), AdapterSettings(r=4), None)
    assert torch.equal(hidden(model), hidden(base(tiny_folder)))


def test_what_is_trained(sft, tiny_folder):
    """The adapter and the head, both float32; the head is no LoRA layer, is the seed's, and leaves the policy alone."""
    model = adapters.attach_for_scores(classifier(tiny_folder, seed=7), sft.settings, sft.folder)
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    heads = [name for name in trainable if "score" in name]
    assert heads == ["base_model.model.score.modules_to_save.default.weight"]
    assert torch.equal(trainable[heads[0]], new_head(48, 7).weight)
    assert all("lora_" in name for name in trainable if name not in heads)
    assert not any("lora_" in name for name, _ in model.named_parameters() if "score" in name)
    assert {value.dtype for value in trainable.values()} == {torch.float32}
    assert len(trainable) - 1 == sum(value.requires_grad for value in sft.model.parameters())


def test_the_head_stays_in_float32_on_a_bfloat16_base(sft, tiny_folder, tmp_path):
    """In memory, in its score, in its gradient and in the file."""
    model = adapters.attach_for_scores(classifier(tiny_folder, "bf16"), sft.settings, sft.folder)
    assert next(trunk_of(model).parameters()).dtype == torch.bfloat16
    ids, mask = pad_right(ROWS[:4], 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
    logits.sum().backward()
    head = causal_model(model).score.modules_to_save.default.weight
    assert head.dtype == head.grad.dtype == torch.float32
    adapters.save(model, tmp_path / "rm", BASE)
    assert load_file(tmp_path / "rm" / "adapter_model.safetensors")[HEAD_KEY].dtype == torch.float32


def test_an_adapter_that_does_not_fit_is_refused(sft, tiny_folder, tmp_path):
    """Of another size, or on a layer that the reward model lacks, or with a tensor missing."""
    tensors = adapter_state(sft.folder)
    config = (sft.folder / "adapter_config.json").read_text()
    name = next(name for name in tensors if "lora_A" in name)
    (tmp_path / "less").mkdir()
    (tmp_path / "less" / "adapter_config.json").write_text(config)
    save_file(
        {key: value for key, value in tensors.items() if key != name}, tmp_path / "less/adapter_model.safetensors"
    )
    with pytest.raises(TrivetError, match=r"does not fit on LlamaForSequenceClassification: it lacks \S+lora_A"):
        adapters.attach_for_scores(classifier(tiny_folder), sft.settings, tmp_path / "less")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "adapter_config.json").write_text(config)
    extra = {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 48)}
    save_file({**tensors, **extra}, tmp_path / "more" / "adapter_model.safetensors")
    with pytest.raises(TrivetError, match=r"it has \S*lm_head\S*, which the model has no place for"):
        adapters.attach_for_scores(classifier(tiny_folder), sft.settings, tmp_path / "more")


def test_an_architecture_without_a_classifier_is_a_sentence(tmp_path):
    config = CodeGenConfig(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, rotary_dim=4)
    CodeGenForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(TrivetError, match=r"model\.base: no reward model can be made of .*; use dpo"):
        load_classifier(tmp_path, SETTINGS, frozen=True, precision="fp32")


def test_weights_that_lack_a_layer_are_refused(tiny_folder, tmp_path):
    """transformers would go on with random ones."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(TrivetError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight of LlamaForSequence"):
        load_classifier(tiny_folder, SETTINGS, frozen=True, precision="fp32", weights=tmp_path)


# The way back


def test_the_file_holds_the_head(trained):
    found = load_file(trained.folder / "adapter_model.safetensors")
    assert torch.equal(found[HEAD_KEY], causal_model(trained.model).score.modules_to_save.default.weight)
    assert torch.equal(head_of(trained.folder).weight, found[HEAD_KEY])
    assert head_of(trained.folder).weight.requires_grad
    assert adapter_state(trained.folder).keys() == found.keys() - {HEAD_KEY}


def test_peft_by_itself_gives_the_same_scores(trained):
    """`AutoPeftModelForSequenceClassification` on eight pairs, to 1e-5: the artefact is an ordinary PEFT adapter."""
    model = AutoPeftModelForSequenceClassification.from_pretrained(trained.folder, num_labels=1).eval()
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([row])).logits.item() for row in ROWS]
    assert found == pytest.approx(trained.scores, abs=1e-5)


def test_on_a_causal_base_the_hidden_states_are_the_same(trained, sft, tiny_folder):
    """Bit for bit, beside another adapter or alone; with the head read from the file the scores are too, to 1e-5."""
    beside = adapters.attach_reward(sft.model, trained.folder, "judge")
    on_bare = adapters.attach_reward(base(tiny_folder), trained.folder, "judge")
    for model in (beside, on_bare):
        with adapters.active(model, "judge"):
            assert torch.equal(hidden(model), trained.hidden)
            assert scores(model, head_of(trained.folder)) == pytest.approx(trained.scores, abs=1e-5)
    with adapters.active(beside, "default"):
        assert not torch.allclose(hidden(beside), trained.hidden, atol=1e-2)


def test_attaching_changes_nothing_else(trained, sft):
    """The policy's adapter stays active and trainable, bit for bit itself; the reward model's is frozen."""
    before, policy = hidden(sft.model), copy.deepcopy(sft.model.state_dict())
    model = adapters.attach_reward(sft.model, trained.folder, "judge")
    assert model is sft.model and model.active_adapter == adapters.TRAINED
    assert torch.equal(hidden(model), before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in policy.items())
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    assert names and not any(".judge." in name for name in names)
    assert not any("score" in name for name, _ in model.named_parameters())


# The sealed scale


def artefact_of(folder: Path, kind: str = "reward_model", form: str = "adapter") -> Any:
    return SimpleNamespace(path=folder, manifest=SimpleNamespace(kind=kind, form=form, stage="judge"))


SPEC = RewardSpec(
    offset=2.0, scale=4.0, members=(MemberScale(offset=2.0, scale=4.0),), aggregate="mean", variance_weight=0.1, n=9,
    source="data.sft, demonstrations",
)  # fmt: skip


def test_the_scale_is_read_back(trained, tmp_path):
    (tmp_path / "reward_model.json").write_text(SPEC.model_dump_json())
    artefact = artefact_of(tmp_path)
    assert read_spec(artefact) == SPEC
    assert member_folders(artefact) == [trained.folder]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "reward_model.json").unlink(), "is missing, so scores of judge have no known scale"),
        (lambda folder: (folder / "reward_model.json").write_text("{}"), r"cannot be read .*--force judge"),
        (lambda folder: edit(folder, scale=0.0), "cannot be read"),
        (lambda folder: edit(folder, offset="NaN"), "cannot be read"),
        (lambda folder: edit(folder, members=[{"offset": 0, "scale": 1}] * 2), "speaks of 2 members, judge has 1"),
        (lambda folder: drop_head(folder), r"adapter holds no reward head \(base_model\.model\.score\.weight or"),
        (lambda folder: widen_head(folder), r"holds a head of shape \(2, 48\); a reward model's has one output"),
    ],
)
def test_a_reward_model_that_is_not_whole_is_a_sentence(trained, tmp_path, change, message):
    (tmp_path / "reward_model.json").write_text(SPEC.model_dump_json())
    change(tmp_path)
    with pytest.raises(TrivetError, match=message):
        read_spec(artefact_of(tmp_path))


def test_a_policy_is_no_reward_model(tmp_path):
    with pytest.raises(TrivetError, match="judge left a policy, not a reward model; name a stage of kind reward"):
        read_spec(artefact_of(tmp_path, kind="policy"))


def edit(folder: Path, **values: Any) -> None:
    path = folder / "reward_model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_head(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name != HEAD_KEY}, path)


def widen_head(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), HEAD_KEY: torch.ones(2, 48)}, path)


def test_one_members_score_is_its_own_by_hand():
    """(10 - 2) / 4 = 2 and (2 - 2) / 4 = 0."""
    raw = torch.tensor([[10.0, 2.0]])
    assert combine(raw, SPEC).tolist() == [10.0, 2.0]
    assert normalise(raw, SPEC).tolist() == [2.0, 0.0]


@pytest.mark.parametrize(("how", "expected"), [("mean", 0.5), ("min", -1.0), ("mean_minus_variance", 0.5 - 0.1 * 2.25)])
def test_members_are_centred_before_they_are_combined_by_hand(how, expected):
    """12 is (12 - 10) / 1 = 2 to the first and 100 is (100 - 150) / 50 = -1 to the second: variance 2.25."""
    two = (MemberScale(offset=10.0, scale=1.0), MemberScale(offset=150.0, scale=50.0))
    spec = SPEC.model_copy(update={"members": two, "aggregate": how, "offset": 0.0, "scale": 2.0})
    raw = torch.tensor([[12.0], [100.0]])
    assert combine(raw, spec).tolist() == pytest.approx([expected])
    assert normalise(raw, spec).tolist() == pytest.approx([expected / 2])
    with pytest.raises(ValueError, match="scores of 1 members, expected 2"):
        combine(raw[:1], spec)
