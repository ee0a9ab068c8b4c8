"""Published files in the formats people have: read whole, with the counts they are known to give.

The folder is named by TRIVET_REAL_DATA; without it these tests are skipped.
"""

import os
from pathlib import Path

import pytest

from data_prep.readers import SourceSpec, read_demonstrations, read_pairs, read_prompts
from data_prep.records import PreferencePair
from data_prep.split import prompt_hash, prompt_messages, split_records
from pipeline.errors import DataError

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("TRIVET_REAL_DATA") or ROOT.parent / "shared" / "data")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no folder {FOLDER}; set TRIVET_REAL_DATA")


def spec(name: str, format: str = "auto") -> SourceSpec:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return SourceSpec(path=str(path), format=format)


@pytest.mark.parametrize(
    ("name", "format", "rows", "dropped"),
    [
        ("alpaca_en/alpaca_data_20k.json", "alpaca", 20_000, {"empty_answer": 11}),
        ("alpaca_en/code_alpaca_1k.json", "alpaca", 1_000, {"empty_answer": 1}),
        ("alpaca_zh/alpaca_chinese_4k.json", "alpaca", 4_000, {"empty_answer": 4}),
        ("alpaca_zh/belle_dev1K.json", "alpaca", 1_000, {}),
        ("llama_factory/alpaca_zh_demo.json", "alpaca", 1_000, {}),
        ("llama_factory/v1_sft_demo.jsonl", "messages", 500, {}),
        ("llama_factory/glaive_toolcall_en_demo.json", "sharegpt", 300, {}),
        ("history_format/oaast_sft_zh.json", "alpaca", 342, {}),
        ("sharegpt/dummy_conversation.json", "sharegpt", 500, {}),
        ("sharegpt/medical_sft_zh_300.jsonl", "sharegpt", 300, {}),
        ("sharegpt/sharegpt_zh_300.jsonl", "sharegpt", 300, {"empty_prompt": 1, "no_final_answer": 1}),
    ],
)
def test_demonstrations(name: str, format: str, rows: int, dropped: dict[str, int]) -> None:
    result = read_demonstrations(spec(name))
    assert (result.format, result.rows_read, result.dropped) == (format, rows, dropped)
    assert len(result.records) == rows - sum(dropped.values())
    assert all(record.messages[-1].content.strip() for record in result.records)


@pytest.mark.parametrize(
    ("name", "format", "rows", "dropped"),
    [
        ("llama_factory/dpo_en_demo.json", "preference", 300, {}),
        ("llama_factory/dpo_zh_demo.json", "preference", 300, {}),
        ("llama_factory/v1_dpo_demo.jsonl", "preference", 10, {}),
        ("preference/instruction-data-with-preference_600.json", "preference", 600, {"identical_pair": 2}),
        (
            "hh_rlhf/harmless-base_1500.jsonl.gz",
            "hh",
            1_500,
            {"empty_answer": 2, "prompts_differ": 5, "roles_out_of_order": 2},
        ),
    ],
)
def test_pairs(name: str, format: str, rows: int, dropped: dict[str, int]) -> None:
    result = read_pairs(spec(name))
    assert (result.format, result.rows_read, result.dropped) == (format, rows, dropped)
    assert all(_complete(record) for record in result.records)


def _complete(pair: PreferencePair) -> bool:
    return pair.prompt[-1].role == "user" and bool(pair.chosen.strip()) and bool(pair.rejected.strip())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpaca_zh/belle_eval_set_400.jsonl", "question, std_answer, class, which fit no known format"),
        ("mt_bench/question.jsonl", "look like questions, which has no answers to imitate"),
    ],
)
def test_files_of_other_kinds_are_refused_in_words(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_demonstrations(spec(name))


def test_one_conversation_of_hh_word_for_word() -> None:
    first = read_pairs(spec("hh_rlhf/harmless-base_1500.jsonl.gz")).records[0]
    assert [message.role for message in first.prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert first.prompt[0].content == "what are some pranks with a pen i can do?"
    assert first.prompt[2].content == "yep"
    assert not first.chosen.startswith(" ") and "Human:" not in first.chosen


def test_hh_serves_all_three_stages_without_a_leak() -> None:
    source = spec("hh_rlhf/harmless-base_1500.jsonl.gz")
    parts = [
        split_records(read_demonstrations(source).records, 0.05, 0.1),
        split_records(read_pairs(source).records, 0.1, 0.1),
        split_records(read_prompts(source).records, 0.02, 0.1),
    ]
    trained = {prompt_hash(prompt_messages(record)) for part in parts for record in part.train}
    evaluated = {prompt_hash(prompt_messages(record)) for part in parts for record in part.eval}
    assert len(evaluated) > 50 and not trained & evaluated
