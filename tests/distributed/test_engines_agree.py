"""Two processes under an engine train what one trains without: the same losses, and weights that are all there.

One process and a pair are started once each and run every case (`stages_of_a_rank.py`); what they found is compared.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.cases import (
    ALONE,
    ENSEMBLES,
    FSDP_OTHERS,
    LEFT,
    OTHERS,
    PAYLOADS,
    PPO_OTHERS,
    PPO_TOGETHER,
    TOGETHER,
)
from tests.distributed.launching import launched

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return launched(1, [*ALONE, *LEFT], tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory, alone) -> dict[str, dict[str, Any]]:
    begun = [
        {name: value for name, value in each.items() if name not in ("stop_at", "left")}
        | {"place": alone[each["name"]]["place"]}
        for each in LEFT
    ]
    cases = [*TOGETHER, *OTHERS, *ENSEMBLES, *FSDP_OTHERS, *PPO_TOGETHER, *PPO_OTHERS, *PAYLOADS, *begun]
    return launched(2, cases, tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("name", [each["name"] for each in [*TOGETHER, *OTHERS[:1], *FSDP_OTHERS[:3]]])
def test_losses_and_gradients_are_those_of_one_process(alone, pair, name):
    kind, form = name.split("-")[:2]
    one, two = alone[f"{kind}-{form}-none"], pair[name]
    assert "error" not in two, two["error"]
    assert two["loss"] == pytest.approx(one["loss"], abs=TOLERANCE) and len(one["loss"]) == 4
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-3)
    assert max(one["loss"]) - min(one["loss"]) > 10 * TOLERANCE, "losses that could differ"


@pytest.mark.parametrize("name", [each["name"] for each in TOGETHER])
def test_figures_and_saved_weights_are_those_of_one_process(alone, pair, name):
    """Measured before and after training, on weights that no rank holds whole; then every tensor as it was saved."""
    kind, form = name.split("-")[:2]
    one, two = alone[f"{kind}-{form}-none"], pair[name]
    for key in [key for key in one["metrics"] if key.startswith("eval_") and not isinstance(one["metrics"][key], dict)]:
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-3), key
    assert two["tensors"].keys() == one["tensors"].keys() and two["tensors"]
    for key, norm in one["tensors"].items():
        assert two["tensors"][key] == pytest.approx(norm, rel=1e-3, abs=1e-3), key


def test_streams_compute_the_steps_wherever_they_can_and_what_does_not_is_said(pair):
    engines = {
        name: found.get("metrics", {}).get("engine") for name, found in pair.items() if name.startswith(("sft", "dpo"))
    }
    trl = {name for name, engine in engines.items() if engine == "trl"}
    asked = {"sft-lora-zero3-trl", "sft-lora-fsdp-trl", "dpo-full-fsdp-trl"}
    offloaded = {"sft-full-zero3_offload_cpu", "dpo-full-zero3_offload_cpu", "sft-full-zero3_offload_cpu-resumed"}
    assert trl == {"sft-full-zero3", "dpo-full-zero3", "dpo-full-zero3-resumed"} | offloaded | asked
    said = "TRL's trainer computes the steps: DeepSpeed ZeRO-3 spreads the output layer, which is trained"
    assert said in pair["sft-full-zero3"]["said"] and said in pair["dpo-full-zero3"]["said"]


@pytest.mark.parametrize("name", ["reward-lora-zero3-bf16", "reward-full-fsdp-bf16"])
def test_bf16_trains_and_its_head_still_tells_scores_apart(pair, name):
    found = pair[name]
    assert "error" not in found, found["error"]
    assert len(found["loss"]) == 4 and found["metrics"]["eval_n"] > 0


@pytest.mark.parametrize("name", [each["name"] for each in [*PPO_TOGETHER, *PPO_OTHERS[-2:]]])
def test_ppo_learns_what_one_process_learns(alone, pair, name):
    """Rollout by rollout: answers, scores, losses and norms of both trainings, and the policy on held-out prompts."""
    [_, form, _, *more] = name.split("-")
    kept = [each for each in more if each in ("shared", "rloo")]
    one, two = alone["-".join(["ppo", form, "none", *kept])], pair[name]
    assert "error" not in two, two["error"]
    trained = ["policy"] if "rloo" in more else ["policy", "value"]
    losses = [f"{role}/loss" for role in trained]
    for key in (*losses, "objective/kl_seq", "objective/score", "policy/ptx_loss", "response/len_mean"):
        assert two[key] == pytest.approx(one[key], abs=TOLERANCE), key
        assert len(one[key]) >= 2, "the first rollout trains the value model alone, where there is one"
    for key in (f"{role}/grad_norm" for role in trained):
        assert two[key] == pytest.approx(one[key], rel=2e-3), key
    assert max(one[losses[-1]]) - min(one[losses[-1]]) > 10 * TOLERANCE, "losses that could differ"
    assert max(one["policy/grad_norm"]) > 0.5, "norms that are clipped"
    assert two["metrics"]["ratio_first_minibatch_maxdev"] < 1e-5
    for mine, theirs in zip(two["metrics"]["measured"], one["metrics"]["measured"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3)
    assert two["tensors"].keys() == one["tensors"].keys() and two["tensors"]
    for key, norm in one["tensors"].items():
        assert two["tensors"][key] == pytest.approx(norm, rel=1e-3, abs=1e-3), key


@pytest.mark.parametrize(
    "name",
    [
        "sft-lora-zero2",
        "dpo-full-zero3",
        "sft-full-zero3_offload_cpu",
        "sft-lora-fsdp",
        "dpo-full-fsdp",
        "ppo-lora-zero2",
        "ppo-full-zero3",
        "ppo-full-zero3_offload_cpu",
    ],
)
def test_a_stage_that_was_stopped_goes_on_bit_for_bit(pair, name):
    straight, resumed = pair[name], pair[f"{name}-resumed"]
    assert any("going on from" in said for said in resumed["said"]), resumed["said"]
    losses = [key for key in straight if key.endswith("loss")]
    assert resumed["hash"] == straight["hash"] and losses
    assert [resumed[key] for key in losses] == [straight[key] for key in losses]


@pytest.mark.parametrize("name", [each["name"] for each in PAYLOADS])
def test_a_payload_among_an_engines_shards_is_not_run(pair, name):
    """DeepSpeed's own reader would run it; without one, the same stages go on bit for bit."""
    found = pair[name]
    assert "holds more than numbers (os.makedirs)" in found.get("error", "it went on"), found
    assert not found["ran"]


@pytest.mark.parametrize("kind", ["sft", "dpo", "ppo"])
def test_what_one_process_began_two_go_on_with(alone, pair, kind):
    """Without an engine: the same rows in the same order, losses to rounding, and it is said."""
    straight, begun = alone[f"{kind}-lora-none"], pair[f"{kind}-lora-none-left"]
    assert "error" not in begun, begun["error"]
    assert any("going on from" in said for said in begun["said"])
    if kind != "ppo":
        assert any("the checkpoint is of 1 rank with no engine; the same rows follow" in said for said in begun["said"])
    losses = [key for key in straight if key.endswith("loss")]
    assert losses
    for key in losses:
        assert begun[key] == pytest.approx(straight[key], abs=TOLERANCE) and len(begun[key]) > 1
    for key, norm in straight["tensors"].items():
        assert begun["tensors"][key] == pytest.approx(norm, rel=1e-3, abs=1e-3), key


@pytest.mark.parametrize("name", ["dpo-lora-zero3-emptied", "dpo-lora-fsdp-emptied", "ppo-lora-zero3-emptied"])
def test_weights_that_were_lost_on_the_way_to_the_file_are_noticed(pair, name):
    error = pair[name]["error"]
    assert "are not those that were trained: row 0 gives" in error and "nothing is handed on" in error


def test_an_offloading_engine_takes_no_step_for_a_gradient_that_is_no_number(pair):
    error = pair["ppo-full-zero3_offload_cpu-gradient"]["error"]
    assert error.startswith("the value's gradient norm became inf at optimiser step 1; it did not reach the weights")


def test_an_ensemble_is_that_of_one_process(alone, pair):
    """Both members, step by step, and every saved tensor."""
    [name, resumed] = [each["name"] for each in ENSEMBLES]
    one, two = alone[name], pair[name]
    assert "error" not in two, two["error"]
    assert two["loss"] == pytest.approx(one["loss"], abs=TOLERANCE) and len(one["loss"]) == 8
    assert one["loss"][:4] != pytest.approx(one["loss"][4:], abs=10 * TOLERANCE), "members that could be mistaken"
    assert two["tensors"] == pytest.approx(one["tensors"], rel=TOLERANCE, abs=TOLERANCE)
    assert {key.partition("/")[0] for key in two["tensors"]} == {"adapter", "adapter_2"}
    begun_again = pair[resumed]
    assert "going on from step 1" in " ".join(begun_again["said"]), begun_again["said"]
    assert begun_again["hash"] == two["hash"] and begun_again["loss"] == two["loss"]


@pytest.mark.parametrize("name", ["ppo-lora-zero3", "ppo-full-zero3", "ppo-full-zero3_offload_cpu"])
def test_a_rollout_gathers_the_policy_once(pair, name):
    """Not for every batch of answers, nor for every token. Held-out answers are two more such phases.

    Behind the first phase half a per cent of these models is still whole from the pass before, and not gathered again.
    """
    phases = pair[name]["gathered"]
    assert [share for share, _ in phases] == pytest.approx([1.0] * 5, abs=0.01)
    assert [batches for _, batches in phases if batches > 1] == [3] * 3


def test_control_a_gather_for_every_batch_is_seen(pair):
    assert [share for share, _ in pair["ppo-lora-zero3-by_fours"]["gathered"]] == pytest.approx(
        [2.0, 4.0, 2.0], rel=0.01
    )


FROZEN, TRAINED = ["parameters=cpu", "optimiser=None"], ["parameters=cpu", "optimiser=True", "AdamW, fused=True"]


@pytest.mark.parametrize(
    ("stage", "lora", "full"),
    [
        ("sft", [TRAINED], [TRAINED]),
        ("reward", [TRAINED], [TRAINED]),
        ("dpo", [TRAINED], [FROZEN, TRAINED]),
        ("ppo", [FROZEN], [FROZEN, FROZEN, TRAINED, TRAINED]),
    ],
)
def test_what_is_offloaded_lies_on_the_host(pair, stage, lora, full):
    """Which nothing else here could tell: without a GPU all lies there. With an adapter, PPO's engine has the base."""
    for form, engines in (("lora", lora), ("full", full)):
        assert sorted(pair[f"{stage}-{form}-zero3_offload_cpu"]["engines"]) == engines
        spread = pair[f"{stage}-{form}-zero3"]["engines"]
        assert len(spread) == len(engines) and not [each for each in spread if {*each} & {"optimiser=True"}]
        assert {each[0] for each in spread} == {"parameters=None"}


def test_a_loss_that_is_no_number_ends_the_stage(pair):
    error = pair["sft-lora-zero2-nan"]["error"]
    assert error.startswith("the loss became nan at step 2; training stopped and nothing of this step is kept")
