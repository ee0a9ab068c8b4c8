"""What a supervisor tells a worker to do: plain data, sent as JSON. Layer 2."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.models.source import BaseIdentity
from pipeline.reward_function import RewardFunction

MOST_WORDS = 4000
"""Characters of a sentence that a worker ends with: what it says must fit into a pipe that nobody reads meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One stage to run, complete: a worker looks nothing up."""

    stage: str
    kind: str
    key: str
    algorithm_version: int
    settings: dict[str, Any]
    """What the key was made of, for the manifest."""
    recipe: dict[str, Any]
    folder: str
    run_dir: str
    parents: dict[str, str]
    """Role to artefact folder."""
    base: BaseIdentity
    base_folder: str
    console: int | None = None
    """File descriptor of the terminal, on the rank that speaks."""
    reward_function: RewardFunction | None = None
    """The user's own reward, where the command line names one."""
    exit_descriptor: int | None = None
    """File descriptor of a pipe that takes the exit code and sentence."""

    def to_json(self) -> str:
        """The assignment as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        function = values["reward_function"] and RewardFunction(**values["reward_function"])
        return cls(**{**values, "base": BaseIdentity(**values["base"]), "reward_function": function})
