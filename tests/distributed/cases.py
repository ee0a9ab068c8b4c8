"""What the ranks of `stages_of_a_rank.py` run: each stage under each engine; stopped, broken and tampered with."""

from __future__ import annotations

from typing import Any

KINDS, FORMS = ("sft", "reward", "dpo"), ("lora", "full")
FULL = {"learning_rate": 5e-4}
ADAPTERS: dict[str, Any] = {"lora": None, "full": "none", "dora": {"type": "dora", "r": 4, "alpha": 8}}
"""By the form that a case's name carries; None for the usual one."""


def case(kind: str, form: str, engine: str, name: str = "", **more: Any) -> dict[str, Any]:
    if engine == "fsdp":
        more["launch"] = engine
    named = "inherit" if engine == "fsdp" else engine
    settings = {"deepspeed": named, **(FULL if form == "full" else {}), **more.pop("settings", {})}
    whole = "-".join(filter(None, (kind, form, engine, name)))
    return {"name": whole, "kind": kind, "adapter": ADAPTERS[form], "settings": settings, **more}


ALONE = [case(kind, form, "none") for kind in KINDS for form in FORMS]
PPO = {"ptx_coef": 0.1, "entropy_coef": 0.1}
"""Demonstrations mixed in, so that a step's last backward pass is another one; entropies with a gradient."""
ALONE += [case("ppo", form, "none", settings=PPO) for form in FORMS]
TWICE = {**PPO, "epochs": 2}
"""Each rollout learnt from twice."""
SHARED = {**PPO, "value_trunk": "policy"}
RLOO = {**PPO, "advantage_estimator": "rloo", "samples_per_prompt": 2, "value_warmup": 0}
ALONE += [case("sft", "dora", "none"), case("dpo", "dora", "none"), case("ppo", "dora", "none", settings=TWICE)]
ALONE += [case("ppo", "lora", "none", "shared", settings=SHARED)]
ALONE += [case("ppo", form, "none", "rloo", settings=RLOO) for form in FORMS]
ENGINES = ("none", "zero1", "zero2", "zero3", "zero3_offload_cpu")
TOGETHER = [case(kind, form, engine) for kind in KINDS for form in FORMS for engine in (*ENGINES, "fsdp")]
TOGETHER += [case("sft", "dora", engine) for engine in ("none", "zero2", "fsdp")]
TOGETHER += [case("dpo", "dora", "zero1")]
TOGETHER += [case(kind, "lora", "none", "tokens", settings={"tokens_per_device": 150}) for kind in KINDS]
TOGETHER += [
    case("dpo", form, engine, "kept", settings={"precompute_reference": True})
    for form, engine in (("lora", "none"), ("lora", "zero3"), ("full", "zero2"))
]
LEFT = [case(kind, "lora", "none", "left", stop_at=2, left=True) for kind in ("sft", "dpo", "ppo")]
"""Stopped on one process, to be gone on with on two."""
LEFT[2]["settings"] |= PPO
PPO_TOGETHER = [
    *(case("ppo", form, engine, settings=PPO) for form in FORMS for engine in ENGINES),
    case("ppo", "dora", "zero2", settings=TWICE),
    case("ppo", "lora", "none", "tokens", settings={**PPO, "tokens_per_device": 100}),
    *(case("ppo", "lora", engine, "shared", settings=SHARED) for engine in ("none", "zero3", "zero3_offload_cpu")),
    *(case("ppo", form, engine, "rloo", settings=RLOO) for form in FORMS for engine in ENGINES),
]
SHORT = {"episodes": 16, "value_warmup": 0}
"""One rollout, where only the end is looked at."""
PPO_OTHERS = [
    case("ppo", "lora", "zero2", "resumed", settings=PPO, stop_at=2),
    case("ppo", "full", "zero3", "resumed", settings=PPO, stop_at=2),
    case("ppo", "full", "zero3_offload_cpu", "resumed", settings=PPO, stop_at=2),
    case("ppo", "full", "zero3_offload_cpu", "gradient", settings=PPO, fault="gradient"),
    case("ppo", "lora", "zero3", "emptied", settings=SHORT, fault="emptied"),
    case("ppo", "lora", "zero3", "by_fours", settings=SHORT, fault="by_fours"),
    case("ppo", "full", "zero3", "recomputed", settings={**PPO, "gradient_checkpointing": True}),
    case("ppo", "lora", "zero3", "recomputed", settings={**PPO, "gradient_checkpointing": True}),
]
PIECES = {"sequence_parallel_size": 2}
UNEVEN = {"per_device_batch_size": 3, "global_batch_size": 12, "max_steps": None, "epochs": 2}
"""Forty rows: in each of the two passes the last step has four of them, in two micro-batches."""
GROUPED = {"group_by_length": True, "epochs": 2, "max_steps": 7}
ALONE += [case("sft", form, "none", "uneven", settings=UNEVEN) for form in FORMS]
ALONE += [case("sft", "lora", "none", "grouped", settings=GROUPED)]
TOGETHER_ON_ROWS = [
    *(case("sft", form, engine, "pieces", settings=PIECES) for form in FORMS for engine in ENGINES[1:]),
    case("sft", "lora", "zero3", "pieces-recomputed", settings={**PIECES, "gradient_checkpointing": True}),
    case("sft", "lora", "zero2", "grouped-pieces", settings={**GROUPED, **PIECES}),
    case("sft", "full", "zero3", "uneven-pieces", settings={**UNEVEN, **PIECES}),
]
"""Each row computed by both processes; the part of a name before `pieces` says what one process has done."""
PIECES_OTHERS = [
    case("sft", "lora", "zero2", "pieces-resumed", settings=PIECES, stop_at=2),
    *(
        case("sft", "full", engine, "pieces-bf16", settings={**PIECES, "precision": "bf16"})
        for engine in ("zero1", "zero2", "zero3")
    ),
    case("sft", "lora", "zero2", "pieces-nan", settings=PIECES, fault="nan_in_pieces"),
    case("sft", "lora", "zero2", "pieces-window", settings=PIECES, base="mistral"),
    case("sft", "lora", "zero2", "pieces-experts", settings=PIECES, base="mixtral"),
    case(
        "sft",
        "lora",
        "zero2",
        "pieces-unbalanced",
        settings={**PIECES, "trainer_args": {"router_aux_loss_coef": 0.0}},
        base="mixtral",
    ),
    case("sft", "lora", "zero2", "pieces-seeing", settings=PIECES, base="qwen2_vl"),
    case("sft", "lora", "zero2", "pieces-dft", settings={**PIECES, "trainer_args": {"loss_type": "dft"}}),
    case("sft", "lora", "zero2", "pieces-qwen3", settings=PIECES, base="qwen3"),
]
FOUR = [
    case("sft", "lora", "zero2", "uneven-pieces", settings={**UNEVEN, **PIECES}),
    case("sft", "full", "zero3", "uneven-pieces", settings={**UNEVEN, **PIECES}),
    case("sft", "full", "zero3", "uneven-pieces-resumed", settings={**UNEVEN, **PIECES}, stop_at=6),
    case("sft", "lora", "zero2", "quarters", settings={"sequence_parallel_size": 4}),
    case("sft", "full", "zero3", "quarters", settings={"sequence_parallel_size": 4}),
]
"""Two groups of two processes; stopped in the second pass. Then all four together, of which two share heads."""
OTHERS = [
    case("sft", "lora", "zero3", "trl", settings={"engine": "trl"}),
    case("reward", "lora", "zero3", "bf16", settings={"precision": "bf16"}),
    case("sft", "lora", "zero2", "resumed", stop_at=2),
    case("dpo", "full", "zero3", "resumed", stop_at=2),
    case("sft", "full", "zero3_offload_cpu", "resumed", stop_at=2),
    case("dpo", "lora", "zero3", "emptied", fault="emptied"),
    case("sft", "lora", "zero2", "nan", fault="nan"),
]
MODEL_STATES, OPTIMISER_STATES = "*_model_states.pt", "*_optim_states.pt"
PAYLOADS = [
    case("sft", "lora", "zero2", "model", after="sft-lora-zero2-resumed", payload=MODEL_STATES),
    case("sft", "lora", "zero2", "optimiser", after="sft-lora-zero2-resumed", payload=OPTIMISER_STATES),
    case("ppo", "full", "zero3", "model", settings=PPO, after="ppo-full-zero3-resumed", payload=MODEL_STATES),
    case("ppo", "full", "zero3", "optimiser", settings=PPO, after="ppo-full-zero3-resumed", payload=OPTIMISER_STATES),
]
"""In the last checkpoint of another case, which went through."""
ENSEMBLES = [
    case("reward", "lora", "none", "ensemble", settings={"ensemble": 2}),
    # A signal between its members, who take four steps each, is heard after the next step.
    case("reward", "lora", "none", "ensemble-resumed", settings={"ensemble": 2}, stop_at=5),
]
ALONE += ENSEMBLES[:1]
FSDP_OTHERS = [
    case("sft", "lora", "fsdp", "trl", settings={"engine": "trl"}),
    case("dpo", "full", "fsdp", "trl", settings={"engine": "trl"}),
    case("sft", "lora", "fsdp", "recomputed", settings={"gradient_checkpointing": True}),
    case("reward", "full", "fsdp", "bf16", settings={"precision": "bf16"}),
    case("sft", "lora", "fsdp", "resumed", stop_at=2),
    case("dpo", "full", "fsdp", "resumed", stop_at=2),
    case("dpo", "lora", "fsdp", "emptied", fault="emptied"),
]
