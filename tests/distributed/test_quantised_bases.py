"""A base in 4 or 8 bits, on the CPU: every stage learns on it, on one process and two, and hands its adapter on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.cases import PIECES, PPO
from tests.distributed.cases import case as plain_case
from tests.distributed.test_engines_agree import TOLERANCE, launched

pytestmark = pytest.mark.slow
ENGINES = {
    "nf4": {"sft": ("none", "zero1", "zero2"), "reward": ("none", "zero2"), "dpo": ("none", "zero2"),
            "ppo": ("none", "zero1", "zero2")},
    "int8": {"sft": ("none", "zero1", "zero2"), "ppo": ("none",)},
}  # fmt: skip


def case(kind: str, quantization: str, engine: str, name: str = "", **more: Any) -> dict[str, Any]:
    settings = {**(PPO if kind == "ppo" else {}), **more.pop("settings", {})}
    made = plain_case(kind, "lora", engine, name, quantization=quantization, settings=settings, **more)
    return {**made, "name": f"{quantization}-{made['name']}"}


ALONE = [case(kind, quantization, "none") for quantization, kinds in ENGINES.items() for kind in kinds]
TOGETHER = [
    case(kind, quantization, engine)
    for quantization, kinds in ENGINES.items()
    for kind, engines in kinds.items()
    for engine in engines
]
BY_TRL = [case("sft", quantization, "none", "trl", settings={"engine": "trl"}) for quantization in ENGINES]
IN_PIECES = [case("sft", quantization, "zero2", "pieces", settings=PIECES) for quantization in ENGINES]
RESUMED = [case(kind, "nf4", "zero2", "resumed", stop_at=2) for kind in ("sft", "ppo")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, Any]]:
    unquantised = [plain_case("sft", "lora", "none")]
    return launched(1, [*ALONE, *BY_TRL, *unquantised], tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return launched(2, [*TOGETHER, *IN_PIECES, *RESUMED], tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("name", [each["name"] for each in ALONE])
def test_a_stage_learns_and_saves_its_adapter_alone(alone, name):
    found = alone[name]
    assert "error" not in found, found["error"]
    assert found["tensors"] and all("lora_" in tensor or "score" in tensor for tensor in found["tensors"])
    assert any(norm > 0 for tensor, norm in found["tensors"].items() if "lora_B" in tensor), "moved from 0"
    if "sft" in name:
        assert found["metrics"]["eval_loss"] < found["metrics"]["eval_loss_before"] - 0.05
    elif "ppo" not in name:
        assert min(found["loss"][1:]) < found["loss"][0]


def test_the_base_was_quantised(alone):
    """Else every other test here could not fail."""
    plain, nf4, int8 = (alone[f"{start}sft-lora-none"]["loss"][0] for start in ("", "nf4-", "int8-"))
    assert abs(plain - nf4) > TOLERANCE / 10 and abs(plain - int8) > 1e-7 and nf4 != int8


@pytest.mark.parametrize("name", [each["name"] for each in [*TOGETHER, *IN_PIECES]])
def test_two_processes_learn_what_one_learns(alone, pair, name):
    """Each on rows of its own, as the stage computes them; or both on each row, as TRL's trainer does."""
    kept, rounding = (["none", "trl"], 3e-3) if "pieces" in name else (["none"], 1e-3)
    one, two = alone["-".join([*name.split("-")[:3], *kept])], pair[name]
    assert "error" not in two, two["error"]
    keys = [key for key in one if key.endswith("loss") and isinstance(one[key], list)]
    assert keys
    for key in keys:
        assert two[key] == pytest.approx(one[key], abs=TOLERANCE), key
        assert len(one[key]) >= 2
    assert two["tensors"].keys() == one["tensors"].keys()
    for key, norm in one["tensors"].items():
        assert two["tensors"][key] == pytest.approx(norm, rel=rounding, abs=1e-3), key
    if "ppo" in name:
        assert two["metrics"]["ratio_first_minibatch_maxdev"] < 1e-5


@pytest.mark.parametrize("name", ["nf4-sft-lora-zero2", "nf4-ppo-lora-zero2"])
def test_a_stage_that_was_stopped_goes_on_bit_for_bit(pair, name):
    straight, resumed = pair[name], pair[f"{name}-resumed"]
    assert any("going on from" in said for said in resumed["said"]), resumed
    assert resumed["hash"] == straight["hash"]
