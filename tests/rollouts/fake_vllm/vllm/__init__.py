"""As much of vLLM as TRL 1.16 and `ppo_vllm` import, on a transformers model: the engine in the process itself.

What it imitates was read from vLLM's sources, never run: see the tests' docstring.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from tests.rollouts.served_model import ServedModel

__version__ = os.environ["FAKE_VLLM_VERSION"]
STARTED: list[LLM] = []


class RequestOutput:
    pass


class SamplingParams:
    """Keeps what it is given; unsaid, a parameter comes from the model's own files."""

    def __init__(self, **asked: Any):
        self.asked = asked


class LLM:
    def __init__(self, model: str, **options: Any):
        if options["gpu_memory_utilization"] > 0.95:
            raise ValueError("Free memory on device (1/2 GiB) is less than desired GPU memory utilization")
        self.options = {"model": model, **options}
        self.served = ServedModel(model)
        self.asked: list[dict[str, Any]] = []
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=self.served))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))
        STARTED.append(self)

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        found = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            self.asked.append(params.asked)
            ids, logps = self.served.complete(prompt["prompt_token_ids"], params.asked)
            entries = None if logps is None else [
                {token: SimpleNamespace(logprob=logp, rank=7)} for token, logp in zip(ids, logps, strict=True)
            ]  # fmt: skip
            found.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids), logprobs=entries)]))
        return found

    def reset_prefix_cache(self) -> None:
        self.served.reset_prefix_cache()
