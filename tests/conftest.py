"""What every test gets: no network, one thread, a cache of its own, and a tiny random model.

The settings below stand before any library is imported, since several of them are read at import.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1",
)  # fmt: skip

_LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0")


class NetworkTouchedError(OSError):
    """A test tried to leave this machine."""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Builtin models go to a folder of this session, unless the caller has one that holds them already."""
    os.environ.setdefault("TRIVET_CACHE", str(tmp_path_factory.mktemp("trivet-cache")))


@pytest.fixture(autouse=True)
def network_attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Refuse connections and look-ups beyond this machine, and fail the test even if the refusal was swallowed.

    A test of the guard itself clears the list.
    """
    attempts: list[str] = []

    def refuse(host: object) -> None:
        attempts.append(str(host))
        raise NetworkTouchedError(f"a test tried to reach {host}")

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX and not _is_local(address[0]):
                refuse(address)
            return original(self, address)

        return connect

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            refuse(host)
        return getaddrinfo(host, *args, **kwargs)

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield attempts
    assert not attempts, f"the test reached for the network: {attempts}"


def _is_local(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name in (None, "", socket.gethostname()) or str(name).startswith(_LOOPBACK)


@pytest.fixture(scope="session")
def tiny_folder(_own_cache: None) -> Path:
    """Folder of the builtin random Llama (two layers, bytes as tokens, ChatML)."""
    import torch

    from pipeline.models.builtin import materialise

    torch.set_num_threads(1)
    return materialise("builtin:tiny-llama")


@pytest.fixture
def tiny_tokenizer(tiny_folder: Path) -> Any:
    """Its tokenizer, fresh for each test."""
    from pipeline.models.load import load_tokenizer

    return load_tokenizer(tiny_folder, "auto")


@pytest.fixture
def tiny_model(tiny_folder: Path) -> Any:
    """The model itself, float32, in evaluation mode, fresh for each test."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture
def lively_model(tiny_model: Any) -> Any:
    """The tiny model with its weight matrices tenfold, so that what it says depends strongly on what it reads.

    As initialised its distribution is almost uniform (log-probabilities differ by 0.1), and a position or mask that
    is wrong hardly shows.
    """
    import torch

    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    return tiny_model


@pytest.fixture(autouse=True)
def _is_left_as_it_was() -> Iterator[None]:
    """What one test leaves in the process would be another's failure, in some order of the files and not in others."""
    launched = _launch()
    yield
    assert _launch() == launched, "the test left a launch's variables behind"
    distributed = sys.modules.get("torch.distributed")
    assert distributed is None or not distributed.is_initialized(), "the test left its process group behind"


def _launch() -> dict[str, str]:
    """What makes accelerate and DeepSpeed take this process for a rank of a launch."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name in names or name.startswith("ACCELERATE_")}
