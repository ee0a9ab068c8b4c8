"""How fast a large instruction set is cleaned, near-deduplicated and tokenised, beside `datasets.map` doing less.

    python benchmarks/data_cleaning.py alpaca_data.json [--rows 100000] [--base builtin:smollm2-135m-instruct]
        [--llama-factory PYTHON]

The rows of the file are repeated, lightly perturbed (a mark, a slip, a number), until there are as many as asked for;
so most of them are near duplicates of others, which is the hard case. Measured: the first run of
`encode_demonstrations` with every rule on, a second run from the cache, one with another chat template, and
`datasets.map` with the same tokenizer and template and no rules, in as many processes; with the Python of an
environment that has LLaMA-Factory, its preprocessing too. Memory is the most that this process and all it started held
together, pages that several of them share counted once; looked at every half second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SIDE = Path(__file__).with_name("side_llama_factory_data.py")
RULES = (
    "{languages: [en, zh], min_word_length: 2, max_word_length: 14, max_words: 700, duplicate_lines: 0.4, "
    "repetition: 0.4, special_characters: 0.3, profanity: answers, refusals: drop, url_answers: drop, truncated: drop, "
    "placeholders: drop, personal_data: mask, secrets: mask, min_quality: 0.2, near_duplicates: {}}"
)


def main() -> None:
    """Run all four and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a JSON array of instruction, input, output")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--base", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--llama-factory", metavar="PYTHON", help="of an environment with LLaMA-Factory 0.9.5")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Print what each way took."""
    from data_prep import cache
    from data_prep.workers import worker_count
    from pipeline.models.source import identify, materialise

    base = materialise(identify(options.base, None))
    os.environ["TRIVET_CACHE"] = str(folder / "cache")
    cache.WORTH_BYTES = 0
    rows = folder / "rows.jsonl"
    perturbed(options.source, options.rows, rows)
    print(f"{options.rows:,} rows, {rows.stat().st_size / 1e6:.0f} MB, {worker_count()} processes")
    first = timed("cleaned, deduplicated, tokenised", options.rows, partial(encode, rows, base, "auto"))
    kept, _, report = first
    print(f"    kept {len(kept.rows):,}: {json.dumps(report['dropped'])}")
    timed("again, from the cache", options.rows, partial(encode, rows, base, "auto"))
    timed("another chat template", options.rows, partial(encode, rows, base, "alpaca"))
    timed("datasets.map, tokenised only", options.rows, partial(plain_map, rows, base, folder))
    if options.llama_factory:
        command = [options.llama_factory, str(SIDE), str(rows), str(base), str(folder), str(worker_count())]
        timed("LLaMA-Factory, and its start", options.rows, partial(_last_line, command))


def _last_line(command: list[str]) -> None:
    """Run the other side, and print the last line that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print("    " + done.stdout.strip().splitlines()[-1])


def perturbed(source: Path, count: int, target: Path) -> None:
    """Write `count` rows: the source's as they are, then copies with small changes."""
    rng = random.Random(5)
    found = json.loads(source.read_text(encoding="utf-8"))
    with target.open("w", encoding="utf-8") as stream:
        for number in range(count):
            row = dict(found[number % len(found)])
            if number >= len(found) and row["output"]:
                at = rng.randrange(len(row["output"]))
                row["output"] = rng.choice(
                    [row["output"] + "!", row["output"][:at] + row["output"][at + 1 :], f"{row['output']} {number}"]
                )
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def encode(rows: Path, base: Path, template: str) -> Any:
    """What a stage does."""
    from data_prep.build import encode_demonstrations
    from data_prep.chat import ChatFormatter
    from pipeline.models.load import load_tokenizer
    from pipeline.recipe import loads_recipe

    data = f"sources: [{{path: {rows}}}], max_length: 1024, clean: {RULES}"
    text = f"name: x\ndata:\n  sft: {{{data}}}\nstages: {{sft: {{}}}}\n"
    formatter = ChatFormatter(load_tokenizer(base, template))
    return encode_demonstrations(loads_recipe(text).recipe.data, formatter, 17)


def plain_map(rows: Path, base: Path, folder: Path) -> Any:
    """The same chat template and tokenizer, one row at a time, and nothing else."""
    import datasets

    from data_prep.workers import worker_count
    from pipeline.models.load import load_tokenizer

    tokenizer = load_tokenizer(base, "auto")

    def tokenise(row: dict[str, str]) -> dict[str, Any]:
        question = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
        return {"ids": tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]}

    data = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder / "datasets"))
    return data.map(tokenise, num_proc=worker_count(), load_from_cache_file=False)


def timed(what: str, rows: int, run: Any) -> Any:
    """Run, and print seconds, rows a second, seconds of processor time, and the most memory held meanwhile.

    On a machine that does other work as well, processor time is what can be compared.
    """
    start, used = time.perf_counter(), _processor_seconds()
    with held_memory() as peak:
        result = run()
    seconds, used = time.perf_counter() - start, _processor_seconds() - used
    print(
        f"{what:34} {seconds:7.1f} s {rows / seconds:9,.0f} rows/s {used:7.1f} s of processor {max(peak):6.2f} GB",
        flush=True,
    )
    return result


@contextmanager
def held_memory() -> Iterator[list[float]]:
    """Looks at memory while the block runs, and gives what was held each time, in GB."""
    found, done = [_held()], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            found.append(_held())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        done.set()
        watching.join()


def _held() -> float:
    this, total = psutil.Process(), 0
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**30


def _processor_seconds() -> float:
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in found)


if __name__ == "__main__":
    main()
