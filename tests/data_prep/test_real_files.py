"""Published files in the formats people have: read whole, with the counts they are known to give.

The folder is named by TRIVET_REAL_DATA; without it these tests are skipped.
"""

import os
from dataclasses import replace
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


EVERY: dict[str, tuple[str, int, int | None, int | None, int | None]] = {
    # file: format, rows read, demonstrations, pairs, prompts (None: refused in a sentence)
    "alpaca_en/alpaca_data_20k.json": ("alpaca", 20_000, 19_989, None, 20_000),
    "alpaca_en/code_alpaca_1k.json": ("alpaca", 1_000, 999, None, 1_000),
    "alpaca_en/seed_tasks.jsonl": ("self_instruct", 175, 175, None, 175),
    "alpaca_eval/Meta-Llama-3-8B-Instruct_model_outputs.json": ("alpaca", 400, 400, None, 400),
    "alpaca_eval/Mistral-7B-Instruct-v0.2_model_outputs.json": ("alpaca", 400, 400, None, 400),
    "alpaca_eval/example_outputs.json": ("alpaca", 400, 400, None, 400),
    "alpaca_eval/Mixtral-8x7B-Instruct-v0.1_alpaca_eval_gpt4_turbo_fn_annotations.json":
        ("alpaca_eval", 400, 400, 400, 400),
    "alpaca_zh/alpaca_chinese_4k.json": ("alpaca", 4_000, 3_996, None, 4_000),
    "alpaca_zh/belle_dev1K.json": ("alpaca", 1_000, 1_000, None, 1_000),
    "alpaca_zh/belle_zh_seed_tasks.jsonl": ("self_instruct", 175, 175, None, 175),
    "hh_rlhf/harmless-base_1500.jsonl.gz": ("hh", 1_500, 1_491, 1_491, 1_493),
    "history_format/oaast_sft_zh.json": ("alpaca", 342, 342, None, 342),
    "human_eval/HumanEval_first82.jsonl.gz": ("prompt_completion", 82, None, None, 82),
    "ifeval/input_data_300.jsonl": ("prompt_completion", 300, None, None, 300),
    "llama_factory/alpaca_en_demo.json": ("alpaca", 999, 999, None, 999),
    "llama_factory/alpaca_zh_demo.json": ("alpaca", 1_000, 1_000, None, 1_000),
    "llama_factory/c4_demo.jsonl": ("text", 300, 300, None, None),
    "llama_factory/dpo_en_demo.json": ("preference", 300, 300, 300, 300),
    "llama_factory/dpo_zh_demo.json": ("preference", 300, 300, 300, 300),
    "llama_factory/glaive_toolcall_en_demo.json": ("sharegpt", 300, 300, None, 300),
    "llama_factory/glaive_toolcall_zh_demo.json": ("sharegpt", 300, 300, None, 300),
    "llama_factory/identity.json": ("alpaca", 91, 91, None, 91),
    "llama_factory/kto_en_demo.json": ("kto", 300, 150, 1, 300),
    "llama_factory/reason_tool_use_demo_50.jsonl": ("messages", 50, 50, None, 50),
    "llama_factory/v1_dpo_demo.jsonl": ("preference", 10, 10, 10, 10),
    "llama_factory/v1_sft_demo.jsonl": ("messages", 500, 500, None, 500),
    "llama_factory/wiki_demo.txt": ("text", 30, 30, None, None),
    "mt_bench/question.jsonl": ("questions", 80, None, None, 80),
    "preference/LLMBar_Natural.json": ("alpaca_eval", 100, 100, 100, 100),
    "preference/instruction-data-with-preference_600.json": ("preference", 600, 600, 598, 600),
    "preference/oaast_rm_zh.json": ("ranked", 403, 403, 896, 403),
    "preference/pandalm_testset-v1_500.json": ("votes", 500, 458, 422, 500),
    "sharegpt/dummy_conversation.json": ("sharegpt", 500, 500, None, 500),
    "sharegpt/medical_sft_zh_300.jsonl": ("sharegpt", 300, 300, None, 300),
    "sharegpt/sharegpt_zh_300.jsonl": ("sharegpt", 300, 298, None, 299),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_file_is_recognised_and_counted(name: str) -> None:
    form, rows, *expected = EVERY[name]
    for read, count in zip((read_demonstrations, read_pairs, read_prompts), expected, strict=True):
        if count is None:
            with pytest.raises(DataError, match=r"which has no |which fit no known format"):
                read(spec(name))
            continue
        result = read(spec(name))
        assert (result.format, result.rows_read, len(result.records)) == (form, rows, count)
        assert result.rows_read == result.rows_kept + sum(result.dropped.values())


@pytest.mark.parametrize(
    ("name", "fields", "rows"),
    [
        ("gsm8k/train_2000.jsonl", {"instruction": "question", "output": "answer"}, 2_000),
        ("alpaca_zh/belle_eval_set_400.jsonl", {"instruction": "question", "output": "std_answer"}, 244),
        ("bbh/date_understanding.json", {"instruction": "input", "output": "target"}, 250),
        ("truthfulqa/TruthfulQA_500.csv", {"instruction": "Question", "output": "Best Answer"}, 500),
    ],
)
def test_files_with_names_of_their_own_are_read_with_a_mapping(name: str, fields: dict[str, str], rows: int) -> None:
    source = replace(spec(name), map=fields)
    assert len(read_demonstrations(source).records) == rows


def test_votes_give_the_label_noise_of_their_annotators() -> None:
    noise = [pair.label_noise for pair in read_pairs(spec("preference/pandalm_testset-v1_500.json")).records]
    assert all(share is not None and 0 <= share < 0.5 for share in noise)
    assert {round(share or 0, 3) for share in noise} == {0.0, 0.167, 0.333}
