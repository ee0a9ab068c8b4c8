"""Sealed artefacts: whatever was changed, lost or never finished is refused, by name and with a remedy."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from pipeline import artefact
from pipeline.artefact import (
    MANIFEST,
    SCHEMA_VERSION,
    BaseModelEntry,
    DamagedArtefactError,
    Manifest,
    MemoryEntry,
    ParentEntry,
    TokenizerEntry,
    is_sealed,
    open_artefact,
    seal,
    unseal,
)
from pipeline.errors import DiskError

KEY = "0123456789abcdef" * 4
TOKENIZER = TokenizerEntry(sha256="a", chat_template_sha256="b", vocabulary=9, pad_id=0, stop_ids=(2, 7), bos_id=1)


class Killed(BaseException):
    """Stands for SIGKILL."""


def manifest(**changes) -> Manifest:
    values = {
        "kind": "policy",
        "stage": "sft",
        "stage_kind": "sft",
        "key": KEY,
        "algorithm_version": 1,
        "settings": {"stage": {"learning_rate": 1e-4, "epochs": 1.0}, "seed": 17},
        "parents": (ParentEntry(role="init", stage="warm", key="f" * 64),),
        "base": BaseModelEntry(name="builtin:tiny-llama", revision=None, fingerprint="c"),
        "tokenizer": TOKENIZER,
        "form": "adapter",
        "seed": 17,
        "world_size": 2,
        "precision": "fp32",
        "device": "cpu",
        "code": {"commit": "abc", "dirty": False},
        "libraries": {"torch": "2"},
        "data": {"sft": {"train_rows": 3}},
        "metrics": {"eval_loss": 1.25, "eval_loss_before": None},
        "created": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    """Finished files of a stage, with what its work left lying about, not sealed yet."""
    folder = tmp_path / "sft-0123456789abcdef"
    for name, content in {
        "adapter/adapter_model.safetensors": b"\0weights" * 50,
        "adapter/adapter_config.json": b"{}",
        "metrics.jsonl": b'{"step": 1}\n',
        "train_prompts.txt": b"h1\nh2\n",
        "checkpoints/checkpoint-2/optimizer.pt": b"big",
        "work/before.json": b"{}",
        ".lock": b"",
        ".manifest.json.77.tmp": b"torn",
        "adapter/work": b"only at the top is this a working name",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refused(folder, **kwargs) -> str:
    with pytest.raises(DamagedArtefactError) as caught:
        open_artefact(folder, **kwargs)
    assert caught.value.exit_code == 1
    assert f"delete the folder {folder}" in str(caught.value) and "run the same command again" in str(caught.value)
    return str(caught.value)


def test_what_was_sealed_is_what_is_opened(folder):
    sealed = seal(folder, manifest())
    opened = open_artefact(folder)
    assert opened == sealed
    assert opened.manifest.model_copy(update={"files": (), "digest": ""}) == manifest()
    assert opened.weights == folder / "adapter"


def test_what_was_sealed_before_memory_was_counted_still_opens(folder):
    """And a figure that was put in, changed or taken out afterwards is an edit like any other."""
    seal(folder, manifest())
    written = json.loads((folder / MANIFEST).read_text())
    assert written.pop("memory") is None
    (folder / MANIFEST).write_text(json.dumps(written))
    assert open_artefact(folder).manifest.memory is None
    took = {"process_gib": 1.5, "gpu_gib": None}
    (folder / MANIFEST).write_text(json.dumps({**written, "memory": took}))
    assert "it was edited or damaged" in refused(folder)
    sealed = seal(folder, manifest(memory=MemoryEntry(**took)))
    assert open_artefact(folder) == sealed
    written = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**written, "memory": None}))
    assert "it was edited or damaged" in refused(folder)


def test_every_result_is_listed_and_no_working_file(folder):
    files = [entry.path for entry in seal(folder, manifest()).manifest.files]
    assert files == [
        "metrics.jsonl",
        "train_prompts.txt",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/work",
    ]
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "work")
    (folder / ".lock").unlink()
    open_artefact(folder)


def test_an_unsealed_folder_is_refused(folder):
    assert not is_sealed(folder)
    assert "no finished artefact" in refused(folder)
    assert "no finished artefact" in refused(folder.parent / "nothing")


def test_unsealing_takes_only_the_manifest_and_can_be_repeated(folder):
    seal(folder, manifest())
    unseal(folder)
    unseal(folder)
    assert not is_sealed(folder)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "metrics.jsonl", "adapter/adapter_config.json"])
def test_one_flipped_bit_anywhere_in_a_file_is_noticed(folder, name):
    seal(folder, manifest())
    content = (folder / name).read_bytes()
    for position in {0, len(content) // 2, len(content) - 1}:
        flipped = bytearray(content)
        flipped[position] ^= 1
        (folder / name).write_bytes(flipped)
        assert f"{folder / name} is not the file that was sealed" in refused(folder)
    (folder / name).write_bytes(content)
    open_artefact(folder)


def test_a_missing_cut_or_grown_file_is_named(folder):
    seal(folder, manifest())
    path = folder / "adapter" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert str(path) in refused(folder)
    path.write_bytes(content + b"\0")
    assert str(path) in refused(folder)
    path.unlink()
    assert f"{path} is missing" in refused(folder)
    path.mkdir()
    assert f"{path} is missing" in refused(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda written: written["metrics"].update(eval_loss=0.25),
        lambda written: written["settings"]["stage"].update(learning_rate=1e-3),
        lambda written: written.update(key="e" * 64),
        lambda written: written.update(world_size=1),
        lambda written: written["tokenizer"].update(pad_id=2),
        lambda written: written["parents"].clear(),
        lambda written: written["files"].pop(),
        lambda written: written["files"][0].update(sha256="0" * 64),
        lambda written: written.pop("digest"),
        lambda written: written.update(digest="0" * 64),
    ],
)
def test_an_edited_manifest_is_refused(folder, edit):
    seal(folder, manifest())
    written = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(written))
    open_artefact(folder)
    edit(written)
    (folder / MANIFEST).write_text(json.dumps(written))
    refused(folder)


def test_no_flipped_byte_of_a_manifest_passes_or_crashes(folder):
    """Every byte in turn: refused in a sentence, unless the JSON still says the same (white space)."""
    seal(folder, manifest())
    content = (folder / MANIFEST).read_bytes()
    meaning = json.loads(content)
    accepted = 0
    for position in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[position] ^= 4
        (folder / MANIFEST).write_bytes(flipped)
        try:
            open_artefact(folder)
        except DamagedArtefactError:
            continue
        assert json.loads(flipped) == meaning
        accepted += 1
    assert accepted < len(content) // 20


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"schema_version": "1"}', "\ufeff{}"])
def test_a_torn_manifest_is_refused(folder, text):
    seal(folder, manifest())
    (folder / MANIFEST).write_text(text)
    assert "cannot be read" in refused(folder)


def test_a_manifest_in_another_encoding_is_refused(folder):
    seal(folder, manifest())
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_text().encode("utf-16"))
    assert "cannot be read" in refused(folder)


@pytest.mark.parametrize("change", [{}, {"a_field_of_the_future": 1}])
def test_another_schema_is_named_as_such(folder, change):
    """Also where the other version has other fields: the version is read before anything else."""
    seal(folder, manifest())
    written = json.loads((folder / MANIFEST).read_text())
    written.update(schema_version=SCHEMA_VERSION + 1, **change)
    (folder / MANIFEST).write_text(json.dumps(written))
    assert f"schema {SCHEMA_VERSION + 1}, this one reads {SCHEMA_VERSION}" in refused(folder)


def test_an_artefact_under_another_ones_name_is_refused(folder):
    seal(folder, manifest())
    assert open_artefact(folder, KEY).manifest.key == KEY
    message = refused(folder, key="f" * 64)
    assert KEY[:16] in message and "f" * 16 in message


@pytest.mark.parametrize("moment", ["hashing", "rename"])
def test_killed_while_sealing_leaves_it_unsealed(folder, monkeypatch, moment):
    def killed(*args):
        raise Killed

    if moment == "hashing":
        monkeypatch.setattr(artefact, "sha256_file", killed)
    else:
        monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        seal(folder, manifest())
    monkeypatch.undo()
    assert not is_sealed(folder)
    refused(folder)
    seal(folder, manifest())
    open_artefact(folder)


def test_every_file_is_flushed_before_the_manifest_stands(folder, monkeypatch):
    flushed = set()
    fsync = os.fsync

    def seen(handle):
        if not is_sealed(folder):
            flushed.add(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    sealed = seal(folder, manifest())
    assert {str(folder / entry.path) for entry in sealed.manifest.files} <= flushed
    assert str(folder / "adapter") in flushed


def test_a_full_disk_while_sealing_names_the_folder_and_leaves_it_unsealed(folder, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=str(folder)):
        seal(folder, manifest())
    assert not is_sealed(folder)


def test_nan_in_a_metric_is_written_as_not_measured(folder):
    """JSON has no NaN, and a trained stage is not thrown away for one figure."""
    seal(folder, manifest(metrics={"eval_loss": float("nan"), "steps": 3}))
    assert "NaN" not in (folder / MANIFEST).read_text()
    assert open_artefact(folder).manifest.metrics == {"eval_loss": None, "steps": 3}


def test_names_outside_ascii_and_spaces_survive(folder):
    (folder / "adapter" / "größe 1.txt").write_text("x")
    seal(folder, manifest())
    assert "adapter/größe 1.txt" in [entry.path for entry in open_artefact(folder).manifest.files]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", "x"),
        ("chat_template_sha256", "x"),
        ("vocabulary", 10),
        ("pad_id", 2),
        ("stop_ids", (2,)),
        ("bos_id", None),
    ],
)
def test_tokenizers_differ_in_exactly_the_field_that_differs(field, value):
    assert TOKENIZER.differences(TOKENIZER) == []
    assert TOKENIZER.differences(TOKENIZER.model_copy(update={field: value})) == [field]
