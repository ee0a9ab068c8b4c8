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
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["GLOO_SOCKET_IFNAME"] = "lo"

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from transformers.integrations import deepspeed as integration

from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.errors import PreemptedError, TrivetError
from pipeline.models import adapters
from pipeline.models.builtin import materialise
from pipeline.models.source import identify
from pipeline.recipe.engines import USE_DEEPSPEED
from pipeline.recipe.schema import Recipe
from pipeline.runtime import Ranks, StopRequest, barrier, seed_everything
from pipeline.stages import dpo, reward, sft
from pipeline.stages.sft_objective import Imitation
from pipeline.tracking import SilentTracker, Tracker, read_metrics
from pipeline.worker import _start_peers

BASE = "builtin:tiny-llama"
HANGING_SECONDS = 300
STAGES: dict[str, Any] = {"sft": sft.run, "reward": reward.run, "dpo": dpo.run}
DATA = {
    "sft": {"sources": [{"path": "builtin:alpaca_sample", "limit": 40}], "max_length": 384, "eval_limit": 7},
    "preference": {"sources": [{"path": "builtin:preference_sample", "limit": 40}], "max_length": 384, "eval_limit": 7},
}
TRAINING = {
    "learning_rate": 2e-2, "max_steps": 4, "global_batch_size": 8, "per_device_batch_size": 2, "precision": "fp32",
    "log_every": 1, "save_every": 2,
}  # fmt: skip


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


def context_of(case: dict[str, Any], folder: Path, ranks: Ranks, stop: StopRequest) -> StageContext:
    kind = case["kind"]
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": {"base": BASE, "adapter": case.get("adapter") or {"r": 4, "alpha": 8}},
            "data": DATA,
            "stages": {kind: {"kind": kind, **TRAINING, **case.get("settings", {})}},
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        recipe=recipe, stage=kind, folder=folder, parents={}, base=identify(BASE, None),
        base_folder=materialise(BASE), ranks=ranks, stop=stop, console=Ear(),
        tracker=Tracker(folder / "metrics.jsonl", kind) if ranks.is_first else SilentTracker(),
    )  # fmt: skip


def run_case(case: dict[str, Any], folder: Path, ranks: Ranks) -> dict[str, Any]:
    """One stage, perhaps stopped once and begun again, perhaps with something broken on purpose."""
    found: dict[str, Any] = {}
    stops = [StopAt(case["stop_at"])] if "stop_at" in case else []
    for stop in [*stops, StopRequest()]:
        clear_engine()
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


def clear_engine() -> None:
    os.environ.pop(USE_DEEPSPEED, None)
    integration.unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()


def collect(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What lies in the stage's folder: each step's loss and gradient norm, and the weights."""
    for name in ("loss", "grad_norm"):
        lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "train"]
        found[name] = [line["value"] for line in lines if line["name"] == name]
    files = [path for form in ("adapter", "model") for path in sorted((folder / form).glob("*.safetensors"))]
    tensors = {name: tensor for path in files for name, tensor in load_file(path).items()}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    found["tensors"] = {name: float(tensor.float().norm()) for name, tensor in tensors.items()}
    found["hash"] = digest.hexdigest()
    return found


@contextmanager
def fault(what: str | None) -> Iterator[None]:
    """Within the block something is broken: `emptied` saved adapters, or a loss that is `nan` from step 2 on."""
    with pytest.MonkeyPatch.context() as patch:
        if what == "emptied":
            save = adapters.save

            def emptied(model: Any, folder: Path, *rest: Any) -> None:
                save(model, folder, *rest)
                path = folder / "adapter_model.safetensors"
                save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path, {"format": "pt"})

            patch.setattr(adapters, "save", emptied)
        if what == "nan":
            compute, calls = Imitation.compute, []

            def spoilt(self: Any, *arguments: Any) -> Any:
                calls.append(1)
                found = compute(self, *arguments)
                return replace(found, loss=found.loss * torch.nan) if len(calls) > 2 else found

            patch.setattr(Imitation, "compute", spoilt)
        yield


def main(folder: Path, cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    _start_peers(ranks)
    for case in cases:
        place = folder / case["name"]
        # Ranks that wait for one another for ever say where.
        faulthandler.dump_traceback_later(HANGING_SECONDS, exit=True)
        with fault(case.get("fault")):
            found = run_case(case, place / "stage", ranks)
        barrier()
        if ranks.is_first:
            (place / "found.json").write_text(json.dumps(collect(found, place / "stage")))
            print(case["name"], "done", found.get("error", ""), flush=True)
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
