"""Rollouts by vLLM through TRL's client, against a fake: vLLM itself cannot be installed where these tests run.

TRL's code is the installed one. Faked are the package `vllm` (`fake_vllm`: NCCL is a queue in the process, packed as
vLLM packs) and the server (`served_model`: HTTP on this machine, a transformers model behind it), both written after
vLLM's sources. So requests, replies, names and values of weights are tested; NCCL, vLLM's own loading and sampling,
several GPUs, and the time any of it takes are not.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.batches import response_batch
from pipeline.errors import SourceUnreachableError, TrivetError
from pipeline.models.roles import POLICY, VALUE
from pipeline.rollouts.answers import Answer, Sampling, SamplingStopped
from pipeline.rollouts.generate import Generator
from pipeline.rollouts.merged import fingerprint, merged_weights, require_mergeable, weight_metadata
from pipeline.runtime import Ranks, StopRequest
from pipeline.stages import ppo_vllm
from pipeline.stages.ppo_vllm import ColocatedEngine, ServerEngine
from tests.rollouts.ppo_parts import ALONE, LORA, PAD, Parts, make_parts, stir
from tests.rollouts.served_model import OWN_STOPS, FakeServer

DORA = {"r": 4, "type": "dora"}
PROMPTS = [[1, 40, 41], [1, 42], [1, 43, 44, 45, 46, 47, 48, 49], [1, 50, 51, 52], [1], [1, 53]]
LENGTH = 10
TEMPERATURE = 0.8
SAMPLING = Sampling(LENGTH, TEMPERATURE, seed=3)
CUDA = torch.device("cuda")
"""TRL's client transfers weights from nothing else; without an index it only looks at the word."""


@pytest.fixture(params=[LORA], ids=["lora"])
def parts(request, lively_folder, tmp_path) -> Parts:
    """A policy that training has moved, beside a value and a reward role on the same base."""
    found = make_parts(tmp_path, lively_folder, request.param)
    move(found, seed=2)
    stir(((name, each) for name, each in found.policy.model.named_parameters() if f".{VALUE}." in name), seed=9)
    return found


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def move(parts: Parts, seed: int) -> None:
    """What a rollout's optimiser steps do."""
    trainable = {id(parameter) for parameter in parts.roles.trainable(POLICY)}
    named = [(name, each) for name, each in parts.policy.model.named_parameters() if id(each) in trainable]
    stir(named, seed)


@pytest.fixture
def server(fake_vllm, lively_folder) -> Iterator[FakeServer]:
    """It was started with the base model."""
    from vllm.distributed.weight_transfer import nccl_common

    nccl_common.WIRE = queue.Queue()
    found = FakeServer(str(lively_folder), nccl_common.WIRE, fake_vllm.__version__)
    yield found
    found.stop()


@pytest.fixture
def impatient(monkeypatch) -> None:
    """No pauses between attempts."""
    monkeypatch.setattr("urllib3.util.retry.time.sleep", lambda seconds: None)


def engine(parts: Parts, server: FakeServer, stop_ids: tuple[int, ...] = (2,)) -> ServerEngine:
    return ServerEngine(parts.roles, server.url, Path("the/base"), stop_ids, CUDA, wait_s=0.0)


def colocated(parts: Parts, base: Path, ranks: Ranks = ALONE, stop_ids: tuple[int, ...] = (2,)) -> ColocatedEngine:
    return ColocatedEngine(
        parts.roles, base, stop_ids, ranks, memory=0.25, longest=99, batch_size=7, device=torch.device("cpu")
    )


def generated(parts: Parts, stop_ids: tuple[int, ...] = (2,)) -> list[Answer]:
    """What the policy itself says, greedily."""
    with parts.roles.sampling() as model:
        return Generator(model, PAD, stop_ids, 6, "fp32", ALONE).answers(PROMPTS, Sampling(LENGTH))


@torch.no_grad()
def apart(parts: Parts, answers: list[Answer], temperature: float = TEMPERATURE) -> float:
    """Largest |log-probability of sampler less trainer| of the answers' tokens."""
    batch = response_batch(PROMPTS, [answer.ids for answer in answers], PAD)
    mine = parts.roles.logps(POLICY, batch, temperature).logps_BR
    found = 0.0
    for row, answer in zip(mine, answers, strict=True):
        assert answer.logps is not None and len(answer.logps) == len(answer.ids)
        found = max(found, float((row[: len(answer.ids)] - torch.tensor(answer.logps)).abs().max()))
    return found


# Merging


@pytest.mark.parametrize("parts", [LORA, DORA, "none"], ids=["lora", "dora", "full"], indirect=True)
def test_merged_weights_are_the_policy(parts, lively_folder):
    """Under the base's names, without a trace of other roles' adapters; and the model is left bit for bit as it was."""
    before = weights(parts.policy.model)
    with parts.roles.sampling() as model:
        sent = list(merged_weights(model))
        assert weight_metadata(model) == [(name, "float32", list(tensor.shape)) for name, tensor in sent]
    after = weights(parts.policy.model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    plain = AutoModelForCausalLM.from_pretrained(lively_folder).eval()
    assert [name for name, _ in sent] == [name for name, _ in plain.named_parameters()]
    apart_from_base = [not torch.equal(tensor, own) for (_, tensor), own in zip(sent, plain.parameters(), strict=True)]
    assert sum(apart_from_base) >= 14, "seven layers of each of two blocks are adapted"
    plain.load_state_dict(dict(sent), strict=False)
    batch = response_batch(PROMPTS, [[60, 61, 62]] * 6, PAD)
    ids, mask, places = batch.ids_BT, batch.mask_BT, batch.positions_BT
    logits = plain(input_ids=ids, attention_mask=mask.long(), position_ids=places).logits
    with parts.roles.sampling() as model:
        wanted = model(input_ids=ids, attention_mask=mask.long(), position_ids=places).logits
    assert torch.allclose(logits[mask], wanted[mask], atol=1e-4)


def test_merging_and_unmerging_as_trl_does_it_drifts(parts):
    """Control: what the other way would do to everybody's base."""
    before = weights(parts.policy.model)
    with parts.roles.sampling() as model:
        model.merge_adapter()
        model.unmerge_adapter()
    after = weights(parts.policy.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_trl_on_its_own_sends_the_base(parts, fake_vllm):
    """Control: by the time that vLLM packs the last gigabyte, TRL's generator has subtracted the adapter again."""
    from trl.generation.vllm_generation import VLLMGeneration
    from vllm.distributed.weight_transfer import nccl_common
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

    its = VLLMGeneration.__new__(VLLMGeneration)
    its._dist = type("Alone", (), {"gather_params": lambda self, _: torch.no_grad(), "is_fsdp": False})()
    with parts.roles.sampling() as model:
        its.model = model
        wanted = torch.cat([tensor.flatten() for _, tensor in merged_weights(model)])
        with parts.policy.model.disable_adapter():
            base = torch.cat([each.flatten() for name, each in model.named_parameters() if "lora_" not in name])
        for weights_of, value, other in (
            (its._iter_named_params, base, wanted),
            (lambda: merged_weights(model), wanted, base),
        ):
            nccl_common.WIRE = queue.Queue()
            packed_nccl_broadcast_producer(iter(weights_of()), nccl_common.Group(), 0, lambda item: item[1])
            arrived = nccl_common.WIRE.get().view(torch.float32)
            assert torch.allclose(arrived, value, atol=1e-5) and not torch.allclose(arrived, other, atol=1e-2)


def test_an_adapter_on_tied_embeddings_is_refused(lively_folder, tmp_path):
    """The embedding would carry the adapter, and with it the output head, which has none."""
    for modules, refused in ((["embed_tokens"], True), (["q_proj", "v_proj"], False)):
        found = make_parts(tmp_path / modules[0], lively_folder, {"r": 4, "target_modules": modules}, members=0)
        if refused:
            with pytest.raises(TrivetError, match="cannot be merged for vLLM"):
                require_mergeable(found.policy.model)
        else:
            require_mergeable(found.policy.model)


def test_a_fingerprint_sees_every_way_of_writing():
    parameter = torch.nn.Parameter(torch.randn(50, 40))
    seen = {fingerprint([parameter])}
    parameter.data[3, 4] *= 1 + 1e-6
    seen.add(fingerprint([parameter]))
    parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([parameter], lr=1e-4).step()
    seen.add(fingerprint([parameter]))
    assert len(seen) == 3 and fingerprint([parameter]) in seen


# The server


@pytest.mark.parametrize("fake_vllm", ["0.24.0", "0.27.1", "0.30.0"], indirect=True)
def test_the_server_answers_with_the_policy_as_it_is(parts, server):
    made = engine(parts, server)
    before = weights(parts.policy.model)
    assert made.answers(PROMPTS, Sampling(LENGTH)) == generated(parts)
    assert apart(parts, made.answers(PROMPTS, SAMPLING)) < 1e-4
    move(parts, seed=3)
    first = generated(parts)
    assert made.answers(PROMPTS, Sampling(LENGTH)) == first
    assert apart(parts, made.answers(PROMPTS, SAMPLING)) < 1e-4
    assert len({tuple(answer.ids) for answer in first}) > 3
    after = weights(parts.policy.model)
    frozen = [name for name in before if ".default." not in name]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)


def test_stale_weights_would_show(parts, server, monkeypatch):
    """Control: the policy moves and is not sent."""
    made = engine(parts, server)
    assert apart(parts, made.answers(PROMPTS, SAMPLING)) < 1e-4
    monkeypatch.setattr(type(made._client), "update_named_params", lambda *_: None)
    move(parts, seed=3)
    assert apart(parts, made.answers(PROMPTS, SAMPLING)) > 0.1
    assert made.answers(PROMPTS, Sampling(LENGTH)) != generated(parts)


def test_a_stale_prefix_would_show(parts, server, monkeypatch):
    """Control: the weights are sent, but what the server remembers of the prompts is from before."""
    made = engine(parts, server)
    made.answers(PROMPTS, SAMPLING)
    monkeypatch.setattr(type(made._client), "reset_prefix_cache", lambda self: None)
    move(parts, seed=3)
    assert apart(parts, made.answers(PROMPTS, SAMPLING)) > 0.1


@pytest.mark.parametrize("parts", [LORA, DORA, "none"], ids=["lora", "dora", "full"], indirect=True)
def test_weights_are_sent_when_they_changed(parts, server):
    made = engine(parts, server)
    assert "/update_weights" not in server.calls
    for _ in range(2):
        assert apart(parts, made.answers(PROMPTS, SAMPLING)) < 1e-4
        assert server.calls.count("/update_weights") == 1
    with parts.roles.sampling():
        pass
    with torch.no_grad():
        parts.roles.values(response_batch(PROMPTS, [[60]] * 6, PAD))
    move(parts, seed=3)
    for _ in range(2):
        assert apart(parts, made.answers(PROMPTS, SAMPLING)) < 1e-4
        assert server.calls.count("/update_weights") == 2
    steps = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
    assert [call for call in server.calls if call in steps] == steps * 2
    assert server.calls.index("/reset_prefix_cache") < server.calls.index("/v1/completions")


def test_what_is_asked_for(parts, server):
    """Everything said, nothing left to the model's own settings, which the fake refuses; noise of its own for each."""
    made = engine(parts, server, stop_ids=(2, 7))
    first = made.answers(PROMPTS, SAMPLING)
    asked = sorted(server.asked, key=lambda body: PROMPTS.index(body["prompt"]))
    assert [body["prompt"] for body in asked] == PROMPTS
    for body in asked:
        assert {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")} == {
            "temperature": TEMPERATURE, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0
        }  # fmt: skip
        assert (body["n"], body["max_tokens"], body["logprobs"]) == (1, LENGTH, 0)
        assert body["stop_token_ids"] == [2, 7] and body["ignore_eos"]
    assert len({body["seed"] for body in asked}) == len(PROMPTS)
    assert made.answers(PROMPTS, SAMPLING) == first
    assert made.answers(PROMPTS, Sampling(LENGTH, TEMPERATURE, seed=4)) != first
    alike = made.answers([[1, 40]] * 8, SAMPLING)
    assert len({tuple(answer.ids) for answer in alike}) == 8


@pytest.mark.parametrize("where", ["server", "colocated"])
def test_answers_end_at_our_stop_ids(parts, server, lively_folder, where):
    """Several of them, each kept with its log-probability; not at what the model's files call an end."""
    free = generated(parts, stop_ids=())
    stop_ids = (2, free[0].ids[2], free[3].ids[5])
    made = engine(parts, server, stop_ids) if where == "server" else colocated(parts, lively_folder, ALONE, stop_ids)
    found = made.answers(PROMPTS * 4, Sampling(20, TEMPERATURE, seed=6))
    assert {answer.stopped for answer in found} == {True, False}
    for answer in found:
        assert answer.logps is not None and len(answer.logps) == len(answer.ids)
        assert [token for token in answer.ids if token in stop_ids] == answer.ids[-1:] * answer.stopped
        assert answer.stopped or len(answer.ids) == 20
    assert any(set(answer.ids[:-1]) & set(OWN_STOPS) for answer in found)
    cut = [Answer(each.ids, each.stopped, each.logps) for each in found[: len(PROMPTS)]]
    assert apart(parts, cut) < 1e-4
    assert apart(parts, cut, temperature=1.0) > 0.1, "log-probabilities are those of the tempered policy"


def test_progress(parts, server):
    seen: list[tuple[int, int]] = []
    engine(parts, server).answers(PROMPTS, SAMPLING, lambda *at: seen.append(at))
    assert seen == [(done, 6) for done in range(7)]


def test_a_request_to_stop_leaves_the_rest_unasked(parts, server):
    stop = StopRequest()
    with pytest.raises(SamplingStopped):
        engine(parts, server).answers(PROMPTS, SAMPLING, lambda done, total: setattr(stop, "asked", done == 2), stop)
    assert len(engine(parts, server).answers(PROMPTS, SAMPLING, None, StopRequest())) == len(PROMPTS)


@pytest.mark.parametrize(
    "tell", [lambda logps: logps[:-1], lambda logps: [math.nan] * len(logps)], ids=["too few", "undefined"]
)
def test_log_probabilities_must_be_there(parts, server, tell):
    made = engine(parts, server)
    server.tell = tell
    with pytest.raises(TrivetError, match=r"log-probabilities for an answer of \d+ tokens"):
        made.answers(PROMPTS, SAMPLING)


def test_other_ranks_leave_the_server_alone(parts, server, monkeypatch):
    """They take over what the first one was given."""
    wanted = engine(parts, server).answers(PROMPTS, SAMPLING)
    calls = list(server.calls)
    monkeypatch.setattr(ppo_vllm, "from_first_rank", lambda compute: wanted)
    assert engine(parts, server).answers(PROMPTS, SAMPLING) == wanted
    assert server.calls == calls


@pytest.mark.slow
def test_two_ranks(lively_folder, tmp_path):
    """In two processes: both get all answers from either engine, the same ones, and the same error."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ, "PYTHONPATH": f"{here.parent.parent}:{here / 'fake_vllm'}", "FAKE_VLLM_VERSION": "0.30.0"
    }  # fmt: skip
    done = subprocess.run(
        [*command, str(here / "two_ranks.py"), str(lively_folder), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one["server"] == one["colocated"] and len(one["server"]) == 7
    assert "no vLLM server answers" in one["error"][0]


# Errors


def message(parts: Parts, url: str, **options: Any) -> str:
    """One sentence of exit code 69 that names the address and how to start a server there."""
    with pytest.raises(SourceUnreachableError) as found:
        ServerEngine(parts.roles, url, Path("the/base"), (2,), CUDA, **{"wait_s": 0.0, **options})
    text = str(found.value)
    assert found.value.exit_code == 69 and "\n" not in text
    assert url in text and f"`trl vllm-serve --model the/base --port {url.rsplit(':', 1)[1]}`" in text
    return text


def test_vllm_is_not_installed(parts, lively_folder):
    assert "needs vLLM beside the trainer" in message(parts, "http://127.0.0.1:8000")
    with pytest.raises(SourceUnreachableError, match=r"vllm_colocate needs vLLM.*pip install 'trl\[vllm\]'"):
        colocated(parts, lively_folder)


def test_no_server(parts, fake_vllm):
    assert "no vLLM server answers" in message(parts, "http://127.0.0.1:9")


def test_another_service_under_the_address(parts, server):
    server.refuse = "/health"
    assert "is not a vLLM server (HTTP Error 400" in message(parts, server.url)


@pytest.mark.parametrize(
    "setting,value,words",
    [
        ("logprobs_mode", "raw_logprobs", "gives raw_logprobs, and importance weights need processed_logprobs"),
        ("weight_transfer", None, "has no weight-transfer engine"),
        ("refuse", "/server_info", "Request failed: 400"),
    ],
)
def test_a_server_without_the_settings(parts, server, setting, value, words):
    setattr(server, setting, value)
    assert words in message(parts, server.url)


@pytest.mark.parametrize("path", ["/v1/completions", "/reset_prefix_cache", "/start_weight_update"])
def test_a_server_that_refuses(parts, server, path):
    """And what could not be sent, or not be forgotten, is sent again."""
    made = engine(parts, server)
    server.refuse = path
    with pytest.raises(SourceUnreachableError, match=r"failed: Request failed: 400.*trl vllm-serve") as found:
        made.answers(PROMPTS, SAMPLING)
    assert server.url in str(found.value)
    server.refuse = ""
    assert apart(parts, made.answers(PROMPTS, SAMPLING)) < 1e-4


def test_a_server_that_dies(parts, server, impatient):
    made = engine(parts, server)
    made.answers(PROMPTS, SAMPLING)
    server.stop()
    made._client.session.close()
    with pytest.raises(SourceUnreachableError, match=r"no vLLM server answers at .*trl vllm-serve") as found:
        made.answers(PROMPTS, SAMPLING)
    assert server.url in str(found.value) and "\n" not in str(found.value)


def test_a_server_that_is_starting_is_waited_for(parts, server, monkeypatch):
    """It refuses the connection at first."""
    seen = []

    def refused(url: str, timeout: float) -> Any:
        seen.append(url)
        raise ConnectionRefusedError(111, "not yet")

    monkeypatch.setattr(ppo_vllm, "urlopen", refused)
    engine(parts, server)
    assert seen == [f"{server.url}/health"]


# Beside the trainer


def test_the_colocated_engine_answers_with_the_policy_as_it_is(parts, fake_vllm, lively_folder):
    made = colocated(parts, lively_folder)
    llm = fake_vllm.STARTED[-1]
    assert llm.options["model"] == str(lively_folder) and llm.options["logprobs_mode"] == "processed_logprobs"
    told = {name: llm.options[name] for name in ("gpu_memory_utilization", "max_model_len", "max_num_seqs")}
    assert told == {"gpu_memory_utilization": 0.25, "max_model_len": 99, "max_num_seqs": 7}
    before = weights(parts.policy.model)
    for seed in (3, 4):
        assert made.answers(PROMPTS, Sampling(LENGTH)) == generated(parts)
        first = made.answers(PROMPTS, SAMPLING)
        assert apart(parts, first) < 1e-4
        assert made.answers(PROMPTS, SAMPLING) == first
        move(parts, seed)
    after = weights(parts.policy.model)
    assert all(torch.equal(before[name], after[name]) for name in before if ".default." not in name)
    assert len({body["seed"] for body in llm.asked[-len(PROMPTS) :]}) == len(PROMPTS)
    made._vllm.sync_weights = lambda: None
    assert apart(parts, made.answers(PROMPTS, SAMPLING)) > 0.1, "control: not sent"


def test_server_and_colocated_engine_agree(parts, server, lively_folder):
    """Same seeds, same requests."""
    one = engine(parts, server).answers(PROMPTS, SAMPLING)
    other = colocated(parts, lively_folder).answers(PROMPTS, SAMPLING)
    assert [(answer.ids, answer.stopped) for answer in one] == [(answer.ids, answer.stopped) for answer in other]


def test_each_rank_answers_its_share(parts, fake_vllm, lively_folder):
    """With the noise that belongs to the prompt's place."""
    whole = colocated(parts, lively_folder).answers(PROMPTS, SAMPLING)
    for rank in (0, 1):
        assert colocated(parts, lively_folder, Ranks(rank, rank, 2)).answers(PROMPTS, SAMPLING) == whole[rank::2]
    assert colocated(parts, lively_folder).answers([], SAMPLING) == []


def test_an_engine_that_does_not_start(parts, fake_vllm, lively_folder):
    with pytest.raises(TrivetError, match=r"Free memory on device.*change vllm\.gpu_memory_utilization \(0\.99\)"):
        ColocatedEngine(
            parts.roles, lively_folder, (2,), ALONE, memory=0.99, longest=9, batch_size=1, device=torch.device("cpu")
        )
