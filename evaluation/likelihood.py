"""Log-probabilities of given answers under a policy: held-out loss, perplexity, implicit-reward margins.

The same rows are always scored in the same batches, so a policy equal to its reference gets exactly equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from data_prep.chat import EncodedDemonstration, EncodedPair
from evaluation.sharing import Progress, over_ranks
from pipeline.algorithms.logps import seq_logps, token_logps
from pipeline.batches import ScoringBatch, scoring_batch
from pipeline.errors import TrivetError
from pipeline.models.forward import VocabularyHead, attends_in_streams, hidden_states, trunk_of, vocabulary_head
from pipeline.models.fully_sharded import computed_within
from pipeline.models.shards import is_spread_model, scoring_mode
from pipeline.runtime import Ranks, autocast

Row = tuple[Sequence[int], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Sum of log-probabilities over a row's response tokens, and how many those are."""

    logp: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores rows with a model, shared out over the ranks.

    Args:
        model: a causal language model, adapters included, in evaluation mode while scoring.
        pad_id: any id.
        batch_size: rows per forward pass.
        precision: bf16, fp16 or fp32.
        ranks: this process among its peers; every rank must make the same calls.
    """

    model: Any
    pad_id: int
    batch_size: int
    precision: str
    ranks: Ranks

    def score(self, rows: Sequence[Row], progress: Progress | None = None) -> list[Likelihood]:
        """Log-probability of each row's response tokens given everything before them, in the rows' order."""
        was_training = self.model.training
        self.model.eval()
        with scoring_mode(self.model), autocast(self.precision):
            head = computed_within(self.model, lambda: _head_of(self.model))
            found = over_ranks(
                [ids for ids, _ in rows],
                self.batch_size,
                self.ranks,
                lambda batch: self._score_batch([rows[index] for index in batch], head),
                progress,
                by_beginnings=attends_in_streams(self.model),
                together=is_spread_model(self.model),
            )
        self.model.train(was_training)
        return found

    def _score_batch(self, rows: Sequence[Row], head: VocabularyHead | None) -> list[Likelihood]:
        batch = scoring_batch(rows, self.pad_id)
        logps = computed_within(self.model, lambda: response_logps(self.model, batch, head))
        counts = batch.response_mask_BT.sum(-1)
        return [Likelihood(float(logp), int(count)) for logp, count in zip(logps.cpu(), counts, strict=True)]


def response_logps(model: Any, batch: ScoringBatch, head: VocabularyHead | None = None) -> Tensor:
    """log pi(responses | context) of each row (B,), with the vocabulary head run on the response positions only.

    Args:
        model: causal.
        batch: rows to score.
        head: of the model, or None where it cannot be taken apart from the rest.
    """
    if head is None:
        return _whole_response_logps(model, batch)
    hidden = hidden_states(trunk_of(model), batch.ids_BT, batch.mask_BT, batch.positions_BT)[:, :-1]
    mask = batch.response_mask_BT[:, 1:].to(hidden.device)
    found = head.scores(hidden, batch.ids_BT[:, 1:].to(hidden.device), mask_BR=mask)
    return seq_logps(found.logps_BR, mask)


def _whole_response_logps(model: Any, batch: ScoringBatch) -> Tensor:
    device = next(model.parameters()).device
    keep = batch.responses_within + 1
    logits = model(
        input_ids=batch.ids_BT.to(device),
        attention_mask=batch.mask_BT.long().to(device),
        position_ids=batch.positions_BT.to(device),
        logits_to_keep=keep,
        use_cache=False,
    ).logits
    logps = token_logps(logits, batch.ids_BT[:, -keep:].to(device))
    return seq_logps(logps, batch.response_mask_BT[:, batch.ids_BT.shape[1] - (keep - 1) :].to(device))


def _head_of(model: Any) -> VocabularyHead | None:
    try:
        return vocabulary_head(model)
    except TrivetError:
        return None


def demonstration_rows(rows: Sequence[EncodedDemonstration]) -> list[Row]:
    """Rows to score from encoded demonstrations."""
    return [(row.input_ids, row.response_mask) for row in rows]


def pair_rows(rows: Sequence[EncodedPair]) -> list[Row]:
    """Rows to score from encoded pairs: all chosen answers, then all rejected ones."""
    chosen = [_answer_row(row.prompt_ids, row.chosen_ids) for row in rows]
    return chosen + [_answer_row(row.prompt_ids, row.rejected_ids) for row in rows]


def mean_loss(likelihoods: Sequence[Likelihood]) -> float:
    """Negative log-likelihood per response token, in nats, over all rows together."""
    return -sum(row.logp for row in likelihoods) / max(sum(row.tokens for row in likelihoods), 1)


def _answer_row(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Row:
    return [*prompt_ids, *answer_ids], [False] * len(prompt_ids) + [True] * len(answer_ids)
