"""What the tests of engines share: a lively base model, and a fake vLLM where the real one cannot be installed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.rollouts.ppo_parts import lively_base


@pytest.fixture(scope="session")
def lively_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose words depend strongly on what it reads."""
    return lively_base(tmp_path_factory.mktemp("lively"), tiny_folder)


@pytest.fixture
def fake_vllm(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`import vllm` finds the fake one, and TRL sees it; the version may be given as a parameter.

    TRL's colocated engine writes RANK and its like into the environment, for which the next trainer of this process
    would take itself for a rank of a launch.
    """

    def ours() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == "vllm" or name.startswith("trl.generation")]

    monkeypatch.setenv("FAKE_VLLM_VERSION", getattr(request, "param", "0.24.0"))
    kept = {name: sys.modules.pop(name) for name in ours()}
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "fake_vllm"))
    with patch.dict(os.environ):
        yield importlib.import_module("vllm")
    for name in ours():
        del sys.modules[name]
    sys.modules.update(kept)
