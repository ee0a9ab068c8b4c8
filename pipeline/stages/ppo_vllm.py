"""Rollouts by vLLM through TRL: a server that other processes own (`trl vllm-serve`), or an engine in each process.

Before answers are sampled the policy's weights are sent, if they changed: merged, under the base model's names, and
the prefix cache is emptied. Prompts go as token ids, each with a seed of its own (a seed said once for several prompts
would give all of them the same noise). vLLM computes in its own type and kernels, so its samples come from not quite
the policy; it reports log-probabilities after the temperature, and importance weights follow from them.

A sampled answer depends on the seed and its place, but for what vLLM's batching rounds differently. Written after the
sources of TRL 1.16 and vLLM 0.22 to 0.31; what has only ever run against a fake is said in tests/rollouts/test_vllm.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import torch

from pipeline.errors import SourceUnreachableError, TrivetError
from pipeline.models.roles import POLICY, Roles
from pipeline.rollouts.answers import Answer, Progress, Sampling, agree_to_go_on, asked, cut_at_stop
from pipeline.rollouts.generate import place_seed
from pipeline.rollouts.merged import fingerprint, merged_weights, require_mergeable, weight_metadata
from pipeline.runtime import Ranks, StopRequest, barrier, from_first_rank, gather_lists

AT_ONCE = 64
"""Prompts on their way to the server: connections that TRL's client keeps."""
WAIT_S = 240.0
"""For a server that is starting (TRL's own default)."""
PROCESSED = "processed_logprobs"


class ServerEngine:
    """Samples on a vLLM server; the first rank alone talks to it.

    Args:
        roles: whose policy samples.
        url: of the server.
        base: the base model's folder, which the server was started with.
        stop_ids: ids that end an answer.
        device: of the trainer, for the transfer of weights; NCCL wants another GPU than the server's.
        wait_s: for a server that is starting.

    Raises:
        SourceUnreachableError: vLLM is not installed, no server answers, or it lacks a setting.
    """

    def __init__(
        self,
        roles: Roles,
        url: str,
        base: Path,
        stop_ids: tuple[int, ...],
        device: torch.device,
        wait_s: float = WAIT_S,
    ):
        self._roles = roles
        self._url = url.rstrip("/")
        self._command = f"trl vllm-serve --model {base} --port {urlparse(url).port or 8000}"
        self._stop_ids = stop_ids
        self._client: Any = None
        self._changed = _Changed(roles)
        from_first_rank(partial(self._connect, device, wait_s))

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in the prompts' order, on every rank, of the policy as it is now.

        Raises:
            SourceUnreachableError: the server is gone, or refuses.
        """
        with self._roles.sampling() as model:
            found = from_first_rank(partial(self._sampled, model, prompts, sampling, progress, stop))
        agree_to_go_on(stop)
        return found

    def _connect(self, device: torch.device, wait_s: float) -> None:
        with self._served():
            made = _client_class(f"at {self._url} (`{self._command}`)")
            self._require_vllm()
            client = made(self._url, group_port=_free_port(), connection_timeout=wait_s)
            mode = client.get_server_info()["model_config"]["logprobs_mode"]
            if mode != PROCESSED:
                raise SourceUnreachableError(
                    f"the vLLM server at {self._url} gives {mode}, and importance weights need {PROCESSED}; start it "
                    f"with `{self._command}`"
                )
            client.init_communicator(device)
            self._client = client

    def _require_vllm(self) -> None:
        """Refuse another service under the address: TRL's client would wait for its health for ever."""
        try:
            urlopen(f"{self._url}/health", timeout=10).close()
        except HTTPError as error:
            raise SourceUnreachableError(
                f"what answers at {self._url} is not a vLLM server ({error}); start one with `{self._command}`"
            ) from error
        except OSError:
            return

    def _sampled(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Progress | None,
        stop: StopRequest | None,
    ) -> list[Answer]:
        with self._served():
            if self._changed():
                require_mergeable(model)
                self._client.update_named_params(weight_metadata(model), merged_weights(model))
                self._client.reset_prefix_cache()
                self._changed.sent()
            return self._ask_all(prompts, sampling, progress, stop)

    def _ask_all(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Progress | None,
        stop: StopRequest | None,
    ) -> list[Answer]:
        found = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = [pool.submit(self._ask, prompt, place, sampling) for place, prompt in enumerate(prompts)]
            try:
                for place, one in enumerate(waiting):
                    if asked(stop):
                        # The others wait for what the first rank is told, and agree on it afterwards.
                        pool.shutdown(wait=False, cancel_futures=True)
                        return []
                    if progress is not None:
                        progress(place, len(prompts))
                    found.append(one.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if progress is not None:
            progress(len(prompts), len(prompts))
        return found

    def _ask(self, prompt: Sequence[int], place: int, sampling: Sampling) -> Answer:
        asked = _asked(sampling, place, self._stop_ids)
        named = {key: asked.pop(key) for key in ("repetition_penalty", "temperature", "top_p", "top_k", "min_p")}
        reply = self._client.generate(
            [list(prompt)],
            max_tokens=asked.pop("max_tokens"),
            logprobs=asked.pop("logprobs"),
            generation_kwargs=asked,
            **named,
        )
        ids = reply["completion_ids"][0]
        if sampling.temperature is None:
            return cut_at_stop(ids, self._stop_ids)
        told = (
            [] if reply["logprobs"] is None else zip(reply["logprob_token_ids"][0], reply["logprobs"][0], strict=True)
        )
        return _answer(ids, [dict(zip(*each, strict=True)) for each in told], self._stop_ids)

    @contextmanager
    def _served(self) -> Iterator[None]:
        """Errors of the connection and of the server, in a sentence."""
        again = f"start it on a GPU that training leaves free with `{self._command}`, and run the same command again"
        try:
            yield
        except TrivetError:
            raise
        except OSError as error:
            raise SourceUnreachableError(
                f"no vLLM server answers at {self._url} ({_first_line(error)}); {again}"
            ) from error
        except Exception as error:
            # TRL has no narrower class for what the server refuses, nor vLLM for what NCCL loses.
            if not str(error).startswith(("Request failed", "NCCL error", "The vLLM server")):
                raise
            raise SourceUnreachableError(
                f"the vLLM server at {self._url} failed: {_first_line(error)}; {again}"
            ) from error


class ColocatedEngine:
    """Samples with a vLLM engine in each process, on the GPU that trains; prompts are shared out over the ranks.

    Args:
        roles: whose policy samples.
        base: the base model's folder.
        stop_ids: ids that end an answer.
        ranks: this process among its peers; every rank must make the same calls.
        memory: share of the GPU for weights, keys and values.
        longest: tokens of the longest prompt with its answer.
        batch_size: answers under way at a time.
        device: that trains.

    Raises:
        SourceUnreachableError: vLLM is not installed.
        TrivetError: the engine does not start.
    """

    def __init__(
        self,
        roles: Roles,
        base: Path,
        stop_ids: tuple[int, ...],
        ranks: Ranks,
        *,
        memory: float,
        longest: int,
        batch_size: int,
        device: torch.device,
    ):
        self._roles = roles
        self._stop_ids = stop_ids
        self._ranks = ranks
        self._changed = _Changed(roles)
        self._policy = _Policy(base)
        generation = _generation_class()
        try:
            self._vllm = generation(
                self._policy, _peers(ranks, device), None, mode="colocate", gpu_memory_utilization=memory,
                max_model_length=longest, max_num_seqs=batch_size,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise TrivetError(
                f"vLLM does not start beside the trainer: {_first_line(error)}; change vllm.gpu_memory_utilization "
                f"({memory:g}), or use rollout_engine: generate"
            ) from error

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in the prompts' order, of the policy as it is now."""
        from vllm import SamplingParams

        mine = range(self._ranks.rank, len(prompts), self._ranks.world_size)
        if progress is not None:
            progress(0, len(mine))
        with self._roles.sampling() as model:
            if self._changed():
                require_mergeable(model)
                self._policy.weights = partial(merged_weights, model)
                self._vllm.sync_weights()
                self._changed.sent()
        how = [SamplingParams(n=1, **_asked(sampling, place, self._stop_ids)) for place in mine]
        ids = [{"prompt_token_ids": list(prompts[place])} for place in mine]
        # vLLM answers all at once or not at all.
        ids = [] if asked(stop) else ids
        found = self._vllm.llm.generate(ids, sampling_params=how, use_tqdm=False) if ids else []
        if progress is not None:
            progress(len(mine), len(mine))
        agree_to_go_on(stop)
        return gather_lists([self._answer(one.outputs[0], sampling) for one in found])

    def _answer(self, output: Any, sampling: Sampling) -> Answer:
        if sampling.temperature is None:
            return cut_at_stop(output.token_ids, self._stop_ids)
        told = [{token: each.logprob for token, each in entry.items()} for entry in output.logprobs or []]
        return _answer(output.token_ids, told, self._stop_ids)


class _Changed:
    """Whether the policy's weights are other ones than those that were sent."""

    def __init__(self, roles: Roles):
        self._roles = roles
        self._sent: tuple[int, ...] | None = None

    def __call__(self) -> bool:
        return self._sent != fingerprint(self._roles.trainable(POLICY))

    def sent(self) -> None:
        self._sent = fingerprint(self._roles.trainable(POLICY))


class _Policy(torch.nn.Module):
    """A model as VLLMGeneration looks at one: a folder to start from, and weights by name, the policy's merged ones."""

    def __init__(self, folder: Path):
        super().__init__()
        self.name_or_path = str(folder)
        self.weights: Callable[[], Iterator[tuple[str, Any]]] = lambda: iter(())

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """As the policy is now."""
        return self.weights()


def _peers(ranks: Ranks, device: torch.device) -> Any:
    """The processes as VLLMGeneration asks an Accelerator about them."""
    return SimpleNamespace(
        is_main_process=ranks.is_first,
        num_processes=ranks.world_size,
        process_index=ranks.rank,
        local_process_index=ranks.local_rank,
        device=device,
        state=SimpleNamespace(deepspeed_plugin=None),
        wait_for_everyone=barrier,
    )


def _asked(sampling: Sampling, place: int, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Every sampling parameter that vLLM would else take from the model's own generation settings, or guess."""
    greedy = sampling.temperature is None
    return {
        "repetition_penalty": 1.0,
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "max_tokens": sampling.max_new_tokens,
        "logprobs": None if greedy else 0,
        "seed": place_seed(sampling.seed, place),
        "stop_token_ids": list(stop_ids),
        # Answers end at our stop ids, which name the EOS where it is one, and not at what its files add to them.
        "ignore_eos": True,
    }


def _answer(ids: Sequence[int], told: Sequence[dict[int, float | None]], stop_ids: Sequence[int]) -> Answer:
    """Pair each sampled token with what was told of its place.

    Raises:
        TrivetError: a token has no log-probability of its own.
    """
    logps = [entry.get(token) for token, entry in zip(ids, told, strict=False)]
    sound = [value for value in logps if value is not None]
    if len(sound) != len(ids) or len(told) != len(ids):
        raise TrivetError(
            f"vLLM gave {len(sound)} log-probabilities for an answer of {len(ids)} tokens, and importance weights need "
            "each; use rollout_engine: generate"
        )
    return cut_at_stop(ids, stop_ids, sound)


def _client_class(where: str) -> Any:
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise SourceUnreachableError(
            f"rollout_engine: vllm_server needs vLLM beside the trainer as well as for the server {where}; "
            "`pip install 'trl[vllm]'`, or use rollout_engine: generate"
        )
    from trl.generation.vllm_client import VLLMClient

    return VLLMClient


def _generation_class() -> Any:
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise SourceUnreachableError(
            "rollout_engine: vllm_colocate needs vLLM, which is not installed; `pip install 'trl[vllm]'`, or use "
            "rollout_engine: generate"
        )
    from trl.generation.vllm_generation import VLLMGeneration

    return VLLMGeneration


def _free_port() -> int:
    """For the transfer of weights: two runs on one machine must not meet on TRL's fixed one."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
