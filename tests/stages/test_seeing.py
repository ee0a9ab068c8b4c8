"""Models that read images beside text: SFT and DPO on rows of text train their language part, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from data_prep.build import encode_demonstrations
from data_prep.chat import ChatFormatter
from evaluation.likelihood import Scorer, demonstration_rows, mean_loss
from evaluation.policies import Policies
from pipeline.errors import RecipeError, TrivetError
from pipeline.models import adapters
from pipeline.models.load import describe_tokenizer, load_base, load_tokenizer
from pipeline.models.seeing import keep_to_text, language_part, reads_images
from pipeline.models.source import identify
from pipeline.preflight import check_base
from pipeline.recipe.schema import AdapterSettings, ModelSettings, Recipe
from pipeline.rollouts.answers import Sampling
from pipeline.rollouts.generate import Generator
from pipeline.runtime import Ranks
from pipeline.stages import dpo, policy, sft
from tests.models.architectures import written
from tests.stages.one_stage import run_stage

pytestmark = pytest.mark.slow
SEEING = {
    "qwen2_vl": "model.language_model", "qwen2_5_vl": "model.language_model", "smolvlm": "model.text_model",
    "llava": "model.language_model",
}  # fmt: skip
"""Where each keeps its language part; docs/models.md has the same names."""
LORA = {"r": 4, "alpha": 8}
ALONE = Ranks(0, 0, 1)
WORDS = [[1, *range(40, 52)], [1, *range(90, 95)]]
"""Prompts of two lengths, so that one of them is padded."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_folder) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("seeing")

    def folder(name: str) -> Path:
        return root / name if (root / name).is_dir() else written(root / name, name, tiny_folder)

    return folder


def loaded(folder: Path, **more: Any) -> Any:
    return load_base(folder, ModelSettings(base="x"), frozen=True, precision="fp32", **more)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of a fixed row (T, V)."""
    found: torch.Tensor = model(input_ids=torch.tensor(WORDS[:1])).logits[0]
    return found


def handed_on(place: Path, base: Path, stage: str) -> Any:
    """As much of a sealed policy as the next stage and the evaluation look at."""
    manifest = SimpleNamespace(
        form="adapter", kind="policy", stage=stage, base=identify(str(base), None), metrics={},
        tokenizer=describe_tokenizer(load_tokenizer(base, "auto")),
    )  # fmt: skip
    return SimpleNamespace(path=place / "stage", weights=place / "stage" / "adapter", manifest=manifest)


@pytest.fixture
def seen(monkeypatch) -> dict[str, torch.Tensor]:
    """What the policies of the stages say as they begin and as they are saved."""
    found: dict[str, torch.Tensor] = {}
    for module in (sft, dpo):
        stage = module.__name__.rpartition(".")[2]

        def load(*args: Any, stage: str = stage, **more: Any) -> Any:
            given = policy.load_policy(*args, **more)
            found[f"{stage} begins"] = logits(given.model.eval())
            return given

        def save(given: Any, context: Any, stage: str = stage) -> None:
            found[f"{stage} ends"] = logits(given.model.eval())
            policy.save_policy(given, context)

        monkeypatch.setattr(module, "load_policy", load)
        monkeypatch.setattr(module, "save_policy", save)
    return found


@pytest.mark.parametrize("name", SEEING)
def test_sft_and_dpo_learn_and_hand_on_what_they_trained(tmp_path, folders, seen, name):
    base = folders(name)
    imitating = run_stage(tmp_path / "sft", "sft", base, LORA, global_batch_size=8)
    assert imitating["metrics"]["engine"] == "trl" and "reads images beside text" in imitating["said"]
    assert imitating["loss"][-1] < imitating["loss"][0]
    assert imitating["loss"][0] == pytest.approx(loss_of_all_rows(tmp_path / "sft", base), abs=1e-5)

    first = handed_on(tmp_path / "sft", base, "sft")
    preferring = run_stage(tmp_path / "dpo", "dpo", base, LORA, {"policy": first})
    assert preferring["loss"][0] == pytest.approx(math.log(2), abs=1e-4) and min(preferring["loss"]) < 0.69
    assert preferring["metrics"]["engine"] == "trl"
    for found in (imitating, preferring):
        assert all(f".{SEEING[name]}.layers." in path for path in found["weights"])
        assert all(tensor.abs().max() > 0 for tensor in found["weights"].values())

    assert torch.equal(seen["sft ends"], seen["dpo begins"])
    artefacts = {"sft": first, "dpo": handed_on(tmp_path / "dpo", base, "dpo")}
    policies = Policies(artefacts, base, ModelSettings(base="x"), "fp32")
    said = {}
    for each in policies.names:
        with policies.use(each) as model:
            said[each] = logits(model)
            require_own_answers(model)
    torch.testing.assert_close(said["sft"], seen["sft ends"], rtol=0, atol=1e-6)
    torch.testing.assert_close(said["dpo"], seen["dpo ends"], rtol=0, atol=1e-6)
    assert torch.equal(said["base"], logits(AutoModelForImageTextToText.from_pretrained(base).eval()))
    assert (said["dpo"] - said["sft"]).abs().max() > 1e-3 < (said["sft"] - said["base"]).abs().max()


def loss_of_all_rows(place: Path, base: Path) -> float:
    """What the first step of a stage whose batch is its whole training set is computed on, as evaluation counts it."""
    data = Recipe.model_validate({
        "name": "x", "data": {"sft": {"sources": [{"path": str(place / "rows.jsonl")}]}},
        "stages": {"sft": {"kind": "sft"}},
    }).data  # fmt: skip
    train, _, _ = encode_demonstrations(data, ChatFormatter(load_tokenizer(base, "auto")), 17)
    assert len(train.rows) == 8
    return mean_loss(Scorer(loaded(base), 0, 4, "fp32", ALONE).score(demonstration_rows(train.rows)))


def require_own_answers(model: Any) -> None:
    """That answers generated together, behind padding, are those of each prompt alone, read anew for every token."""
    answers = Generator(model, 0, (2,), 2, "fp32", ALONE).answers(WORDS, Sampling(max_new_tokens=5))
    for prompt, answer in zip(WORDS, answers, strict=True):
        ids = [*prompt]
        for token in answer.ids:
            with torch.no_grad():
                assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_full_fine_tuning_leaves_alone_what_sees(tmp_path, folders):
    base = folders("qwen2_vl")
    found = run_stage(tmp_path / "sft", "sft", base, "none", learning_rate=1e-3)
    before = AutoModelForImageTextToText.from_pretrained(base).state_dict()
    after = loaded(base, weights=tmp_path / "sft" / "stage" / "model").state_dict()
    assert found["loss"][-1] < found["loss"][0] and before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    ours = {name for name in before if name.startswith(("model.language_model.layers.", "lm_head."))}
    assert ours and ours <= moved and not [name for name in moved if ".visual." in name]


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 14), ({"layers": "top-1"}, 7), ({"target_modules": ("q_proj", "v_proj")}, 4), ({"layers": (0,)}, 7)],
)
def test_an_adapter_goes_to_the_language_part_alone(folders, settings, count):
    """The vision tower of this family has modules called q_proj and v_proj as well, and as many layers."""
    model = loaded(folders("smolvlm"))
    assert [name for name, _ in model.named_modules() if "vision_model" in name and name.endswith(".q_proj")]
    wrapped = adapters.attach_new(model, AdapterSettings(r=4, **settings), dropout=False)
    found = sorted(name for name, _ in wrapped.named_parameters() if "lora_A" in name)
    layer = {"top-1": "layers.1.", (0,): "layers.0."}.get(settings.get("layers"), "layers.")
    assert len(found) == count and all(f".model.text_model.{layer}" in name for name in found)


def test_modules_that_the_language_part_lacks_are_named(folders):
    """This family's vision tower does have them."""
    with pytest.raises(TrivetError, match=r"model\.adapter\.target_modules: .*qkv"):
        adapters.attach_new(loaded(folders("qwen2_vl")), AdapterSettings(r=4, target_modules=("qkv",)), dropout=False)


@pytest.mark.parametrize("kind", ["reward", "ppo"])
def test_the_other_stages_are_refused_before_any_is_run(tmp_path, folders, kind):
    recipe: Any = SimpleNamespace(stages={each: SimpleNamespace(kind=each) for each in ("sft", "dpo", kind)})
    said = rf"stage {kind}: the base model in .* reads images \(type llava\), .* sft and dpo with it, or name a text"
    with pytest.raises(TrivetError, match=said):
        check_base(recipe, ["sft", "dpo", kind, "evaluation"], folders("llava"))
    with pytest.raises(TrivetError, match=said):
        run_stage(tmp_path / kind, kind, folders("llava"), LORA)
    check_base(recipe, ["sft", "dpo", "evaluation"], folders("llava"))
    check_base(recipe, ["sft", "dpo", kind, "evaluation"], folders("llama"))


def test_streams_cannot_be_asked_for(tmp_path, folders):
    with pytest.raises(RecipeError, match=r"stages\.sft\.engine: streams are not possible here: .*reads images"):
        run_stage(tmp_path / "sft", "sft", folders("llava"), LORA, engine="streams")


def test_a_model_that_looks_ahead_is_refused(folders):
    """Control: the others are not."""
    said = r"model\.base: .*of type paligemma, which reads images, and cannot .*changes with the text behind it"
    with pytest.raises(TrivetError, match=said):
        loaded(folders("paligemma"))


def test_a_model_that_padding_changes_is_refused(folders):
    model = loaded(folders("qwen2_vl"))
    keep_to_text(model, Path("x"))
    plain = model.model.forward
    model.model.forward = lambda attention_mask=None, **more: plain(**more)
    with pytest.raises(TrivetError, match=r"of type qwen2_vl, .* padding changes what it gives"):
        keep_to_text(model, Path("x"))


def test_a_text_model_is_none_that_sees(folders):
    text = loaded(folders("llama"))
    assert not reads_images(text) and reads_images(loaded(folders("llava")))
    with pytest.raises(TrivetError, match="keeps no language part apart"):
        language_part(text)
