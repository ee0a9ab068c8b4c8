"""The rows of a step that went wrong are found, where they can be told, and not those of the step before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from data_prep.chat import EncodedDemonstration, EncodedPair
from data_prep.records import Origin
from pipeline.stages.batch_rows import StepRows, rows_in
from pipeline.stages.reward_objective import MarginPair

DEMONSTRATIONS = [EncodedDemonstration([1, number, 2], [False, True, True], False) for number in range(12)]
ORIGINS = [Origin(source="rows.jsonl", row=10 * number) for number in range(12)]


def micro(*indices, rows=DEMONSTRATIONS):
    return SimpleNamespace(rows=tuple(rows[index] for index in indices))


def test_rows_of_a_stream():
    assert rows_in(micro(7, 3), DEMONSTRATIONS) == [3, 7]
    pairs = [MarginPair(EncodedPair([1], [number], [9], False), 0.5) for number in range(4)]
    # What moves batches to a device makes such tuples anew.
    again = SimpleNamespace(rows=(MarginPair(*pairs[2]),))
    assert rows_in(again, pairs) == [2]


def padded(*sequences):
    longest = max(map(len, sequences))
    return {
        "input_ids": torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in sequences]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences]),
    }


@pytest.mark.parametrize(
    ("data", "batch", "found"),
    [
        ([{"input_ids": [5, 0, number]} for number in range(4)], padded([5, 0, 3], [5, 0, 1]), [1, 3]),
        (
            [{"prompt_ids": [8], "chosen_ids": [number], "rejected_ids": [7, number]} for number in range(4)],
            padded([8, 2], [8, 0], [8, 7, 2], [8, 7, 0]),
            [0, 2],
        ),
        ([{"chosen_ids": [1, n], "rejected_ids": [2, n]} for n in range(4)], padded([1, 3], [2, 3]), [3]),
        ([{"input_ids": [5, 6], "seq_lengths": [1, 1]}], padded([5, 6]), []),
        ([{"input_ids": [5, 6]}], {"input_ids": torch.tensor([[5, 6]])}, []),
    ],
    ids=["demonstrations", "pairs of DPO", "pairs of the reward model", "packed", "no mask"],
)
def test_rows_of_a_padded_batch(data, batch, found):
    assert rows_in(batch, data) == found


def test_the_step_is_told_or_its_last_micro_batch():
    rows = StepRows()
    rows.note(4, micro(11))
    rows.note(5, micro(2, 1))
    rows.note(5, micro(3))
    assert rows.told(DEMONSTRATIONS, ORIGINS, last_only=True) == "rows.jsonl:30"
    assert rows.told(DEMONSTRATIONS, ORIGINS, last_only=False) == "rows.jsonl:10, rows.jsonl:20, rows.jsonl:30"
    assert rows.told(DEMONSTRATIONS, (), last_only=False) == "1, 2, 3"
    rows.note(6, micro(*range(11)))
    assert rows.told(DEMONSTRATIONS, (), last_only=False) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
    assert StepRows().told(DEMONSTRATIONS, ORIGINS, last_only=True) == ""
