"""Atomic writes: the old text or the new, whatever happens in between; a full disk named in one sentence."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from pipeline.durable import (
    full_disk_named,
    json_lines,
    read_json,
    require_room,
    sha256_file,
    sha256_json,
    size_told,
    write_json_atomically,
    write_text_atomically,
)
from pipeline.errors import DiskError
from pipeline.runtime import ROOT


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it and carry on."""


def test_written_text_is_there_whole_and_alone(tmp_path):
    write_text_atomically(tmp_path / "a.txt", "one\n")
    write_text_atomically(tmp_path / "a.txt", "zwei äöü\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "zwei äöü\n"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_killed_before_the_rename_leaves_the_old_text(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    write_json_atomically(path, {"old": 1})

    def killed(*args):
        raise Killed

    monkeypatch.setattr(os, step, killed)
    with pytest.raises(Killed):
        write_json_atomically(path, {"new": 2})
    assert read_json(path) == {"old": 1}


def test_killed_after_the_rename_leaves_the_new_text(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json_atomically(path, {"old": 1})
    replace = os.replace

    def replaced_then_killed(*args):
        replace(*args)
        raise Killed

    monkeypatch.setattr(os, "replace", replaced_then_killed)
    with pytest.raises(Killed):
        write_json_atomically(path, {"new": 2})
    assert read_json(path) == {"new": 2}


def test_bytes_are_on_disk_before_the_name_is_and_the_name_after(tmp_path, monkeypatch):
    """The order that a power cut needs: flush the file, rename it, flush the folder."""
    happened = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(handle):
        happened.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def seen_replace(*args):
        happened.append("rename")
        replace(*args)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    write_text_atomically(tmp_path / "a", "text")
    assert happened == ["file", "rename", "folder"]


def test_a_real_kill_in_the_middle_of_many_writes_leaves_one_whole_text(tmp_path):
    """A process that rewrites a file without end is killed: what stands there parses, and is one of its texts."""
    path = tmp_path / "a.json"
    code = (
        "import sys, itertools; from pathlib import Path; from pipeline.durable import write_json_atomically as w\n"
        "for n in itertools.count():\n"
        "    w(Path(sys.argv[1]), {'n': n, 'text': 'x' * 20000}); n or print('started', flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert writer.stdout.readline() == b"started\n"
    for _ in range(200):
        assert len(read_json(path)["text"]) == 20000
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert len(read_json(path)["text"]) == 20000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1.0, float("-inf")]}])
def test_json_refuses_what_json_cannot_say_and_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "a.json"
    write_json_atomically(path, {"old": 1})
    with pytest.raises(ValueError, match=r"(?i)not json compliant|out of range"):
        write_json_atomically(path, value)
    with pytest.raises(ValueError):
        sha256_json(value)
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_hashes_are_known_values_and_blind_to_key_order(tmp_path):
    """SHA-256 of b"abc" is the standard's own example."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json(json.loads('{"b": [1, 2], "a": 1}'))
    different = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": None}, {"a": True}, {}]
    assert len({sha256_json(value) for value in different}) == len(different)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_with_the_folder_and_what_is_free(tmp_path, monkeypatch, number):
    path = tmp_path / "results.json"
    write_json_atomically(path, {"old": 1})

    def full(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError) as caught:
        write_json_atomically(path, {"new": 2})
    assert caught.value.exit_code == 74
    assert str(tmp_path) in str(caught.value) and "MB free" in str(caught.value)
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["results.json"], "what did not fit must not stay on the full disk"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 10401024 vs 10400916"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognised_in_the_words_of_libraries(tmp_path, error):
    with pytest.raises(DiskError, match="disk full"), full_disk_named(tmp_path / "not" / "yet" / "there"):
        raise error


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_disk_that_cannot_be_written_is_named(tmp_path, number):
    with pytest.raises(DiskError, match="cannot write") as caught, full_disk_named(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "gone"), Killed()])
def test_other_errors_pass_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as caught, full_disk_named(tmp_path):
        raise error
    assert caught.value is error


def test_a_named_full_disk_is_not_named_again(tmp_path):
    first = DiskError("disk full while writing to /inner")
    with pytest.raises(DiskError) as caught, full_disk_named(tmp_path):
        raise first
    assert caught.value is first


def test_a_really_full_disk(small_disk):
    path = small_disk / "a.json"
    write_json_atomically(path, {"old": 1})
    with pytest.raises(DiskError) as caught:
        write_json_atomically(path, {"new": "x" * 3_000_000})
    assert str(small_disk) in str(caught.value)
    assert read_json(path) == {"old": 1}
    assert os.listdir(small_disk) == ["a.json"]
    write_json_atomically(path, {"new": "x" * 300_000})
    assert len(read_json(path)["new"]) == 300_000


def test_what_does_not_fit_is_not_begun(small_disk):
    require_room(small_disk / "not" / "yet", 1_500_000)
    with pytest.raises(DiskError) as caught:
        require_room(small_disk / "not" / "yet", 3_000_000)
    said = str(caught.value)
    assert f"disk full while writing to {small_disk}" in said and "MB free, 3.0 MB needed" in said
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (99_999, "100.0 kB"),
        (100_000, "0.1 MB"),
        (3 * 10**9, "3,000.0 MB"),
    ],
)
def test_sizes_are_told_in_units_that_show_them(size, said):
    assert size_told(size) == said


def test_torch_and_safetensors_on_a_really_full_disk(small_disk):
    """The two writers of a checkpoint: neither says "disk full" as an OSError, both end as our sentence."""
    import torch
    from safetensors.torch import save_file

    big = {"w": torch.zeros(1_000_000)}
    for save in (lambda: torch.save(big, small_disk / "w.pt"), lambda: save_file(big, small_disk / "w.safetensors")):
        with pytest.raises(DiskError, match=r"disk full while writing to .* MB free"), full_disk_named(small_disk):
            save()


def test_lines_end_where_json_says(tmp_path):
    """Not at separators that stand in a text, as models write them, and a last line may be torn within a character."""
    texts = ["one\u2028line", "an\u0085other", "tab\x0b\x0c\x1c", "é"]
    path = tmp_path / "rows.jsonl"
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_bytes(rows.encode() + b"\n" + '{"text": "é'.encode()[:-1])
    *whole, torn = json_lines(path)
    assert [json.loads(line)["text"] for line in whole] == texts
    assert torn.startswith('{"text": "') and len(path.read_text(errors="replace").splitlines()) > 6
