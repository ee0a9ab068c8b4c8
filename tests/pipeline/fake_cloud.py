"""Stands in for the W&B library and the service behind it, and `trivet push` as a person types it."""

from __future__ import annotations

import struct
import types
from pathlib import Path

import pytest

from pipeline.cli import main


class Cloud(types.ModuleType):
    """Keeps runs by id as the service does: a resumed run goes on behind its last step, earlier ones are dropped."""

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.fail_at = {}, None
        self.artefacts = {}
        """Name to the contents of its versions: the same content again is no second version."""

    def Settings(self, **keywords):
        return keywords

    def Table(self, columns, data):
        return columns, data

    class Artifact:
        def __init__(self, name, type, metadata):
            self.name, self.type, self.metadata, self.files = name, type, metadata, {}

        def add_file(self, path, name, policy, skip_cache):
            assert (policy, skip_cache) == ("immutable", True)
            self.files[name] = Path(path).read_bytes()

    def keep(self, artifact):
        versions = self.artefacts.setdefault((artifact.type, artifact.name), [])
        if artifact.files not in versions:
            versions.append(artifact.files)
        return f"{artifact.name}:v{versions.index(artifact.files)}"

    def init(self, **options):
        run = self.runs.setdefault(
            options["id"], {"options": options, "history": [], "summary": {}, "finished": 0, "used": [], "made": {}}
        )
        cloud = self

        class Run:
            starting_step = run["history"][-1][0] + 1 if run["history"] else 0
            summary = run["summary"]

            def log(self, values, step):
                if cloud.fail_at == step:
                    cloud.fail_at = None
                    raise ConnectionError("gone")
                assert not run["history"] or step > run["history"][-1][0], "the service drops such a step"
                run["history"].append((step, dict(values)))

            def use_artifact(self, artifact):
                assert options["mode"] == "online", "the library refuses this offline"
                self._log_artifact(artifact, [], True, True)

            def _log_artifact(self, artifact, aliases, is_user_created, use_after_commit):
                assert is_user_created and use_after_commit and not aliases
                if (version := cloud.keep(artifact)) not in run["used"]:
                    run["used"].append(version)

            def log_artifact(self, artifact, aliases):
                run["made"][cloud.keep(artifact)] = aliases

            def finish(self):
                run["finished"] += 1

        return Run()

    def by_stage(self):
        return {run["options"]["job_type"]: run for run in self.runs.values()}


def push(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["push", *map(str, arguments)])
    return ended.value.code


def records_of(path):
    """Records of a `.wandb` file: a LevelDB log behind a header of 7 bytes, in blocks of 32 KiB."""
    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []
