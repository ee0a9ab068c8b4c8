"""Training on streams: every prompt through the layers once, nothing padded, the head on response tokens only.

The optimiser, its schedule, checkpoints, ranks and logs are transformers' Trainer's, so a run differs from the
library's own in how a step is computed, not in what it computes: rows come in the same order, and a step's loss is a
mean over all its rows (or tokens), on every rank and in every micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pipeline.faults import reach, spoil
from pipeline.runtime import sum_over_ranks
from pipeline.stages.offline import CommittedTrainer
from pipeline.streams import StandIn, Stream, balanced, parts_within

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)
Call = Callable[[Stream], Tensor]
"""What a model gives for a stream: log-probabilities of response tokens (M,), or scores of sequences (S,)."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an objective says of a micro-batch."""

    loss: Tensor
    """Summed over its items."""
    metrics: Mapping[str, float]
    """Summed over its items too."""


class Objective(Protocol[R_contra]):
    """What is learned from rows of one kind."""

    def items(self, row: R_contra) -> int:
        """What a row counts for in the mean that the loss is: 1, or its response tokens."""

    def tokens(self, row: R_contra) -> int:
        """Tokens of a row's sequences, whole."""

    def stream(self, rows: Sequence[R_contra]) -> Stream:
        """The rows as one stream."""

    def compute(self, call: Call, rows: Sequence[R_contra], stream: Stream) -> Found:
        """Loss and metrics of a micro-batch.

        Args:
            call: the model in training, with gradients where they are enabled.
            rows: of the micro-batch.
            stream: made of them, on the model's device.
        """


class Shared(Protocol):
    """Knows what the layers that nothing in training changes give."""

    def below(self, stream: Stream, rows: Sequence[Any], objective: Objective[Any]) -> StandIn:
        """What stands in for them in a micro-batch.

        Args:
            stream: of the micro-batch, on the model's device.
            rows: that it was made of.
            objective: that made it.
        """


@dataclass(frozen=True, slots=True)
class MicroBatch(Generic[R]):
    """Rows that go through the model together."""

    rows: tuple[R, ...]
    stream: Stream


@dataclass(frozen=True, slots=True)
class ShareOfStep(Generic[R]):
    """All of a rank's rows of a step, in as many passes as they need."""

    passes: tuple[MicroBatch[R], ...]


class StreamTrainer(CommittedTrainer):
    """Transformers' Trainer, its step computed on streams.

    Args:
        model: that takes streams (`models.stream_forward.take_streams`).
        args: of the library's own kind; its batch size is in rows: of a pass, or of a step where tokens are bounded.
        rows: to train on.
        objective: what is learned from them.
        trunk: what the layers below the adapter give, for all that are called with a stream; None where no layer is.
        most_tokens: of a pass; None where the batch size says what goes through together.
    """

    def __init__(
        self, *, model: Any, args: Any, rows: Sequence[R], objective: Objective[R], trunk: Shared | None = None,
        most_tokens: int | None = None,
    ):  # fmt: skip
        args.remove_unused_columns = False
        args.label_names = []
        super().__init__(model=model, args=args, train_dataset=_Rows(rows), data_collator=_as_they_are)
        self._objective = objective
        self._trunk = trunk
        self._most_tokens = most_tokens
        self._sums: dict[str, float] = {}
        self._items = 0.0
        self.loss_is_scaled_for_ga = True

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """A step's rows in micro-batches of about equal length, and the items of all ranks that its loss is a mean of.

        How rows are spread over the micro-batches changes nothing but the memory that the largest one takes.
        """
        drawn, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = [row for batch in drawn for row in batch]
        parts = self._parts(rows, len(drawn))
        micros = [self._micro_batch([rows[index] for index in part]) for part in parts]
        counted = torch.tensor(
            [sum(map(self._objective.items, rows)), sum(map(self._objective.tokens, rows))], dtype=torch.float64
        )
        items, tokens = sum_over_ranks(counted.to(device)).tolist()
        self.state.num_input_tokens_seen += int(tokens)
        return micros if self._most_tokens is None else [ShareOfStep(tuple(micros))], items

    def _parts(self, rows: list[Any], draws: int) -> list[list[int]]:
        if self._most_tokens is None:
            return balanced([self._objective.tokens(row) for row in rows], draws)
        # What a row shares within itself, as a pair its prompt, goes through once.
        return parts_within([len(self._objective.stream([row]).ids_N) for row in rows], self._most_tokens)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """A pass forward and backward, or all of a step; gradients cross the ranks in a step's last pass alone."""
        if not isinstance(inputs, ShareOfStep):
            return super().training_step(model, inputs, num_items_in_batch)
        one: Callable[..., Tensor] = super().training_step
        *others, last = inputs.passes
        with self.accelerator.no_sync(model):
            losses = [one(model, each, num_items_in_batch) for each in others]
        return sum(losses, one(model, last, num_items_in_batch))

    def _micro_batch(self, rows: list[Any]) -> MicroBatch[Any]:
        return MicroBatch(tuple(rows), self._objective.stream(rows))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's part of the step's mean loss, as ranks that average their gradients need it."""
        reach("step.begun")
        micro: MicroBatch[Any] = inputs
        self.note_rows(micro)
        stream = micro.stream.to(self.args.device)
        if self._trunk is not None:
            with self.accelerator.autocast():
                stream = replace(stream, below=self._trunk.below(stream, micro.rows, self._objective))
        found = self._objective.compute(lambda each: model(stream=each), micro.rows, stream)
        loss = spoil("loss", found.loss)
        self.require_finite_loss(loss)
        self._items += sum(map(self._objective.items, micro.rows))
        for name, value in found.metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return loss * (self.args.world_size / num_items_in_batch)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The library's values, and means of the objective's since the last time, over all ranks."""
        if self._items:
            names = sorted(self._sums)
            window = torch.tensor([self._items, *(self._sums[name] for name in names)], dtype=torch.float64)
            items, *sums = sum_over_ranks(window.to(self.args.device)).tolist()
            logs = {**logs, **{name: value / items for name, value in zip(names, sums, strict=True)}}
            logs["num_tokens"] = float(self.state.num_input_tokens_seen)
            self._sums, self._items = {}, 0.0
        super().log(logs, *args, **kwargs)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the library's estimate knows no streams."""
        return 0


class _Rows(torch.utils.data.Dataset[Any]):
    """Rows under their indices, as the library's samplers want them."""

    def __init__(self, rows: Sequence[Any]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


def _as_they_are(rows: list[Any]) -> Any:
    return rows
