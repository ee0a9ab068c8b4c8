"""The one reader of a sealed reward model: its scale, its members' folders, heads and adapters.

`reward_model.json` says how raw scores become one comparable number; every member of an ensemble has a folder of its
own (`adapter`, `adapter_2`, ... or `model`, `model_2`, ...). An adapter's file holds the head beside the adapter's own
tensors, and PEFT drops it without a word when the adapter goes onto a language model: it is read here. Layer 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from pipeline.algorithms.ensemble import aggregate_scores
from pipeline.artefact import Artefact
from pipeline.errors import TrivetError

SPEC = "reward_model.json"
HEAD_KEY = "base_model.model.score.weight"
"""The head's name in an adapter's file."""
_HEAD_KEYS = (HEAD_KEY, "score.weight")
"""There, and in the file of a full model."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MemberScale(_Record):
    """Mean and standard deviation of one member's raw scores on the reference answers."""

    offset: _Finite
    scale: _Positive


class RewardSpec(_Record):
    """How the members' raw scores become one score of mean 0 and deviation 1 on the reference answers."""

    offset: _Finite
    """Mean of `combine` on the reference answers."""
    scale: _Positive
    """Its standard deviation there."""
    members: Annotated[tuple[MemberScale, ...], Field(min_length=1)]
    aggregate: Literal["mean", "min", "mean_minus_variance"]
    variance_weight: _Positive
    n: Annotated[int, Field(gt=1)]
    """How many reference answers these figures rest on."""
    source: str
    """Which answers those were."""


def read_spec(artefact: Artefact) -> RewardSpec:
    """The scale of a sealed reward model, with its members' heads checked to be there.

    Raises:
        TrivetError: not a reward model, no or a damaged `reward_model.json`, or a member without a head.
    """
    stage = artefact.manifest.stage
    if artefact.manifest.kind != "reward_model":
        raise TrivetError(f"{stage} left a {artefact.manifest.kind}, not a reward model; name a stage of kind reward")
    path = artefact.path / SPEC
    remedy = f"remake it with `--force {stage}`"
    try:
        spec = RewardSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrivetError(f"{path} is missing, so scores of {stage} have no known scale; {remedy}") from error
    except ValidationError as error:
        raise TrivetError(f"{path} cannot be read ({str(error).splitlines()[0]}); {remedy}") from error
    folders = member_folders(artefact)
    if len(folders) != len(spec.members):
        raise TrivetError(f"{path} speaks of {len(spec.members)} members, {stage} has {len(folders)}; {remedy}")
    for folder in folders:
        _head_weight(folder)
    return spec


def member_name(form: str, index: int) -> str:
    """Folder of a member inside the artefact: `adapter`, `adapter_2`, ... (`form` is `adapter` or `model`)."""
    return form if index == 0 else f"{form}_{index + 1}"


def member_folders(artefact: Artefact) -> list[Path]:
    """Folders of all members' weights, in order."""
    found: list[Path] = []
    while (folder := artefact.path / member_name(artefact.manifest.form, len(found))).is_dir():
        found.append(folder)
    return found


def head_of(folder: Path) -> nn.Linear:
    """A member's scalar head in float32, on the CPU; whoever takes it decides whether it is trained.

    Raises:
        TrivetError: the files there hold no head of one number.
    """
    weight = _head_weight(folder)
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32)
    head.load_state_dict({"weight": weight.float()})
    return head


def adapter_state(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter without a head, by the names of the file."""
    return {name: tensor for name, tensor in _tensors(folder, None) if name not in _HEAD_KEYS}


def combine(scores_KB: Tensor, spec: RewardSpec) -> Tensor:
    """One score (B,) from the K members' raw scores: a single model's own; several are first centred and scaled."""
    if scores_KB.shape[0] != len(spec.members):
        raise ValueError(f"scores of {scores_KB.shape[0]} members, expected {len(spec.members)}")
    if len(spec.members) == 1:
        return scores_KB[0]
    offsets, scales = (
        torch.tensor(values, dtype=torch.float64, device=scores_KB.device)[:, None]
        for values in zip(*((member.offset, member.scale) for member in spec.members), strict=True)
    )
    centred = (scores_KB - offsets) / scales
    return aggregate_scores(centred, spec.aggregate, spec.variance_weight).to(scores_KB.dtype)


def normalise(scores_KB: Tensor, spec: RewardSpec) -> Tensor:
    """The members' raw scores as one (B,) of mean 0 and deviation 1 on the reference answers."""
    return (combine(scores_KB, spec) - spec.offset) / spec.scale


def _head_weight(folder: Path) -> Tensor:
    for _, tensor in _tensors(folder, _HEAD_KEYS):
        if tensor.dim() == 2 and tensor.shape[0] == 1:
            return tensor
        raise TrivetError(f"{folder} holds a head of shape {tuple(tensor.shape)}; a reward model's has one output")
    raise TrivetError(
        f"{folder} holds no reward head ({' or '.join(_HEAD_KEYS)} is in none of its .safetensors files): these are "
        "the weights of something else, or they were saved without their head"
    )


def _tensors(folder: Path, names: tuple[str, ...] | None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a folder's files, all of them or those of the given names."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                if names is None or name in names:
                    yield name, tensors.get_tensor(name)
