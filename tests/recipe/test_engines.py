"""Which engine a stage has: what the recipe and the launch say, and every pair of them that is refused."""

from __future__ import annotations

import json

import pytest
import yaml

from pipeline.errors import RecipeError
from pipeline.recipe import check_engines, loads_recipe
from pipeline.recipe.checks import DS_CONFIGS
from pipeline.recipe.engines import Engine, launched_engine, stage_engine
from pipeline.recipe.fsdp_launch import resharding

TEXT = """\
name: demo
model: {base: some/model}
data:
  sft: {sources: [{path: a}]}
  preference: {sources: [{path: p}]}
stages:
  sft: {deepspeed: inherit}
  reward:
    deepspeed: inherit
  ppo: {deepspeed: none}
"""
FSDP = {"ACCELERATE_USE_FSDP": "true"}
FSDP2 = FSDP | {
    key.upper(): str(value).lower() if isinstance(value, bool) else str(value)
    for key, value in yaml.safe_load((DS_CONFIGS / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"].items()
}
"""What accelerate tells the processes of a launch with that file."""
ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
ZERO2_FILE = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(DS_CONFIGS / "zero2.json")}


def engines(environment, *overrides):
    loaded = loads_recipe(TEXT, "r.yaml", overrides)
    return check_engines(loaded.recipe, environment, loaded.places)


def refused(environment, *overrides):
    with pytest.raises(RecipeError) as caught:
        engines(environment, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("environment", "said", "spreads"),
    [
        ({}, "no engine", False),
        ({"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "false"}, "no engine", False),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed ZeRO-2", False),
        (ZERO3, "DeepSpeed ZeRO-3", True),
        (ZERO2_FILE, "DeepSpeed ZeRO-2", False),
        ({**ZERO3, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none"}, "DeepSpeed ZeRO-3", True),
        (
            {**ZERO3, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
            "DeepSpeed ZeRO-3 offloaded to the host's memory",
            True,
        ),
        (FSDP, "FSDP", True),
    ],
)
def test_what_the_launch_configured(environment, said, spreads):
    found = launched_engine(environment)
    assert str(found) == said and found.spreads_parameters == spreads
    assert stage_engine("inherit", environment) == found
    assert stage_engine("none", environment) == Engine("none")


def test_a_file_of_the_recipe_is_read_whatever_the_launch_says():
    for name, stage in (("zero1", 1), ("zero2", 2), ("zero3", 3)):
        assert stage_engine(name, {}) == Engine("deepspeed", stage, DS_CONFIGS / f"{name}.json")
    for place in ("cpu", "nvme"):
        file = DS_CONFIGS / f"zero3_offload_{place}.json"
        assert stage_engine(file.stem, {}) == Engine("deepspeed", 3, file, place)


def test_engines_that_keep_things_elsewhere_have_other_names(tmp_path):
    """A checkpoint bears the name of its engine, and another engine does not go on from it."""
    assert str(stage_engine("zero3_offload_cpu", {})) == "DeepSpeed ZeRO-3 offloaded to the host's memory"
    assert str(stage_engine("zero3_offload_nvme", {})) == "DeepSpeed ZeRO-3 offloaded to a disk"
    mixed = tmp_path / "mixed.json"
    mixed.write_text(
        json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}, "offload_param": None}})
    )
    assert stage_engine(str(mixed), {}).offloads_to == "nvme"
    mixed.write_text('{"zero_optimization": {"stage": 3, "offload_param": "cpu"}}')
    assert f"{mixed} cannot be read as a DeepSpeed configuration" in refused({}, f"stages.sft.deepspeed={mixed}")


@pytest.mark.parametrize("environment", [ZERO3, ZERO2_FILE])
def test_inherit_takes_the_launchs(environment):
    found = engines(environment)
    assert found["sft"] == found["reward"] == launched_engine(environment)
    assert found["ppo"] == Engine("none")


def test_each_stage_may_have_its_own():
    found = engines({}, "stages.sft.deepspeed=zero3", "stages.reward.deepspeed=zero1")
    assert [engine.zero_stage for engine in found.values()] == [3, 1, 0]


def test_a_clash_names_both_sides_and_the_place():
    text = refused(ZERO3, "stages.sft.deepspeed=zero2")
    assert text.startswith("--set stages.sft.deepspeed=zero2: the recipe names zero2 (DeepSpeed ZeRO-2), the launch ")
    assert "configures DeepSpeed ZeRO-3; write inherit" in text
    assert "r.yaml:" not in text, "the other stages inherit"
    assert "zero3 (DeepSpeed ZeRO-3), the launch configures FSDP" in refused(
        FSDP, "stages.sft.deepspeed=zero3", "stages.reward.deepspeed=none"
    )
    # The very same file is no clash; a stage that switches the launch's engine off is none either.
    engines(ZERO2_FILE, "stages.sft.deepspeed=zero2", "stages.reward.deepspeed=none")


LEFT_OUT = {**FSDP, "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_OFFLOAD_PARAMS": "false"}
"""A launch whose file says no more than that it is FSDP2: accelerate fills in the rest."""


def test_a_launch_with_our_file_for_fsdp_is_taken():
    found = engines(FSDP2)
    assert found["sft"] == found["reward"] == Engine("fsdp") and found["ppo"] == Engine("none")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fsdp_version", "1"),
        ("fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"),
        ("fsdp_state_dict_type", "SHARDED_STATE_DICT"),
        ("fsdp_cpu_ram_efficient_loading", "true"),
        ("fsdp_offload_params", "true"),
        ("fsdp_activation_checkpointing", "true"),
    ],
)
def test_what_fsdp_cannot_be_told_here(key, value):
    text = refused({**FSDP2, key.upper(): value}, "stages.reward.deepspeed=none")
    assert text.startswith(f"r.yaml:7: stages.sft.deepspeed: the launch configures FSDP with {key}: {value}, but ")
    assert f"write {key}: {FSDP2[key.upper()]}, as ds_configs/accelerate/fsdp2.yaml does" in text
    assert len(text.splitlines()) == 1


def test_what_accelerate_fills_in_is_refused_stage_by_stage_but_fsdp_can_be_switched_off():
    text = refused(LEFT_OUT)
    assert text.splitlines()[0].startswith("r.yaml:7: stages.sft.deepspeed: the launch configures FSDP with ")
    for key in ("fsdp_auto_wrap_policy", "fsdp_state_dict_type", "fsdp_cpu_ram_efficient_loading"):
        assert f"write {key}: " in text
    assert "r.yaml:9: stages.reward.deepspeed" in text and "ppo" not in text
    off = [f"stages.{name}.deepspeed=none" for name in ("sft", "reward", "ppo")]
    assert set(engines(LEFT_OUT, *off).values()) == {Engine("none")}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.quantization=nf4", "FSDP cannot spread a base in nf4 here"),
        ("stages.sft.precision=fp16", "fp16 scales gradients, which FSDP's shares of them"),
        ("stages.reward.ensemble=3", "FSDP serves one model per process, and ensemble: 3 trains several"),
    ],
)
def test_what_a_recipe_cannot_have_under_fsdp(override, said):
    assert said in refused(FSDP2, override)


@pytest.mark.parametrize("off", [(), ("stages.sft.deepspeed=none", "stages.reward.deepspeed=none")])
def test_a_launch_that_splits_sequences_is_not_passed_over(off):
    """Whatever the engine: accelerate reads it by itself."""
    sizes = {"PARALLELISM_CONFIG_CP_SIZE": "2", "PARALLELISM_CONFIG_TP_SIZE": "1"}
    asked = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", **sizes}
    assert "the launch configures accelerate's parallelism (cp_size: 2) for all stages" in refused(asked, *off)
    engines(sizes, *off)


def test_rows_in_pieces_need_deepspeed():
    """And gradients that it divides alike."""
    pieces = "stages.sft.sequence_parallel_size=2"
    assert "sequence_parallel_size: 2 takes DeepSpeed's Ulysses, and the stage has no engine; write" in refused(
        {}, pieces
    )
    assert "and the stage has FSDP; write `stages.sft.deepspeed: zero3` (or zero2)" in refused(FSDP2, pieces)
    for found in (engines({}, pieces, "stages.sft.deepspeed=zero3"), engines(ZERO3, pieces)):
        assert found["sft"].zero_stage == 3


def test_gradients_that_are_divided_by_two_numbers_are_refused(tmp_path):
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 3, "reduce_scatter": false}}')
    chosen = f"stages.sft.deepspeed={own}"
    engines({}, chosen)
    text = refused({}, chosen, "stages.sft.sequence_parallel_size=2")
    assert f"{own} sets reduce_scatter to false, under which DeepSpeed divides gradients" in text
    own.write_text('{"zero_optimization": {"stage": 2, "reduce_scatter": false}}')
    engines({}, chosen, "stages.sft.sequence_parallel_size=2")


def test_layers_are_given_back_unless_the_launch_says_otherwise():
    assert resharding({}) and resharding(FSDP2) and not resharding({"FSDP_RESHARD_AFTER_FORWARD": "False"})


OFF = ("stages.sft.deepspeed=none", "stages.reward.deepspeed=none")


@pytest.mark.parametrize("environment", [ZERO3, ZERO2_FILE])
def test_ppo_takes_an_engine_like_any_stage(environment):
    assert engines(environment, "stages.ppo.deepspeed=inherit")["ppo"] == launched_engine(environment)
    assert engines({}, "stages.ppo.deepspeed=zero3")["ppo"].spreads_parameters


def test_ppo_is_refused_under_fsdp_like_any_stage():
    text = refused(FSDP2, *OFF, "stages.ppo.deepspeed=inherit")
    assert "deepspeed=inherit: the launch configures FSDP, under which a ppo stage would have to train two" in text
    assert "zero3.yaml" in text and len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "said", "ways_out"),
    [
        (["stop_kl=0.1", "deepspeed=zero2"], "DeepSpeed ZeRO-2 holds gradients that stop_kl", ["stop_kl=null"]),
        (
            ["value_trunk=policy", "deepspeed=zero2"],
            "DeepSpeed ZeRO-2 steps the policy's layers and the value's head by engines of their own",
            ["value_trunk=own"],
        ),
        (
            ["value_trunk=policy", "deepspeed=zero3", "model.adapter=none"],
            "the value's head by engines",
            ["deepspeed=none"],
        ),
        (
            ["deepspeed=zero3", "model.adapter.type=dora"],
            "DoRA takes norms of the base's weights in every pass, and under DeepSpeed ZeRO-3 no rank has them",
            ["deepspeed=zero2"],
        ),
        (
            ["deepspeed=zero3_offload_nvme"],
            "no farther than to the host's memory, not under DeepSpeed ZeRO-3 offloaded to a disk; use zero3_offload_",
            ["deepspeed=zero3_offload_cpu"],
        ),
    ],
)
def test_what_ppo_cannot_have_under_an_engine(overrides, said, ways_out):
    def placed(each):
        return each if each.startswith("model") else f"stages.ppo.{each}"

    given = [placed(each) for each in overrides]
    assert said in refused({}, *given)
    engines({}, *given, *map(placed, ways_out))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_passes_of_so_many_tokens_are_not_for_engines_that_count_them(stage):
    asked = [f"stages.{stage}.tokens_per_device=2048", f"stages.{stage}.deepspeed=zero2"]
    text = refused({}, *asked)
    assert "DeepSpeed ZeRO-2 has all make the same number" in text
    engines({}, *asked, f"stages.{stage}.tokens_per_device=null")
    engines({}, asked[0])


def test_ppo_offloads_under_zero3_alone(tmp_path):
    engines({}, "stages.ppo.deepspeed=zero3_offload_cpu")
    engines({}, "stages.ppo.deepspeed=zero3_offload_cpu", "model.adapter=none")
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}')
    said = "not under DeepSpeed ZeRO-2 offloaded to the host's memory; use zero3_offload_cpu, and rollout_engine"
    assert said in refused({}, f"stages.ppo.deepspeed={own}")
    engines({}, f"stages.sft.deepspeed={own}")


@pytest.mark.parametrize(("key", "asked", "plain"), [("ratio", 0.5, 1.0), ("super_offload", True, False)])
def test_ppo_steps_with_torchs_optimiser_wherever_it_lies(tmp_path, key, asked, plain):
    own = tmp_path / "own.json"
    offload = {"device": "cpu", key: asked}
    own.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": offload}}))
    assert f"own.json sets offload_optimizer.{key} to {asked}, which" in refused({}, f"stages.ppo.deepspeed={own}")
    engines({}, f"stages.sft.deepspeed={own}")
    own.write_text(own.read_text().replace(json.dumps(asked), json.dumps(plain)))
    engines({}, f"stages.ppo.deepspeed={own}")


def test_ppo_may_stop_by_divergence_where_nothing_but_the_base_is_spread():
    engines({}, "stages.ppo.deepspeed=zero3", "stages.ppo.stop_kl=0.1")
    engines({}, "stages.ppo.deepspeed=zero3", "stages.ppo.value_trunk=policy")
    refused({}, "stages.ppo.deepspeed=zero3", "stages.ppo.stop_kl=0.1", "model.adapter=none")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_not_spread(kind):
    text = refused({}, f"model.quantization={kind}", "stages.sft.deepspeed=zero3")
    assert f"ZeRO-3 cannot spread a base in {kind} here" in text and "use zero2" in text
    assert "stages.sft.deepspeed" in refused(ZERO3, f"model.quantization={kind}")
    engines({}, f"model.quantization={kind}", "stages.sft.deepspeed=zero2")


def test_an_ensemble_has_no_engine():
    text = refused({}, "stages.reward.ensemble=3", "stages.reward.deepspeed=zero2")
    assert "DeepSpeed ZeRO-2 serves one model per process, and ensemble: 3" in text
    engines({}, "stages.reward.ensemble=3")


@pytest.mark.parametrize("content", ["", "[]", '{"zero_optimization": {"stage": "three"}}', '{"zero_optimization": 3}'])
def test_a_file_that_is_none(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content)
    assert f"{path} cannot be read as a DeepSpeed configuration" in refused({}, f"stages.sft.deepspeed={path}")
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    assert engines({}, f"stages.sft.deepspeed={path}")["sft"].zero_stage == 1


def test_a_file_of_the_launch_that_is_missing():
    gone = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "/nowhere/zero.json"}
    assert "/nowhere/zero.json cannot be read" in refused(gone)
