"""Every shipped configuration, read by the library that it is for: accelerate's own loader, DeepSpeed's own checks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config import load_config_from_file

from pipeline.recipe.checks import DS_CONFIGS

ACCELERATE = sorted((DS_CONFIGS / "accelerate").glob("*.yaml"))
DEEPSPEED = sorted(DS_CONFIGS.glob("*.json"))
OWNED_BY_THE_RECIPE = (
    "train_micro_batch_size_per_gpu",
    "train_batch_size",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


def stem(path: Path) -> str:
    return path.stem


def test_they_are_all_there_and_all_explained():
    text = (DS_CONFIGS / "README.md").read_text()
    zero = {"zero1", "zero2", "zero3", "zero3_offload_cpu", "zero3_offload_nvme"}
    assert {path.stem for path in DEEPSPEED} == zero
    assert {path.stem for path in ACCELERATE} == zero | {
        "one_gpu", "ddp", "fsdp2", "multi_node", "cpu", "cpu_zero3",
    }  # fmt: skip
    for path in [*DEEPSPEED, *ACCELERATE]:
        assert f"`{path.name}`" in text, path


@pytest.mark.parametrize("path", ACCELERATE, ids=stem)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.num_processes == written["num_processes"] and config.use_cpu == written["use_cpu"]
    assert config.distributed_type.value == written["distributed_type"]
    # The recipe's precision decides; accelerate's would be a second answer.
    assert "mixed_precision" not in written
    if named := written.get("deepspeed_config", {}).get("deepspeed_config_file"):
        assert DS_CONFIGS.parent / named in DEEPSPEED
        if (DS_CONFIGS / path.name).with_suffix(".json").is_file():
            assert Path(named).stem == path.stem
        assert written["deepspeed_config"]["zero3_init_flag"] is False


def test_accelerates_loader_would_notice(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text((DS_CONFIGS / "accelerate" / "ddp.yaml").read_text() + "number_of_gpus: 8\n")
    with pytest.raises(ValueError, match="number_of_gpus"):
        load_config_from_file(str(broken))


@pytest.mark.parametrize("path", DEEPSPEED, ids=stem)
def test_deepspeed_knows_every_key(path):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = json.loads(path.read_text())
    zero = config["zero_optimization"]
    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(zero) <= known, "it would refuse or ignore the others"
    assert DeepSpeedZeroConfig(**zero).stage == zero["stage"] == int(re.sub(r"zero(\d).*", r"\1", path.stem))
    assert [config[key] for key in OWNED_BY_THE_RECIPE] == ["auto"] * len(OWNED_BY_THE_RECIPE)
    assert config["bf16"] == config["fp16"] == {"enabled": "auto"}
    assert not {"optimizer", "scheduler"} & set(config), "the recipe's learning rate and schedule apply"


def test_every_key_is_explained():
    text = (DS_CONFIGS / "README.md").read_text()
    for path in DEEPSPEED:
        config = json.loads(path.read_text())
        for key in [*config, *config["zero_optimization"]]:
            assert key in text, f"{key} of {path.name}"
