"""Run by torchrun on two processes (see test_vllm): both vLLM engines, and a server that dies.

Each rank writes what it got; the fake server lives in the first one's process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import vllm
from accelerate import PartialState
from urllib3.util import retry
from vllm.distributed.weight_transfer import nccl_common

from pipeline.errors import SourceUnreachableError
from pipeline.rollouts.answers import Answer, Sampling
from pipeline.runtime import Ranks, from_first_rank
from pipeline.stages.ppo_vllm import ColocatedEngine, ServerEngine
from tests.rollouts.ppo_parts import LORA, make_parts
from tests.rollouts.served_model import FakeServer

SAMPLING = Sampling(10, 0.8, seed=3)


def main(base: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.from_environment()
    PartialState(cpu=True)
    prompts = [[1, 40 + index] for index in range(7)]
    parts = make_parts(folder / f"parts{ranks.rank}", base, LORA)
    server = FakeServer(str(base), nccl_common.WIRE, vllm.__version__) if ranks.is_first else None
    url = from_first_rank(lambda: server.url if server else "")
    made = ServerEngine(parts.roles, url, base, (2,), torch.device("cuda"), wait_s=0.0)
    assert (made._client is None) != ranks.is_first
    found = {"server": rows(made.answers(prompts, SAMPLING))}
    beside = ColocatedEngine(
        parts.roles, base, (2,), ranks, memory=0.2, longest=99, batch_size=9, device=torch.device("cpu")
    )
    found["colocated"] = rows(beside.answers(prompts, SAMPLING))
    if server is not None:
        server.stop()
        made._client.session.close()
        retry.time.sleep = lambda seconds: None
    try:
        made.answers(prompts, SAMPLING)
    except SourceUnreachableError as error:
        found["error"] = [str(error)]
    (folder / f"rank{ranks.rank}.json").write_text(json.dumps(found))


def rows(answers: list[Answer]) -> list[list[int]]:
    return [answer.ids for answer in answers]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
