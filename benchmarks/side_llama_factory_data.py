"""LLaMA-Factory's own reading and tokenising of an Alpaca file, timed; `data_cleaning.py` starts it.

    PYTHON benchmarks/side_llama_factory_data.py rows.jsonl BASE FOLDER WORKERS

PYTHON is of an environment with LLaMA-Factory (0.9.5 was tried). It reads, writes the chat and tokenises; it has no
rules and finds no duplicates. Prints one JSON object: rows, seconds, and seconds of processor time.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Time the way from a file to its data set, imports and the loading of the tokenizer apart."""
    rows, base, folder, workers = sys.argv[1:]
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    (Path(folder) / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": rows}}))
    settings: dict[str, Any] = {
        "model_name_or_path": base,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "rows",
        "dataset_dir": folder,
        "template": "smollm2",
        "cutoff_len": 1024,
        "overwrite_cache": True,
        "preprocessing_num_workers": int(workers),
        "output_dir": f"{folder}/out",
        "use_cpu": True,
    }
    model_args, data_args, training_args, _, _ = get_train_args(settings)
    loaded = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
    start, used = time.perf_counter(), _processor_seconds()
    found = get_dataset(template, model_args, data_args, training_args, stage="sft", **loaded)
    seconds, used = time.perf_counter() - start, _processor_seconds() - used
    print(json.dumps({"rows": len(found["train_dataset"]), "seconds": seconds, "processor_seconds": used}))


def _processor_seconds() -> float:
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in found)


if __name__ == "__main__":
    main()
