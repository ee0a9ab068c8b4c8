"""What must hold between fields: each check has a recipe that it refuses and one next to it that passes."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe import (
    LoadedRecipe,
    check_batches,
    ds_config_file,
    loads_recipe,
    policy_of,
    prompts_from,
    reference_of,
    used_data,
)
from pipeline.recipe import checks as checks_module
from pipeline.recipe.foreign import DECIDED, DPO_KEYS, KIND_KEYS, REWARD_KEYS, RUN_KEYS, STAGE_KEYS
from pipeline.recipe.lineage import BASE
from pipeline.recipe.stage_settings import DPO_LOSSES, STAGE_KINDS, OfflineSettings
from pipeline.recipe.vocabulary import schema_keys

TEXT = """\
name: demo
model: {base: some/model}
data:
  sft: {sources: [{path: a}, {path: b}]}
  preference: {sources: [{path: p}]}
stages:
  sft: {epochs: 2, max_steps: 5}
  dpo: {beta: 0.1}
  second: {kind: dpo, policy: dpo}
"""
WEIGHTS = ["data.sft.sources.0.weight=1", "data.sft.sources.1.weight=2.5"]


def load(*overrides: str) -> LoadedRecipe:
    return loads_recipe(TEXT, "r.yaml", overrides)


def refused(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["data.sft=null"], ["r.yaml:7: stages.sft: an sft stage trains on data.sft, which is absent"]),
        (["stages.dpo.policy=stf"], ["stages.dpo.policy=stf: ", "no stage 'stf'", "mean 'sft'", "(can be: sft, base)"]),
        (["stages.dpo.policy=second"], ["'second' runs later; move it up", "(can be: sft, base)"]),
        (["stages.dpo.policy=dpo"], ["cannot start from itself"]),
        (["stages.sft.init=dpo"], ["stages.sft.init=dpo: ", "runs later", "(can be: base)"]),
        (["stages.base={kind: sft}"], ["stages.base=...: a stage cannot be named 'base': that is the base model"]),
        (["stages.logs={kind: sft}"], ["stages.logs=...: a stage cannot be named 'logs'"]),
        (["evaluation.best_of_n=[2]"], ["evaluation.best_of_n=...: there is nothing to choose the best by", "reward"]),
        (
            ["evaluation.best_of_n=[2]", "stages.reward={}", "evaluation.tasks=[kl]"],
            ["evaluation.best_of_n=...: ", "keep score in evaluation.tasks"],
        ),
        (
            ["evaluation.judge={url: 'http://a', model: m}", "evaluation.tasks=[]"],
            ["evaluation.judge=...: evaluation.tasks is empty"],
        ),
        (
            ["evaluation.policies=[base, dpp]"],
            ["evaluation.policies=...: evaluation.policies.1: 'dpp' is no policy of this recipe; did you mean 'dpo'?"],
        ),
        (["stages.sft.kind=dpo"], ["stages.sft.kind=dpo: ", "a stage named 'sft' is of that kind"]),
        (["model.adapter=none", "model.quantization=nf4"], ["model.quantization=nf4: ", "(nf4) cannot be trained"]),
        (["model.adapter.target_modules=[q_proj, lm_head]"], ["the output head (lm_head) cannot carry an adapter"]),
        (["model.base=builtin:x", "model.revision=main"], ["model.revision=main: builtin:x has no revisions"]),
        (["model.base=''"], ["model.base='': is empty"]),
        (["data.sft.sources.0={path: builtin:x, revision: a}"], ["sources.0.revision: builtin:x has no revisions"]),
        (["data.sft.sources.0.path=' '"], ["path=' ': is empty; expected a file"]),
        (["data.prompts.from=sft", "data.sft=null", "stages={dpo: null}"], ["there is no data.sft", "preference"]),
        (WEIGHTS[:1], ["r.yaml:4: data.sft.sources.1: has no weight although source 0 has one; write all"]),
        (["data.chat_template=chatlm"], ["found 'chatlm'; did you mean 'chatml'?"]),
        (["data.chat_template=missing.jinja"], ["a .jinja file that exists, found 'missing.jinja'"]),
        (["stages.dpo.loss_type=exo_pair"], ["loss_type=exo_pair: exo_pair needs label_smoothing above 0"]),
        (["stages.dpo.rpo_alpha=2"], ["rpo_alpha=2: loss_type sigmoid ignores it; write loss_type: rpo"]),
        (["stages.dpo.deepspeed=zero9"], ["deepspeed=zero9: expected one of inherit, none", "found 'zero9'"]),
        (["stages.dpo.deepspeed=inherti"], ["did you mean 'inherit'?"]),
        (["stages.dpo.deepspeed=missing.json"], ["a .json file that exists, found 'missing.json'"]),
        (["stages.dpo.deepspeed=../outside"], ["found '../outside'"]),
    ],
)
def test_a_contradiction_is_placed_and_explained(overrides, fragments):
    message = refused(*overrides)
    assert len(message.splitlines()) == 1, message
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["stages.dpo.policy=base"],
        ["stages.dpo.policy=sft"],
        ["stages.more={kind: sft, init: second}"],
        ["model.quantization=nf4"],
        ["model.adapter=none"],
        ["model.revision=main"],
        WEIGHTS,
        ["data.prompts.from=sft"],
        ["data.chat_template=chatml"],
        ["stages.dpo.loss_type=exo_pair", "stages.dpo.label_smoothing=1e-3"],
        ["stages.dpo.loss_type=rpo", "stages.dpo.rpo_alpha=2"],
        ["stages.dpo.rpo_alpha=1"],
        ["stages.dpo.deepspeed=none"],
        ["stages.dpo.trainer_args={optim: sgd, adam_beta2: 0.95, f_divergence_type: js_divergence}"],
    ],
)
def test_what_is_next_to_a_contradiction_passes(overrides):
    load(*overrides)


def test_every_stage_without_data_is_named():
    lines = refused("data.preference=null").splitlines()
    assert [line.split(" trains on ")[0] for line in lines] == [
        "r.yaml:8: stages.dpo: a dpo stage", "r.yaml:9: stages.second: a dpo stage",
    ]  # fmt: skip


def test_all_contradictions_are_reported_at_once():
    message = refused("stages.dpo.policy=x", "model.adapter=none", "model.quantization=int8", "data.prompts.from=null")
    assert [line.split("=")[0] for line in message.splitlines()] == [
        "--set stages.dpo.policy",
        "--set model.quantization",
    ]


@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_label_smoothing_only_where_the_loss_reads_it(loss):
    overrides = [f"stages.dpo.loss_type={loss}", "stages.dpo.label_smoothing=0.1"]
    if loss in ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"):
        load(*overrides)
    else:
        assert f"label_smoothing=0.1: loss_type {loss} ignores it" in refused(*overrides)


@pytest.mark.parametrize("name", [*STAGE_KEYS, *RUN_KEYS, *DECIDED, *DPO_KEYS])
def test_trainer_args_do_not_say_what_the_recipe_says(name):
    message = refused(f"stages.dpo.trainer_args.{name}=1")
    assert message.startswith(f"--set stages.dpo.trainer_args.{name}=")
    own = STAGE_KEYS.get(name) or DPO_KEYS.get(name) or RUN_KEYS.get(name)
    assert (f"`{own}`".replace("<name>", "preference") if own else DECIDED[name]) in message


@pytest.mark.parametrize("name", [*STAGE_KEYS, *RUN_KEYS, *DECIDED, *REWARD_KEYS])
def test_trainer_args_of_a_reward_stage_neither(name):
    message = refused("stages.reward=", f"stages.reward.trainer_args.{name}=1")
    own = STAGE_KEYS.get(name) or REWARD_KEYS.get(name) or RUN_KEYS.get(name)
    assert (f"`{own}`".replace("<name>", "preference") if own else DECIDED[name]) in message


def test_the_keys_offered_instead_exist():
    paths = {key.path for key in schema_keys()}
    for kind, block in STAGE_KINDS.items():
        if issubclass(block, OfflineSettings):
            assert {f"stages.{kind}.{own}" for own in STAGE_KEYS.values()} <= paths
    for kind in ("dpo", "reward"):
        assert {f"stages.{kind}.{own}" for own in KIND_KEYS[kind].values()} <= paths
    assert {own.replace("<name>", "sft") for own in RUN_KEYS.values()} <= paths


@pytest.mark.parametrize(("kind", "config"), [("dpo", "DPOConfig"), ("reward", "RewardConfig")])
def test_what_a_recipe_says_of_a_library_is_so(kind, config):
    """A field that the library has dropped or renamed needs no line; rpo_alpha was DPOConfig's own for years."""
    import trl

    fields = {field.name for field in dataclasses.fields(getattr(trl, config))}
    assert set(KIND_KEYS[kind]) - fields <= {"rpo_alpha"}


def test_a_dpo_key_is_the_librarys_business_in_an_sft_stage():
    load("stages.sft.trainer_args.loss_type=dft")


def test_secrets_are_found_deep_in_trainer_args_and_tokenizer_tokens_are_none():
    message = refused("stages.sft.trainer_args={a: [{b_key: hunter2}], x_tokens: 3}")
    assert message.startswith("--set stages.sft.trainer_args=...: stages.sft.trainer_args.a.0.b_key: no secrets")
    assert "hunter2" not in message


def test_deepspeed_files(tmp_path, monkeypatch):
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text("{}")
    (tmp_path / "own.json").write_text("{}")
    (tmp_path / "own.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks_module, "DS_CONFIGS", tmp_path / "ds_configs")
    folder = tmp_path / "ds_configs"
    assert ds_config_file("zero2", folder) == ds_config_file("zero2.json", folder) == folder / "zero2.json"
    assert ds_config_file("own.json", folder).resolve() == tmp_path / "own.json"
    for value in ("inherit", "none", "zero3", "own.yaml", "", ".", "../ds_configs/zero2"):
        assert ds_config_file(value, folder) is None
    for value in ("zero2", "zero2.json", "own.json", str(tmp_path / "own.json")):
        assert load(f"stages.dpo.deepspeed={value}").recipe.stages["dpo"].deepspeed == value
    assert "one of inherit, none, zero2, or" in refused("stages.dpo.deepspeed=zero1")


def test_lineage_defaults():
    recipe = load("stages.third={kind: dpo}", "stages.more={kind: sft}", "stages.last={kind: dpo}").recipe
    starts = {name: policy_of(recipe, name) for name in recipe.stages}
    assert starts == {"sft": None, "dpo": "sft", "second": "dpo", "third": "sft", "more": None, "last": "more"}
    assert {name: reference_of(recipe, name) for name in recipe.stages} == starts
    data = [used_data(recipe, name) for name in recipe.stages]
    assert data == [("sft",), ("preference",), ("preference",), ("preference",), ("sft",), ("preference",)]


def test_lineage_from_the_base_model():
    recipe = load(f"stages.dpo.policy={BASE}").recipe
    assert policy_of(recipe, "dpo") is None
    alone = loads_recipe("name: d\ndata: {preference: {sources: [{path: p}]}}\nstages: {dpo: }\n").recipe
    assert policy_of(alone, "dpo") is None
    assert prompts_from(alone) == "preference"
    assert prompts_from(load("data.prompts.from=sft").recipe) == "sft"
    assert prompts_from(load("stages={sft: null}", "data.preference=null").recipe) == "sft"


def test_batches_divide_or_all_stages_that_do_not_are_named():
    loaded = load("stages.dpo.global_batch_size=24")
    assert check_batches(loaded.recipe, 1) == {"sft": 4, "dpo": 6, "second": 4}
    assert check_batches(loaded.recipe, 2) == {"sft": 2, "dpo": 3, "second": 2}
    with pytest.raises(RecipeError) as caught:
        check_batches(loaded.recipe, 3, loaded.places)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "r.yaml:7: stages.sft: global_batch_size 16 is not a multiple of per_device_batch_size 4 x 3"
    )
    assert lines[1].startswith("r.yaml:9: stages.second: ")
    with pytest.raises(RecipeError, match=r"^--set stages.dpo.global_batch_size=24: stages.dpo: .* 24 .* 4 x 16 "):
        check_batches(load("stages={dpo: {policy: base}}", "stages.dpo.global_batch_size=24").recipe, 16, loaded.places)


def test_processes_that_compute_rows_together_count_as_one():
    together = load("stages.sft.sequence_parallel_size=2")
    assert check_batches(together.recipe, 4) == {"sft": 2, "dpo": 1, "second": 1}
    with pytest.raises(RecipeError) as caught:
        check_batches(together.recipe, 1, together.places)
    assert str(caught.value) == (
        "--set stages.sft.sequence_parallel_size=2: stages.sft: sequence_parallel_size 2 needs a multiple of so many "
        "processes, and this launch has 1; start it with torchrun --nproc_per_node 2, or leave the key out"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stages.sft.packing=true", "nothing keeps packed rows apart"),
        ("stages.sft.engine=streams", "streams hold rows whole, and sequence_parallel_size cuts them up"),
        ("stages.sft.trainer_args.dataloader_drop_last=true", "rows that sequence_parallel_size cuts into pieces know"),
        (
            "stages.sft.trainer_args.neftune_noise_alpha=5",
            "rows that sequence_parallel_size cuts into pieces know no su",
        ),
    ],
)
def test_what_rows_in_pieces_cannot_be(change, said):
    with pytest.raises(RecipeError, match=said):
        load("stages.sft.sequence_parallel_size=2", change)


def test_best_of_n_and_a_judge_are_fine_where_they_have_what_they_need():
    loaded = load("evaluation.best_of_n=[2, 4]", "stages.reward={}", "evaluation.judge={url: 'http://a', model: m}")
    assert loaded.recipe.evaluation.best_of_n == (2, 4)
