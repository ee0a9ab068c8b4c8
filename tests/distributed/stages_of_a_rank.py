"""One rank of a launch (torchrun, or alone) that runs stage after stage in one process, each with an engine of its own.

`stages_of_a_rank.py FOLDER CASES`: what each case gave lies in `FOLDER/<name>/found.json` afterwards. A worker process
runs one stage and ends; here several share a process, to import the libraries once, so that what accelerate and
transformers keep of an engine is cleared between them.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import os
import shutil
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["GLOO_SOCKET_IFNAME"] = "lo"

import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from deepspeed.runtime.sequence_parallel import parallel_state_sp
from deepspeed.utils import groups
from safetensors.torch import load_file
from transformers.integrations import deepspeed as integration

from pipeline import checkpoint
from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.errors import PreemptedError, TrivetError
from pipeline.models.source import identify, materialise
from pipeline.recipe.checks import DS_CONFIGS
from pipeline.recipe.engines import USE_DEEPSPEED, USE_FSDP
from pipeline.recipe.schema import Recipe
from pipeline.runtime import Ranks, StopRequest, barrier, seed_everything
from pipeline.stages import dpo, ppo, reward, sft
from pipeline.tracking import SilentTracker, Tracker, read_metrics
from pipeline.worker import _start_peers
from tests.distributed.engines_seen import engines_seen, gathers_seen
from tests.distributed.faults import fault
from tests.models.architectures import written
from tests.rollouts.ppo_parts import (
    StopAfter,
    described,
    lively_base,
    stage_context,
    trained_policy,
    trained_reward,
    write_rows,
)

BASE = "builtin:tiny-llama"
TRACE = "pwned"
"""What code leaves in a stage's folder that was run."""
HANGING_SECONDS = 120
FSDP_LAUNCH = {USE_FSDP: "true"} | {
    name.upper(): str(value).lower() if isinstance(value, bool) else str(value)
    for name, value in yaml.safe_load((DS_CONFIGS / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"].items()
}
"""What accelerate tells the processes of a launch with that file."""
STAGES: dict[str, Any] = {"sft": sft.run, "reward": reward.run, "dpo": dpo.run, "ppo": ppo.run}
DATA = {
    "sft": {"sources": [{"path": "builtin:alpaca_sample", "limit": 40}], "max_length": 384, "eval_limit": 7},
    "preference": {"sources": [{"path": "builtin:preference_sample", "limit": 40}], "max_length": 384, "eval_limit": 7},
}
TRAINING = {
    "learning_rate": 2e-2, "max_steps": 4, "global_batch_size": 8, "per_device_batch_size": 2, "precision": "fp32",
    "log_every": 1, "save_every": 2,
}  # fmt: skip


PPO: dict[str, Any] = {
    "rewards": [{"from": "reward"}, {"from": "function"}], "gate": {"min_accuracy": 0}, "episodes": 48,
    "rollout_batch_size": 16, "minibatches": 2, "epochs": 1, "eval_every": 3, "eval_prompts": 5, "save_every": 1,
    "generation_batch_size": 3,
    "select": "last", "max_grad_norm": 0.5, "value_warmup": 1,
}  # fmt: skip
"""Two micro-batches a step on each of two ranks; five held-out prompts, which are not equally many batches."""


class Ear(Console):
    """Remembers what a stage says."""

    def __init__(self) -> None:
        super().__init__(None)
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


class StopAt(StopRequest):
    """Asks to stop after so many steps."""

    def __init__(self, steps: int):
        super().__init__()
        self._left = steps

    def agreed(self) -> bool:
        self._left -= 1
        return self._left == 0


def ppo_context(case: dict[str, Any], folder: Path, ranks: Ranks, stop: StopRequest) -> StageContext:
    """A stage of random parents, which the first rank makes when they are first asked for."""
    adapter = case.get("adapter") or {"r": 4, "alpha": 8}
    form = "model" if adapter == "none" else "adapter"
    parents = folder.parents[1] / f"parents-{form}"
    base = parents / "base"
    if ranks.is_first and not parents.is_dir():
        lively_base(base, materialise(identify(BASE, None)))
        trained_policy(parents / "policy", base, adapter)
        trained_reward(parents / "reward_1", base, adapter)
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.is_first and not (folder.parent / "rows.jsonl").is_file():
        write_rows(folder.parent / "rows.jsonl", 16)
    barrier()
    made = {
        "policy": described(parents / "policy", base, form, "policy", "sft"),
        "reward_1": described(parents / "reward_1", base, form, "reward_model", "reward"),
    }
    settings = {**PPO, **case.get("settings", {})}
    context = stage_context(
        folder, base, adapter, parents=made, ranks=ranks, stop=stop,
        quantization=case.get("quantization", "none"), **settings,
    )  # fmt: skip
    return replace(context, console=Ear())


def context_of(case: dict[str, Any], folder: Path, ranks: Ranks, stop: StopRequest) -> StageContext:
    if case["kind"] == "ppo":
        return ppo_context(case, folder, ranks, stop)
    kind, base = case["kind"], BASE
    if "base" in case:
        base = str(folder.parents[1] / case["base"])
        if ranks.is_first:
            written(Path(base), case["base"], materialise(identify(BASE, None)))
        barrier()
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {
                "base": base, "adapter": case.get("adapter") or {"r": 4, "alpha": 8},
                "quantization": case.get("quantization", "none"),
            },
            "data": DATA,
            "stages": {kind: {"kind": kind, **TRAINING, **case.get("settings", {})}},
        }
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        recipe=recipe, stage=kind, folder=folder, parents={}, base=identify(base, None),
        base_folder=materialise(identify(base, None)), ranks=ranks, stop=stop, console=Ear(),
        tracker=Tracker(folder / "metrics.jsonl", kind) if ranks.is_first else SilentTracker(),
    )  # fmt: skip


def run_case(case: dict[str, Any], folder: Path, ranks: Ranks) -> dict[str, Any]:
    """One stage, perhaps stopped once and begun again, or left so, perhaps with something broken on purpose.

    `after` names an earlier case, whose folder with its last checkpoint this one is given a copy of.
    """
    found: dict[str, Any] = {}
    if "payload" in case:
        plant(case["payload"], folder, ranks)
    stopping: Any = StopAfter if case["kind"] == "ppo" else StopAt
    stops = [stopping(case["stop_at"])] if "stop_at" in case else []
    for stop in stops if case.get("left") else [*stops, StopRequest()]:
        clear_engine()
        if case.get("launch") == "fsdp":
            os.environ.update(FSDP_LAUNCH)
        context = context_of(case, folder, ranks, stop)
        seed_everything(context.recipe.seed)
        try:
            result = STAGES[case["kind"]](context)
            found["metrics"] = result.metrics
        except PreemptedError:
            barrier()
        except TrivetError as error:
            found["error"] = str(error)
        except Exception as error:
            traceback.print_exc()
            found["error"] = f"{type(error).__name__}: {error}"
        found.setdefault("said", []).extend(context.console.heard)
    return found


class Payload:
    """Pickled, a call that leaves a trace where it is unpickled."""

    def __init__(self, trace: Path):
        self._trace = trace

    def __reduce__(self) -> Any:
        return os.makedirs, (str(self._trace), 0o777, True)


def plant(pattern: str, folder: Path, ranks: Ranks) -> None:
    """Put a payload into files of a stage's checkpoint, which is as complete afterwards as one of ours."""
    if ranks.is_first:
        saved, _ = checkpoint.newest_complete(folder / "checkpoints")
        assert saved is not None
        planted = list(saved.rglob(pattern))
        for path in planted:
            torch.save({"module": Payload(folder / TRACE), "optimizer_state_dict": Payload(folder / TRACE)}, path)
        made_by = checkpoint.made_by(saved)
        (saved / checkpoint.MARKER).unlink()
        checkpoint.commit(saved, made_by)
        assert planted and checkpoint.is_complete(saved)
    barrier()


def clear_engine() -> None:
    for name in (USE_DEEPSPEED, *FSDP_LAUNCH):
        os.environ.pop(name, None)
    integration.unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    groups.mpu = None
    parallel_state_sp._release_sequence_parallel_groups()
    gc.collect()
    # Accelerate and DeepSpeed collect as well, in every case: not through all libraries' objects each time.
    gc.freeze()


def collect(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What lies in the stage's folder: each step's loss and gradient norm, and the weights."""
    lines = read_metrics(folder / "metrics.jsonl")
    for line in (each for each in lines if each["split"] == "train"):
        found.setdefault(line["name"], []).append(line["value"])
    files = [path for form in ("adapter", "model") for path in sorted(folder.glob(f"{form}*/*.safetensors"))]
    tensors = {f"{path.parent.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    found["tensors"] = {name: float(tensor.float().norm()) for name, tensor in tensors.items()}
    found["hash"] = digest.hexdigest()
    return found


def let_accelerate_use_fsdp_without_a_gpu() -> None:
    """Accelerate takes FSDP only where there are several GPUs; torch's runs on gloo as well.

    All else is as on GPUs: accelerate itself makes the plugin from its launcher's variables and prepares the model.
    """
    begin = AcceleratorState.__init__

    def as_with_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
        known = PartialState._shared_state
        if os.environ.get(USE_FSDP) == "true" and known.get("distributed_type") == DistributedType.MULTI_CPU:
            known["distributed_type"] = DistributedType.MULTI_GPU
        begin(self, *args, **kwargs)

    AcceleratorState.__init__ = as_with_gpus


def main(folder: Path, cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    let_accelerate_use_fsdp_without_a_gpu()
    ranks = Ranks.from_environment()
    _start_peers(ranks, SimpleNamespace(rank_timeout=None))
    for case in cases:
        place = Path(case.get("place", folder / case["name"]))
        if "after" in case and ranks.is_first:
            shutil.copytree(folder / case["after"] / "stage", place / "stage")
        # Ranks that wait for one another for ever say where.
        faulthandler.dump_traceback_later(HANGING_SECONDS, exit=True)
        engines: list[list[str]] = []
        gathers: list[tuple[float, int]] = []
        engine = case["settings"]["deepspeed"]
        with fault(case.get("fault")), engines_seen(engine, engines), gathers_seen(engine, gathers):
            found = run_case(case, place / "stage", ranks)
        found["engines"], found["gathered"] = engines, gathers
        found["ran"] = (place / "stage" / TRACE).exists()
        barrier()
        if ranks.is_first:
            (folder / case["name"]).mkdir(exist_ok=True)
            (folder / case["name"] / "found.json").write_text(json.dumps(collect(found, place / "stage")))
            print(case["name"], "done", found.get("error", ""), flush=True)
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
