"""Replies kept on disk, one file each, by everything that was asked: no question is paid for twice.

An evaluation that was interrupted, or is made again for another reason, goes on from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.judging.usage import Reply
from pipeline.durable import cache_folder, read_json, sha256_json, write_json_atomically


@dataclass(frozen=True, slots=True)
class ReplyCache:
    """Replies below a folder; safe for several threads and processes, as every file is written whole or not at all."""

    folder: Path

    @classmethod
    def shared(cls) -> ReplyCache:
        """The one of this user, beside the builtin models."""
        return cls(cache_folder() / "judge")

    def get(self, asked: Mapping[str, Any]) -> Reply | None:
        """The reply to a question; None where it was never asked, or its file is damaged."""
        try:
            kept = read_json(self._path(asked))
            # What was kept before tokens were counted has no usage.
            return Reply.counted(str(kept["reply"]), kept.get("usage")) if kept["asked"] == asked else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, asked: Mapping[str, Any], reply: Reply) -> None:
        """Keep a reply, and what it cost."""
        path = self._path(asked)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, {"asked": dict(asked), "reply": reply.text, "usage": reply.usage})

    def _path(self, asked: Mapping[str, Any]) -> Path:
        key = sha256_json(asked)
        return self.folder / key[:2] / f"{key}.json"
