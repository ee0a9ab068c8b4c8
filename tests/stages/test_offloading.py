"""What offloading lacks on a machine is said before anything is spread, in one sentence with a way out."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import TrivetError
from pipeline.recipe.checks import DS_CONFIGS
from pipeline.recipe.schema import Recipe
from pipeline.stages.offloading import require_offloading

CPU, NVME = (json.loads((DS_CONFIGS / f"zero3_offload_{place}.json").read_text()) for place in ("cpu", "nvme"))


@pytest.fixture
def context() -> Any:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"base": "builtin:tiny-llama"},
            "data": {"sft": {"sources": [{"path": "x"}]}},
            "stages": {"sft": {"kind": "sft", "deepspeed": "zero3_offload_nvme"}},
        }
    )
    return SimpleNamespace(recipe=recipe, stage="sft")


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """DeepSpeed's builders fail, as without a compiler; the list takes the names of those that were asked."""
    from deepspeed.ops import op_builder

    asked: list[str] = []

    def builder(name: str) -> Any:
        def load(verbose: bool) -> None:
            asked.append(name)
            raise RuntimeError(f"Error building extension '{name}': [1/3] c++ -MMD\n/bin/sh: 1: c++: not found")

        return lambda: SimpleNamespace(name=name, load=load)

    monkeypatch.setattr(op_builder, "CPUAdamBuilder", builder("cpu_adam"))
    monkeypatch.setattr(op_builder, "AsyncIOBuilder", builder("async_io"))
    return asked


def test_what_is_shipped_for_the_hosts_memory_needs_no_compiler(context, compiled):
    require_offloading(CPU, context)
    assert not compiled


@pytest.mark.parametrize("change", [{"zero_force_ds_cpu_optimizer": True}, {"optimizer": {"type": "AdamW"}}])
def test_deepspeeds_own_optimiser_on_the_host_does(context, compiled, change):
    with pytest.raises(TrivetError) as caught:
        require_offloading({**CPU, **change}, context)
    assert compiled == ["cpu_adam"] and len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(
        "stage sft: DeepSpeed ZeRO-3 offloaded to a disk needs DeepSpeed's cpu_adam, which could not be compiled on "
        "this machine (/bin/sh: 1: c++: not found); install g++ and ninja, or use zero3_offload_cpu, whose"
    )


def test_a_disk_needs_its_folder_and_a_library(context, compiled, tmp_path):
    with pytest.raises(TrivetError, match=r"zero3_offload_nvme\.json offloads to /local_nvme, which is no folder of"):
        require_offloading(NVME, context)
    assert not compiled, "nothing is compiled for a folder that is not there"
    here = json.loads(json.dumps(NVME).replace("/local_nvme", str(tmp_path)))
    with pytest.raises(
        TrivetError, match=r"async_io, which could not be compiled .* libaio-dev, or use zero3_offload_c"
    ):
        require_offloading(here, context)
    assert compiled == ["async_io"]


def test_nothing_is_asked_of_a_machine_where_nothing_is_offloaded(context, compiled):
    require_offloading(json.loads((DS_CONFIGS / "zero3.json").read_text()), context)
    assert not compiled
