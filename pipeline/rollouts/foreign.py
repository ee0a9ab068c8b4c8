"""A reward model from elsewhere: any sequence-classification model with one output, its own tokenizer and template.

Layer 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from pipeline.batches import by_length, pad_right, positions
from pipeline.errors import SourceUnreachableError, TrivetError
from pipeline.models.forward import hidden_states, trunk_of
from pipeline.models.heads import scores_at_end
from pipeline.models.load import device, untrusted
from pipeline.models.source import identify, materialise
from pipeline.rollouts.rewards import ForeignReward
from pipeline.runtime import Ranks

Conversation = list[dict[str, str]]


def foreign_reward(name: str, batch_size: int, ranks: Ranks, revision: str | None = None) -> ForeignReward:
    """Load a reward model from a folder or the hub.

    Args:
        name: folder or hub id.
        batch_size: conversations per forward pass.
        ranks: this process among its peers.
        revision: commit or tag of a hub id.

    Raises:
        SourceUnreachableError: not there, no tokenizer or chat template, or no head with one output.
    """
    folder = materialise(identify(name, revision, "a reward's `from`"))
    return ForeignReward(name, _Classifier(folder, name, batch_size).scores, ranks)


class _Classifier:
    def __init__(self, folder: Path, name: str, batch_size: int):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._name = name
        self._batch_size = batch_size
        with untrusted(folder):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self._model: Any
            self._model, loaded = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
        head = getattr(self._model, "score", None)
        made_up = any(key.startswith("score.") for key in loaded["missing_keys"])
        if not isinstance(head, torch.nn.Linear) or head.out_features != 1 or made_up:
            raise SourceUnreachableError(
                f"a reward's `from`: {name} is a {type(self._model).__name__} without a head `score` of one output; "
                "write a function (--reward file.py:function) that scores with it"
            )
        if self._tokenizer.chat_template is None:
            raise SourceUnreachableError(f"a reward's `from`: the tokenizer of {name} lacks a chat template; set one")
        self._head = head.float()
        self._model.to(device()).eval().requires_grad_(False)

    @torch.inference_mode()
    def scores(self, conversations: Sequence[Conversation]) -> list[float]:
        """Its score at the end of each conversation, as its own template writes it.

        Raises:
            TrivetError: the template refuses a conversation.
        """
        rows = [self._ids(conversation) for conversation in conversations]
        found: dict[int, float] = {}
        for batch in by_length([len(row) for row in rows], self._batch_size):
            found.update(zip(batch, self._batch([rows[index] for index in batch]).tolist(), strict=True))
        return [found[index] for index in range(len(rows))]

    def _batch(self, rows: Sequence[Sequence[int]]) -> Tensor:
        ids, mask = pad_right(rows, self._tokenizer.pad_token_id or 0)
        return scores_at_end(hidden_states(trunk_of(self._model), ids, mask, positions(mask)), self._head, mask).cpu()

    def _ids(self, conversation: Conversation) -> list[int]:
        try:
            text = self._tokenizer.apply_chat_template(conversation, tokenize=False)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in conversation)
            raise TrivetError(f"reward {self._name}: its chat template refuses turns of {roles}: {error}") from error
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        # Such models are trained to be read at the end of turn; what a template writes after it is no part of that.
        while len(ids) > 1 and not self._tokenizer.decode(ids[-1:]).strip():
            ids.pop()
        return ids
