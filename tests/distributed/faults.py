"""What is broken on purpose in a rank of `stages_of_a_rank.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.models import adapters
from pipeline.models.role_engine import RoleEngine
from pipeline.stages.ppo_engine import PolicyEngine
from pipeline.stages.sft_objective import Imitation
from pipeline.stages.sft_sequence_parallel import PieceTrainer


@contextmanager
def fault(what: str | None) -> Iterator[None]:
    """Within the block something is broken.

    Args:
        what: `emptied` saved adapters, a loss that is `nan` from step 2 on (`nan_in_pieces`: in the
            second rank's pieces alone), a `gradient` of PPO that is not finite,
            answers of which each four (`by_fours`) are sampled by themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        if what == "emptied":
            save = adapters.save

            def emptied(model: Any, folder: Path, *rest: Any) -> None:
                save(model, folder, *rest)
                path = folder / "adapter_model.safetensors"
                save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path, {"format": "pt"})

            patch.setattr(adapters, "save", emptied)
        if what == "nan":
            compute, calls = Imitation.compute, []

            def spoilt(self: Any, *arguments: Any) -> Any:
                calls.append(1)
                found = compute(self, *arguments)
                return replace(found, loss=found.loss * torch.nan) if len(calls) > 2 else found

            patch.setattr(Imitation, "compute", spoilt)
        if what == "nan_in_pieces":
            compute_loss, given = PieceTrainer.compute_loss, []

            def without_number(self: Any, model: Any, *arguments: Any, **named: Any) -> Any:
                def answering(**inputs: Any) -> Any:
                    given.append(1)
                    found = model(**inputs)
                    if len(given) > 4 and self.sharing.place == 1:
                        found.log_probs = found.log_probs * torch.nan
                    return found

                return compute_loss(self, answering, *arguments, **named)

            patch.setattr(PieceTrainer, "compute_loss", without_number)
        if what == "by_fours":
            answers = PolicyEngine.answers

            def by_fours(self: Any, prompts: Any, *rest: Any) -> Any:
                return [each for at in range(0, len(prompts), 4) for each in answers(self, prompts[at : at + 4], *rest)]

            patch.setattr(PolicyEngine, "answers", by_fours)
        if what == "gradient":
            backward = RoleEngine.backward
            patch.setattr(RoleEngine, "backward", lambda self, loss, last: backward(self, loss * torch.inf, last=last))
        yield
