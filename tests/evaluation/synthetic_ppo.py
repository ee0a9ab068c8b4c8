"""A made-up run directory with a reward model, DPO and PPO behind SFT; each figure can be told from the others."""

from __future__ import annotations

import math

from synthetic_run import DATA, XSS, compared, write, write_lines

STAGES = {"sft": "sft", "reward": "reward", "dpo": "dpo", "ppo": "ppo", "evaluation": "evaluation"}
KEYS = {name: f"{number}{'c7' * 31}e" for number, name in enumerate(STAGES)}
PARENTS = {
    "sft": {}, "reward": {"init": "sft"}, "dpo": {"policy": "sft"}, "ppo": {"policy": "sft", "reward_1": "reward"},
    "evaluation": {name: name for name in STAGES if name != "evaluation"},
}  # fmt: skip
REWARD = {
    "eval_n": 160, "eval_accuracy_before": 0.481, "eval_accuracy": 0.744, "eval_accuracy_ci95": [0.673, 0.809],
    "eval_ties": 4, "eval_loss_before": 0.704, "eval_loss": 0.537, "eval_margin_before": -0.0132,
    "eval_margin": 0.918, "eval_margin_ci95": [0.716, 1.131], "ece": 0.062, "brier": 0.183,
    "reliability": [
        {"confidence": 0.513 + 0.046 * i, "accuracy": 0.471 + 0.0513 * i, "n": 15 + i % 2} for i in range(10)
    ],
    "accuracy_by_length": {
        "equal": {"accuracy": 0.65, "n": 20}, "longer_chosen": {"accuracy": 0.851, "n": 74},
        "shorter_chosen": {"accuracy": 0.652, "n": 66},
    },
    "accuracy_by_fault": {
        "wrong_fact": {"accuracy": 0.619, "n": 21}, "truncated": {"accuracy": 1.0, "n": 9},
        "needless_doubt": {"accuracy": 0.889, "n": 18},
    },
    "accuracy_by_source": {
        "builtin:preference_sample": {"accuracy": 0.731, "n": 130}, "pairs.jsonl": {"accuracy": 0.802, "n": 30},
    },
    "accuracy_by_family": {"arithmetic": {"accuracy": 0.572, "n": 7}, "dates": {"accuracy": 0.877, "n": 8}},
    "score_length_correlation": 0.312, "pad_invariance_residual": 4.8e-07,
    "stress": {
        "padded": {"shift": -0.061, "ci95": [-0.0835, -0.0407], "n": 61},
        "repeated": {"shift": 0.278, "ci95": [0.142, 0.417], "n": 59},
        "flattered": {"shift": 0.019, "ci95": [-0.087, 0.125], "n": 62},
        "truncated": {"shift": -1.27, "ci95": [-1.52, -1.03], "n": 64},
    },
    "members": 2, "member_accuracy": [0.738, 0.719], "score_offset": 1.682, "score_scale": 0.207, "score_n": 256,
    "score_source": "data.sft, demonstrations", "steps": 102, "train_rows": 817,
}  # fmt: skip
PPO = {
    "score_before": 0.121, "score": 0.953, "score_gain": 0.832, "score_gain_ci95": [0.604, 1.062],
    "kl_to_reference": 3.14, "kl_ci95": [2.73, 3.58], "eos_rate_before": 0.953, "eos_rate": 0.984,
    "response_tokens_before": 31.7, "response_tokens": 38.3, "eval_n": 64, "episodes": 768, "rollouts": 12,
    "selected_rollout": 9, "steps": 24, "kl_coef": 0.053, "ratio_first_minibatch_maxdev": 3.1e-07, "stopped": None,
    "measured": [
        {
            "rollout": at, "score": score, "kl_seq": kl, "objective": score - 0.05 * kl, "eos_rate": 0.953 + at / 400,
            "len_mean": 31.7 + at,
        }
        for at, score, kl in (
            (0, 0.121, -0.002), (3, 0.447, 0.62), (6, 0.739, 1.71), (9, 0.953, 3.14), (12, 0.991, 5.66)
        )
    ],
}  # fmt: skip
SETTINGS = {
    "episodes": 768, "rollout_batch_size": 64, "epochs": 2, "minibatches": 1, "learning_rate": 0.0005,
    "value_learning_rate": None, "kl_coef": 0.05, "kl_max": 8.0, "clip_range": 0.2, "gae_lambda": 0.95,
    "temperature": 0.7, "max_new_tokens": 48, "normalise_scores": True, "select": "best",
}  # fmt: skip
ROWS = {
    "base": {
        "rule_accuracy": 0.213, "rule_n": 151, "rule_ci95": [0.147, 0.279], "score": -0.82, "score_n": 48,
        "score_ci95": [-1.11, -0.54], "kl_to_reference": 2.17, "kl_ci95": [1.82, 2.53], "response_tokens": 41.3,
        "eos_rate": 0.42, "perplexity": 9.81, "perplexity_n": 96,
    },
    "sft": {
        "rule_accuracy": 0.523, "rule_n": 151, "rule_ci95": [0.443, 0.603], "score": 0.117, "score_n": 48,
        "score_ci95": [-0.09, 0.33], "kl_to_reference": 0.0, "kl_ci95": [0.0, 0.0], "response_tokens": 30.9,
        "eos_rate": 0.967, "perplexity": 3.31, "perplexity_n": 96,
    },
    "dpo": {
        "rule_accuracy": 0.549, "rule_n": 151, "rule_ci95": [0.469, 0.629], "score": 0.512, "score_n": 48,
        "score_ci95": [0.29, 0.74], "kl_to_reference": 1.23, "kl_ci95": [1.01, 1.46], "response_tokens": 34.6,
        "eos_rate": 0.973, "perplexity": 3.52, "perplexity_n": 96, "preference_accuracy": 0.806,
        "preference_ci95": [0.743, 0.861], "preference_n": 207, "preference_margin": 0.274,
    },
    "ppo": {
        "rule_accuracy": 0.563, "rule_n": 151, "rule_ci95": [0.483, 0.643], "score": 0.941, "score_n": 48,
        "score_ci95": [0.73, 1.15], "kl_to_reference": 3.37, "kl_ci95": [2.91, 3.86], "response_tokens": 39.2,
        "eos_rate": 0.987, "perplexity": 3.94, "perplexity_n": 96,
    },
}  # fmt: skip
RESULTS = {
    "name": "demo",
    "stages": {
        "sft": {"status": "done", "seconds": 61.2, "metrics": {"eval_loss_before": 2.31, "eval_loss": 1.2}},
        "reward": {"status": "done", "seconds": 33.4, "metrics": REWARD},
        "dpo": {"status": "done", "seconds": 12.5, "metrics": {"eval_accuracy": 0.806, "eval_n": 207}},
        "ppo": {"status": "done", "seconds": 644.0, "metrics": PPO},
    },
    "evaluation": {
        "status": "done", "seconds": 310.0, "reference": "sft", "score_by": "reward", "policies": ROWS, "families": {},
        "comparisons": [
            compared("rule_accuracy", "sft", "ppo", 0.04, [-0.021, 0.099]),
            {**compared("score", "sft", "ppo", 0.824, [0.613, 1.041]), "n": 48},
            {**compared("score", "dpo", "ppo", 0.429, [0.218, 0.646]), "n": 48},
        ],
    },
}  # fmt: skip


def write_ppo_run(run):
    """Fill the directory `run` with a finished run of all four kinds of stage with an evaluation."""
    ledger = {
        "name": "demo", "started": "2026-01-02T03:04:05+00:00", "command": "trivet run demo.yaml", "versions": {},
        "stages": [
            {"name": name, "kind": kind, "status": "done", "reason": "not made yet", "key": KEYS[name], "seconds": 9.0}
            for name, kind in STAGES.items()
        ],
    }  # fmt: skip
    write(run / "run.json", ledger)
    write(run / "results.json", RESULTS)
    (run / "recipe.yaml").write_text("name: demo\n")
    for name, kind in STAGES.items():
        settings = {"stage": {"kind": kind, **(SETTINGS if kind == "ppo" else {})}}
        if kind == "ppo":
            settings["rewards"] = [{"parent": "reward_1", "weight": 1.0}, {"rules": True, "weight": 0.5}]
        manifest = {
            "kind": {"reward": "reward_model", "evaluation": "evaluation"}.get(kind, "policy"), "stage": name,
            "stage_kind": kind, "key": KEYS[name], "settings": settings, "data": {"sft": DATA} if kind == "sft" else {},
            "parents": [{"role": role, "stage": of, "key": KEYS[of]} for role, of in PARENTS[name].items()],
        }  # fmt: skip
        write(run / name / "manifest.json", manifest)
    write_lines(run / "sft" / "metrics.jsonl", [point("train", "loss", step, 2 / step) for step in range(1, 9)])
    write_lines(run / "dpo" / "metrics.jsonl", [point("train", "loss", step, 0.7 / step) for step in range(1, 9)])
    write_lines(run / "reward" / "metrics.jsonl", reward_points())
    write_lines(run / "ppo" / "metrics.jsonl", ppo_points())
    write_lines(run / "ppo" / "rollouts.jsonl", rollouts())
    write_lines(run / "evaluation" / "answers.jsonl", answers())


def point(split, name, step, value):
    return {"split": split, "name": name, "step": step, "value": value}


def reward_points():
    points = [point("train", "loss", step, 0.7 - step / 400) for step in range(5, 105, 5)]
    points += [point("train", "accuracy", step, 0.5 + step / 400) for step in range(5, 105, 5)]
    return [*points, point("eval", "accuracy", 0, 0.481), point("eval", "accuracy", 102, 0.744)]


def ppo_points():
    made = {
        "objective/score": lambda at: 0.1 + at / 12, "objective/kl_seq": lambda at: 0.04 * at**2,
        "objective/rlhf_reward": lambda at: 0.1 + at / 13, "response/len_mean": lambda at: 31 + at,
        "response/eos_rate": lambda at: 0.9 + at / 200, "value/explained_var": lambda at: 0.4 + at / 40,
        "policy/clipfrac_high": lambda at: 0.02 + 0.01 * math.sin(at), "policy/clipfrac_low": lambda at: 0.013,
        "policy/entropy": lambda at: 2.4 - at / 20, "policy/grad_norm": lambda at: 1.3,
    }  # fmt: skip
    points = [point("train", name, at, value(at)) for at in range(1, 13) for name, value in made.items()]
    for row in PPO["measured"]:
        points += [point("eval", name, row["rollout"], row[name]) for name in row if name != "rollout"]
    return points


def rollouts():
    return [
        {
            "rollout": at, "prompt": [{"role": "user", "content": f"Say what {at % 5} plus {i} is."}],
            "response": XSS if (at, i) == (11, 0) else f"sampled {at}.{i}" + " and on" * 9, "score": at / 10 + i / 100,
            "score_used": 0.0, "kl": 0.31 * at, "tokens": 20 + at, "eos": (at, i) != (1, 0),
        }
        for at in range(1, 13) for i in range(4)
    ]  # fmt: skip


def answers():
    return [
        {
            "prompt_id": i, "policy": policy, "family": "dates", "tokens": 13, "eos": True, "correct": i % 2 == 0,
            "prompt": [{"role": "user", "content": f"question {i}"}], "response": f"{policy} says {i}",
        }
        for i in range(3) for policy in ROWS
    ]  # fmt: skip
