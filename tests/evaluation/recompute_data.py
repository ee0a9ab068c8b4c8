"""The numbers of a report's data section, computed from the rows themselves: those of the bundled samples whose prompts
a stage lists as trained on. What needs the tokenizer (lengths, padding) is taken from the stage's manifest.

Shares no code with the project. An entry is `(section, heading, row, column)` with the numbers that must stand there.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from pathlib import Path

SAMPLES = Path(__file__).resolve().parents[2] / "data_prep" / "samples"
FILES = {"builtin:alpaca_sample": "alpaca_sample.json", "builtin:preference_sample": "preference_sample.jsonl"}
REASONS = {
    "over_limit": "beyond the source's limit as the recipe says",
    "held_out_over_limit": "held out, beyond eval_limit as the recipe says",
    "other_stages_part": "in another stage's part of the prompts (data.split) as the recipe says",
    "no_rule": "without a rule that could score an answer as the recipe says",
}
LENGTHS = {
    "prompt_tokens": "Prompt", "response_tokens": "Answers", "chosen_tokens": "Chosen answer",
    "rejected_tokens": "Rejected answer",
}  # fmt: skip
PADDING = {"shuffled": ("shuffled",), "grouped": ("grouped",), "packed": ("packed", "padding")}


def sample(name):
    text = (SAMPLES / FILES[name]).read_text(encoding="utf-8")
    return json.loads(text) if FILES[name].endswith(".json") else [json.loads(line) for line in text.splitlines()]


def opening(row):
    """The first question of a conversation."""
    if "prompt" in row:
        return row["prompt"][0]["content"]
    if row.get("history"):
        return row["history"][0][0]
    return row["instruction"] + ("\n" + row["input"] if row["input"] else "")


def digest(row):
    words = " ".join(unicodedata.normalize("NFC", opening(row)).casefold().split())
    return hashlib.sha256(json.dumps([["user", words]], ensure_ascii=False).encode()).hexdigest()


def texts(row, kind):
    """What of a row is trained on, in one text."""
    if kind == "demonstrations":
        turns = [part for turn in row.get("history", []) for part in turn]
        return "\n".join([*turns, row["instruction"], row["input"], row["output"]])
    asked = [turn["content"] for turn in row["prompt"]]
    answers = [turn["content"] for side in ("chosen", "rejected") for turn in row[side]] if kind == "pairs" else []
    return "\n".join([*asked, *answers])


def scripts(rows, kind):
    """By how many rows are mostly in each script, and how many have a tenth of their letters in another."""
    mostly, mixed = Counter(), 0
    for row in rows:
        names = (unicodedata.name(letter, "?").split()[0] for letter in texts(row, kind) if letter.isalpha())
        found = Counter({"CJK": "Han"}.get(name, name.capitalize()) for name in names)
        (main, size), *_ = found.most_common(1)
        mostly[main] += 1
        mixed += sum(found.values()) - size >= 0.1 * sum(found.values())
    return mostly, mixed


class DataSection:
    """What a run's stages were given."""

    def __init__(self, folder):
        self.folder = folder
        names = [row["name"] for row in json.loads((folder / "run.json").read_text())["stages"]]
        self.manifests = {name: json.loads((folder / name / "manifest.json").read_text()) for name in names}

    def entries(self):
        found = {}
        for name, data, stages in self.uses():
            head = f"{name} used by {', '.join(stages)}"
            for (part, *place), values in self.of(name, data, stages[0]):
                key = ("data", f"{head} / {part}" if part else head, *place)
                assert key not in found, key
                found[key] = values
        return found

    def uses(self):
        """Every data set once in each form in which stages used it."""
        uses = []
        for stage, manifest in self.manifests.items():
            for name, data in manifest["data"].items():
                same = next((use for use in uses if use[:2] == (name, data)), None)
                if same:
                    same[2].append(stage)
                else:
                    uses.append((name, data, [stage]))
        return uses

    def trained(self, data, stage):
        """The rows of the samples that the stage was the first to train on."""
        own, *before = (
            set((self.folder / name / "train_prompts.txt").read_text().split())
            for name in (stage, *(parent["stage"] for parent in self.manifests[stage]["parents"]
                                  if parent["role"] in ("policy", "init")))
        )  # fmt: skip
        mine = own.difference(*before)
        return [row for source in data["sources"] for row in sample(source["path"]) if digest(row) in mine]

    def of(self, name, data, stage):
        kind = {"sft": "demonstrations", "preference": "pairs", "prompts": "prompts"}[name]
        rows = self.trained(data, stage)
        held_out = self.held_out(stage) or data["eval_rows"]
        for source in data["sources"]:
            lines = len(sample(source["path"]))
            given = Counter(row in rows for row in sample(source["path"]))[True]
            for column, value in ((1, lines), (4, lines), (5, given), (6, source["held_out"])):
                yield ("", source["path"], column), [value]
        yield ("", "Rows to train on", 0), [len(rows)]
        yield ("", "Rows held out", 0), [held_out]
        yield from self.facts(data, rows, kind)
        for reason, dropped in data["dropped"].items():
            if dropped:
                yield ("Not trained on", REASONS[reason], 0), [dropped]
        for field, label in LENGTHS.items():
            if spread := data["statistics"].get(field):
                for column, figure in enumerate(("mean", "p50", "p95", "max")):
                    yield ("Lengths in tokens", label, column), [spread[figure]]
        yield from self.shares(rows, kind)

    def held_out(self, stage):
        """By the rows that its evaluation left."""
        for file in ("held_out_pairs.jsonl", "held_out.jsonl"):
            path = self.folder / stage / file
            if path.is_file():
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                return len([line for line in lines if line.get("rollout", 0) == 0])
        return None

    def facts(self, data, rows, kind):
        totals, padding = data["statistics"]["tokens"], data.get("padding", {})
        share = [100 * totals["answers_share"]] if totals["answers_share"] else []
        yield ("", "Tokens", 0), [totals["all"], *share]
        if cut := data["prompts_truncated"]:
            yield ("", "Rows that lost their beginning", 0), [cut]
        if kind == "prompts":
            yield ("", "Prompts with a rule", 0), [sum(bool(row.get("check")) for row in rows)]
        if kind == "pairs":
            longer = data["statistics"]["longer_answer"]
            chosen, rejected, equal = (longer[side] for side in ("chosen", "rejected", "equal"))
            shares = [100 * part / len(rows) for part in (chosen, equal, chosen + equal / 2)]
            assert chosen + rejected + equal == len(rows)
            yield ("", "The longer answer is the chosen one", 0), shares
            if longer["mean_difference"]:
                yield ("", "Chosen answers are on average", 0), [abs(longer["mean_difference"])]
        yield ("", "Rows in more than one script", 0), [scripts(rows, kind)[1]]
        if padding:
            found = []
            for path in PADDING.values():
                value = padding
                for step in path:
                    value = (value or {}).get(step)
                found += [] if value is None else [100 * value]
            yield ("", f"Padding in batches of {padding['batch_rows']} rows", 0), found
        if packed := padding.get("packed"):
            told = "Packed into" if padding["used"] == "packed" else "Would pack into"
            yield ("", told, 0), [packed["sequences"], packed["max_length"], 100 * packed["filled"]]

    def shares(self, rows, kind):
        counted = {"By script": scripts(rows, kind)[0], "By family": Counter(row["family"] for row in rows)}
        if kind == "pairs":
            counted["By fault of the rejected answer"] = Counter(row["fault"] for row in rows if row["fault"])
        if kind == "demonstrations":
            counted["By answers in a conversation"] = Counter(str(len(row.get("history", [])) + 1) for row in rows)
        for title, found in counted.items():
            if len(found) > 1 or title in ("By script", "By fault of the rejected answer"):
                for label, number in found.items():
                    yield (title, label.replace("_", " "), 0), [number]
                    yield (title, label.replace("_", " "), 1), [100 * number / sum(found.values())]

    def bars(self):
        """Each histogram's columns: from, to, rows."""
        for _, data, _ in self.uses():
            for field in LENGTHS:
                if spread := data["statistics"].get(field):
                    width, counts = spread["histogram"]["width"], spread["histogram"]["counts"]
                    assert sum(counts) == data["train_rows"]
                    yield [
                        [at * width, *([at * width + width - 1] if width > 1 else []), number]
                        for at, number in enumerate(counts)
                        if number
                    ]
