"""SFT on rows that one GPU cannot hold: a group of processes computes each row together, every one a piece of it.

TRL's trainer computes on the pieces (`sft_pieces`), DeepSpeed's Ulysses exchanges them around every attention
(`sft_ulysses`). What the libraries leave open is here: which rows a group gets, and a loss that is the mean over the
trained tokens of a whole step.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from trl import SFTTrainer

from pipeline.batch_order import EpochSampler
from pipeline.context import StageContext, engine_of
from pipeline.errors import RecipeError
from pipeline.models.forward import trunk_of
from pipeline.runtime import sum_over_ranks
from pipeline.stages.offline import CommittedTrainer
from pipeline.stages.sft_pieces import GroupBatches, Piece, Sharing, cut
from pipeline.stages.sft_ulysses import Exchange, shift_in_pieces

_TOLERATED = {"fp32": 1e-2}
_TOLERATED_COARSE = 0.15
"""How far a token's hidden state may be from that in the whole row, of its length. In half precision, and in TF32,
kernels round differently for other shapes."""


class _PieceTrainer(SFTTrainer):
    """TRL's trainer, and its head on the trained tokens alone, on pieces of rows.

    Args:
        sharing: of the launch.
        averaged: processes or groups whose gradients DeepSpeed takes the mean of.
        stage: for messages.
    """

    def __init__(self, *args: Any, sharing: Sharing, averaged: int, stage: str, **kwargs: Any):
        try:
            super().__init__(*args, **kwargs)
        except ValueError as error:
            # Of other losses, which `trainer_args` may name.
            raise RecipeError(f"stages.{stage}: TRL's trainer refuses these settings: {error}") from error
        self.sharing = sharing
        self._averaged = averaged
        self.loss_is_scaled_for_ga: Any = True
        if self.aux_loss_enabled:
            raise RecipeError(
                f"stages.{stage}.sequence_parallel_size: the load of a mixture's experts is balanced by whole rows; "
                "leave the key out, or write trainer_args: {router_aux_loss_coef: 0.0}"
            )

    def get_sp_size(self) -> int:
        """1: rows are dealt out to groups by the data loader; the library's own deals them to each process first."""
        return 1

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """A step's pieces, and the tokens of all ranks that its loss is a mean of."""
        pieces: list[Piece] = list(islice(epoch_iterator, num_batches))
        sums = [sum(int(piece.learned_BT.sum()) for piece in pieces), sum(piece.tokens for piece in pieces)]
        learned, tokens = sum_over_ranks(torch.tensor(sums, dtype=torch.float64).to(device)).tolist()
        self.state.num_input_tokens_seen += int(tokens)
        return pieces, max(1.0, learned)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The group's part of the step's mean loss, with the gradient of this process's piece.

        Not the library's, which is a mean of micro-batches' means, and has the gradient of all pieces on every process.
        """
        piece: Piece = inputs.to(self.args.device)
        found = model(
            input_ids=piece.ids_BT, position_ids=piece.positions_BT, shift_labels=piece.labels_BT, fused_lm_head=True
        )
        loss = -found.log_probs.sum()
        mine = [found.entropy.sum(), found.is_top1.sum(), piece.learned_BT.sum()]
        sums = torch.zeros(self.sharing.groups + len(mine), dtype=torch.float64, device=self.args.device)
        sums[self.sharing.group] = loss.detach()
        sums[self.sharing.groups :] = torch.stack([value.detach().double() for value in mine])
        *losses, entropy, right, learned = sum_over_ranks(sums).tolist()
        self._note(entropy / max(1.0, learned), right / max(1.0, learned))
        # What is no number in another group is none here: all end alike, and nobody waits.
        group = losses[self.sharing.group] + 0.0 * sum(losses)
        share = loss * (self._averaged / num_items_in_batch)
        return share + (group * self.sharing.groups / num_items_in_batch - share).detach()

    def _note(self, entropy: float, accuracy: float) -> None:
        """For the next line of metrics, under TRL's names."""
        metrics = self._metrics["train"]
        metrics["entropy"].append(entropy)
        metrics["mean_token_accuracy"].append(accuracy)
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the library's estimate knows no pieces."""
        return 0


class PieceTrainer(CommittedTrainer, _PieceTrainer):
    """The same under the commit protocol.

    Args:
        sharing: of the launch.
        order: of the rows.
        context: of the stage.
        precision: of the forward pass.
    """

    def __init__(self, *, sharing: Sharing, order: EpochSampler, context: StageContext, precision: str, **kwargs: Any):
        # DeepSpeed takes the mean over groups, but where it scatters gradients as it sums them up over all processes.
        averaged = context.ranks.world_size if engine_of(context).zero_stage == 3 else sharing.groups
        super().__init__(sharing=sharing, averaged=averaged, stage=context.stage, **kwargs)
        self.draw_by(order)
        self._order = order
        self._rows: Any = self.train_dataset
        self._tokenizer: Any = self.processing_class
        self._stage = context.stage
        self._precision = precision
        self._exchange = Exchange(self.model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Pieces of the group's rows, which all of its processes draw alike."""
        rows: Any = list(self._rows)
        count = self.args.per_device_train_batch_size
        pad_id: int = self._tokenizer.pad_token_id
        batches = GroupBatches(self._order, count, self.sharing)
        return DataLoader(rows, batch_sampler=batches, collate_fn=lambda found: cut(found, count, pad_id, self.sharing))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The library's, in pieces; in its backward pass too, which may compute activations again."""
        with self._exchange.used():
            return super().training_step(*args, **kwargs)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        import deepspeed

        # The groups of processes are made before the engine, which would have told DeepSpeed of torch's.
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        with self._exchange.noted():
            model, loader = super()._prepare_for_training(*args, **kwargs)
        longest = torch.tensor(max(self._rows["input_ids"], key=len))
        ids_BL = longest.repeat(self.args.per_device_train_batch_size, 1)
        self._require_whole_rows(ids_BL)
        # The library has put its own dealing around ours.
        return model, loader.dl

    def _require_whole_rows(self, ids_BL: Tensor) -> None:
        name = type(trunk_of(self.model)).__name__
        try:
            shift = shift_in_pieces(self.model, ids_BL, self.sharing, self._exchange, self._precision)
        except (TypeError, AssertionError) as error:
            raise RecipeError(
                f"stages.{self._stage}.sequence_parallel_size: {name} does not call attention as DeepSpeed's Ulysses "
                f"expects ({error}); leave the key out"
            ) from error
        # Not "greater": no number is neither.
        if not shift <= _TOLERATED.get(self._precision, _TOLERATED_COARSE):
            raise RecipeError(
                f"stages.{self._stage}.sequence_parallel_size: {name} gives something else for a row in pieces (a "
                f"token's hidden state is off by {shift:.2g} of its length), as sliding windows and recurrent layers "
                "do; leave the key out"
            )
