"""A run directory made up for the tests of the report: each figure in it can be told from the others."""

from __future__ import annotations

import json

KEYS = {name: name[0] * 2 + "ab" * 31 for name in ("sft", "dpo", "evaluation")}
XSS = "<script>alert('stored')</script><img src=x onerror=alert(1)>"


def compared(metric, before, after, difference, ci95):
    return {"metric": metric, "from": before, "to": after, "difference": difference, "ci95": ci95, "n": 151}


def ledger_row(name, status, reason, seconds):
    return {"name": name, "kind": name, "status": status, "reason": reason, "key": KEYS[name], "seconds": seconds}


RESULTS = {
    "name": "demo",
    "stages": {
        "sft": {
            "status": "done",
            "seconds": 61.2,
            "metrics": {"eval_loss_before": 2.31, "eval_loss": 1.2, "eval_rows": 180},
        },
        "dpo": {
            "status": "done",
            "seconds": 12.5,
            "metrics": {
                "eval_accuracy_before": 0.5,
                "eval_accuracy": 0.806,
                "eval_accuracy_ci95": [0.743, 0.861],
                "eval_n": 207,
            },
        },
    },
    "evaluation": {
        "status": "done",
        "seconds": 4000.0,
        "reference": "sft",
        "policies": {
            "base": {
                "rule_accuracy": 0.213, "rule_n": 151, "rule_ci95": [0.147, 0.279], "perplexity": 9.81, "score": None,
            },
            "sft": {
                "rule_accuracy": 0.523, "rule_n": 151, "rule_ci95": [0.443, 0.603], "perplexity": 3.31, "score": None,
            },
            "dpo": {
                "rule_accuracy": 0.549, "rule_n": 151, "rule_ci95": [0.469, 0.629], "perplexity": 3.52, "score": None,
                "kl_to_reference": 1.23, "kl_ci95": [1.01, 1.46], "novelty": 0.371,
            },
        },
        "families": {
            "base": {"arithmetic": {"n": 12, "correct": 3}, "dates": {"n": 17, "correct": 0}},
            "sft": {"arithmetic": {"n": 12, "correct": 7}, "dates": {"n": 17, "correct": 9}},
        },
        "comparisons": [
            compared("rule_accuracy", "base", "sft", 0.31, [0.24, 0.38]),
            compared("rule_accuracy", "sft", "dpo", 0.026, [-0.03, 0.083]),
            compared("kl_to_reference", "sft", "dpo", 1.23, [1.01, 1.46]),
        ],
    },
}  # fmt: skip
DATA = {
    "sources": [
        {
            "path": "builtin:alpaca_sample", "format": "alpaca", "rows_read": 393,
            "dropped": {"empty_answer": 11}, "kept": 382,
        }
    ],
    "train_rows": 202, "eval_rows": 177, "dropped": {"duplicate": 2, "too_long": 1, "held_out_elsewhere": 0},
    "tokens": {"mean": 60.5, "p95": 141, "max": 304}, "prompts_truncated": 5,
}  # fmt: skip


def write_run(run):
    """Fill the directory `run` with a finished run of SFT and DPO with an evaluation, as the pipeline writes it."""
    ledger = {
        "name": "demo", "started": "2026-01-02T03:04:05+00:00", "command": "trivet run demo.yaml --set seed=18",
        "versions": {"trivet": "0.1.0", "torch": "2.13.0"},
        "stages": [
            ledger_row("sft", "skipped", "sealed already", 61.2),
            ledger_row("dpo", "done", "not made yet", 12.5),
            ledger_row("evaluation", "done", "", 4000.0),
        ],
    }  # fmt: skip
    parents = {"sft": [], "dpo": [("policy", "sft")], "evaluation": [("policy", "sft"), ("policy", "dpo")]}
    for name, made_from in parents.items():
        manifest = {
            "kind": "policy", "stage": name, "key": KEYS[name], "seed": 17, "world_size": 1,
            "parents": [{"role": role, "stage": stage, "key": KEYS[stage]} for role, stage in made_from],
            "base": {"name": "builtin:smollm2-135m-instruct", "revision": None, "fingerprint": "b179c952"},
            "code": {"commit": "cf85b4b", "dirty": True}, "libraries": {"torch": "2.13.0"},
            "data": {"sft": DATA} if name == "sft" else {},
        }  # fmt: skip
        write(run / name / "manifest.json", manifest)
    for stage, names in {"sft": ["loss", "learning_rate"], "dpo": ["loss", "rewards/accuracies"]}.items():
        points = [
            {"stage": stage, "step": step, "split": split, "name": name, "value": 1.5 / step, "time": 0.0}
            for step in range(1, 6) for name in names for split in ("train", "eval")
        ]  # fmt: skip
        write_lines(run / stage / "metrics.jsonl", points)
    answers = [
        {
            "prompt_id": i, "policy": policy, "family": ["arithmetic", "dates"][i % 2], "tokens": 13, "eos": True,
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "response": XSS if policy == "dpo" else f"{policy} says {i}", "correct": [True, False, None][i % 3],
        }
        for i in range(20) for policy in ("base", "sft", "dpo")
    ]  # fmt: skip
    write_lines(run / "evaluation" / "answers.jsonl", answers)
    (run / "recipe.yaml").write_text("name: demo\nseed: 18\n")
    write(run / "run.json", ledger)
    write(run / "results.json", RESULTS)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
