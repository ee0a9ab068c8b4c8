"""What stands behind a fake vLLM: a transformers model that is sent weights and completes prompts, server or not."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM

OWN_SETTINGS = {"top_k": 3, "top_p": 0.5, "min_p": 0.4, "repetition_penalty": 4.0, "temperature": 3.0}
"""Of the model's generation_config.json: vLLM takes from it what a request leaves open. Here all of it is refused."""
OWN_STOPS = tuple(range(100, 180))
"""EOS ids of that file, at which vLLM stops as well unless `ignore_eos`."""


class ServedModel:
    """Samples by the request's own generator; remembers what it read of a prompt, as a prefix cache does."""

    def __init__(self, folder: str):
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._read: dict[tuple[int, ...], torch.Tensor] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.model.named_parameters())
        for name, tensor in weights:
            assert own[name].shape == tensor.shape, name
            own[name].copy_(tensor)

    def reset_prefix_cache(self) -> None:
        self._read.clear()

    @torch.no_grad()
    def complete(self, prompt: list[int], asked: dict[str, Any]) -> tuple[list[int], list[float] | None]:
        how = {**OWN_SETTINGS, **asked}
        assert (how["top_p"], how["min_p"], how["repetition_penalty"]) == (1.0, 0.0, 1.0) and how["top_k"] in (0, -1)
        stops = set(asked["stop_token_ids"]) | (set() if asked.get("ignore_eos") else set(OWN_STOPS))
        noise = torch.Generator().manual_seed(asked["seed"])
        ids: list[int] = []
        logps: list[float] = []
        with self._lock:
            while len(ids) < asked["max_tokens"] and not stops & set(ids):
                whole = (*prompt, *ids)
                if ids or whole not in self._read:
                    logits = self.model(input_ids=torch.tensor([whole])).logits[0, -1]
                    self._read.update({} if ids else {whole: logits})
                logits = logits if ids else self._read[whole]
                scores = torch.log_softmax(logits / (how["temperature"] or 1.0), -1)
                token = int(
                    torch.multinomial(scores.exp(), 1, generator=noise) if how["temperature"] else scores.argmax()
                )
                ids.append(token)
                logps.append(float(scores[token]))
        return ids, logps if asked["logprobs"] is not None else None


class FakeServer:
    """vLLM's server as TRL's client calls it, in development mode, on a free port of this machine.

    Attributes to change what it does: `logprobs_mode`, `weight_transfer`, `refuse` (a path), `tell` (of log-probs).
    """

    def __init__(self, folder: str, wire: Any = None, version: str = "0.24.0"):
        self.served = ServedModel(folder)
        self.wire = wire
        self.new_wire = version >= "0.28"
        self.logprobs_mode = "processed_logprobs"
        self.weight_transfer: Any = {"backend": "nccl"}
        self.refuse = ""
        self.calls: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.tell = lambda logps: logps
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._reply(None)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                self._reply(json.loads(self.rfile.read(length) or b"null"))

            def _reply(self, body: Any) -> None:
                path = self.path.split("?")[0]
                server.calls.append(path)
                found = None if path == server.refuse else server.answer(path, body)
                data = json.dumps({"error": "no"} if found is None else found).encode()
                self.send_response(400 if found is None else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "served"}]}
        if path == "/server_info":
            return {"vllm_config": {
                "weight_transfer_config": self.weight_transfer, "model_config": {"logprobs_mode": self.logprobs_mode}
            }}  # fmt: skip
        if path == "/get_world_size":
            return {"world_size": 1}
        if path == "/init_weight_transfer_engine":
            assert body["init_info"].get("packed", False) == self.new_wire
        if path == "/update_weights":
            assert self.calls[-2] == "/start_weight_update"
            self._receive(body["update_info"])
        if path == "/reset_prefix_cache":
            self.served.reset_prefix_cache()
        if path == "/v1/completions":
            return self._complete(body)
        return {}

    def _receive(self, info: dict[str, Any]) -> None:
        assert info.get("packed", False) != self.new_wire
        kinds = [getattr(torch, name) for name in info["dtype_names"]]
        sizes = [math.prod(shape) * kind.itemsize for shape, kind in zip(info["shapes"], kinds, strict=True)]
        packs: list[torch.Tensor] = []
        while sum(pack.numel() for pack in packs) < sum(sizes):
            packs.append(self.wire.get(timeout=10))
        parts = torch.cat(packs).split(sizes)
        self.served.load_weights(
            (name, part.clone().view(kind).view(shape))
            for name, part, kind, shape in zip(info["names"], parts, kinds, info["shapes"], strict=True)
        )

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["model"] == "served" and body["return_token_ids"] and body["return_tokens_as_token_ids"]
        choices = []
        for prompt in body["prompt"]:
            self.asked.append({**body, "prompt": prompt})
            ids, logps = self.served.complete(prompt, body)
            names, told = [f"token_id:{token}" for token in ids], None
            if logps is not None:
                logps = self.tell(logps)
                tops = [{name: logp} for name, logp in zip(names, logps, strict=False)]
                told = {"tokens": names[: len(logps)], "token_logprobs": logps, "top_logprobs": tops}
            choices.append({"prompt_token_ids": prompt, "token_ids": ids, "logprobs": told})
        return {"choices": choices}
