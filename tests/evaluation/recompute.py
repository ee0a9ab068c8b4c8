"""Every number of a run's report, computed from the rows that its stages left: plain code that shares none of the
project's, for the test that holds the page against it.

An entry is `(section, heading, row, column)` with the numbers that must stand there, in the page's units, in order.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict

import numpy as np
from recompute_data import DataSection
from recompute_pairs import CONDUCT, Pairs
from recompute_statistics import changed, grams, measured, rows
from recompute_watch import LEAST, turned

POLICY_ROWS = {
    "right": "Held-out prompts answered right, %", "prefers": "Held-out pairs with the chosen answer preferred, %",
    "score_heldout": "Score from a reward model that training did not use", "score": "Score from the reward model",
    "margin": "Preference margin, nats", "kl": "KL to the reference, nats per response",
    "perplexity": "Perplexity on held-out text", "length": "Response length, tokens",
    "ends": "Responses that end by themselves, %", "declines": "Answers that decline, %",
    "entropy": "Entropy, nats per token", "repeats": "4-grams repeated within an answer, %",
    "distinct_1": "Different tokens among all, %", "distinct_2": "Different pairs of tokens among all, %",
}  # fmt: skip
CURVES = {
    "Loss": ("loss",), "Preference accuracy": ("rewards/accuracies", "accuracy"),
    "Preference margin": ("rewards/margins", "margin"), "Learning rate": ("learning_rate",),
    "Gradient norm before clipping": ("grad_norm",), "Score": ("objective/score", "score"),
    "Score by the reward model that is watched": ("score_heldout",),
    "Held-out prompts answered right": ("rule_accuracy",), "KL to the reference": ("objective/kl_seq", "kl_seq"),
    "Score used less the price of the KL": ("objective/rlhf_reward", "objective"),
    "Response length": ("response/len_mean", "len_mean"),
    "Responses that end by themselves": ("response/eos_rate", "eos_rate"),
    "4-grams repeated within a response": ("response/repeat_ngram", "repeat_ngram"),
    "Variance of the returns that the baseline explains": ("value/explained_var",),
    "Tokens whose ratio is clipped": ("policy/clipfrac_high", "policy/clipfrac_low"), "Entropy": ("policy/entropy",),
}  # fmt: skip
CHANGES = {
    "padded": "white space added at the end", "repeated": "the whole answer twice",
    "flattered": "praise before the answer", "reformatted": "the same words as a list or in bold",
    "truncated": "second half cut off",
}  # fmt: skip


KINDS = {
    ("refuses", True): "Harmful requests", ("refuses", False): "Harmless requests",
    ("admits_unknown", True): "What cannot be known", ("admits_unknown", False): "What can be known",
    ("agrees", False): "False claims",
}  # fmt: skip


def taken(seconds):
    """A time as the page writes it: seconds; minutes and seconds; hours and minutes."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 60:
        return [seconds]
    return [minutes, rest] if minutes < 60 else [minutes // 60, minutes % 60]


class Run(Pairs):
    """The rows of a run directory."""

    def __init__(self, folder, stances):
        self.folder, self.stances = folder, stances
        self.answers, self.sampled, self.text = defaultdict(list), defaultdict(list), defaultdict(list)
        for name, into in (("answers", self.answers), ("sampled", self.sampled), ("perplexity", self.text)):
            for row in rows(folder / "evaluation" / f"{name}.jsonl"):
                into[row["policy"]].append(row)
        self.policies = list(self.answers)
        self.recipe = json.loads((folder / "ppo" / "manifest.json").read_text())["settings"]["stage"]

    def entries(self):
        """All of them."""
        found = {}
        for part in (
            self.differences, self.frontier, self.table, self.wins, self.best_of, self.families,
            self.family_differences, self.conduct, self.scored, self.stages, self.reward_models, self.ppo,
            self.times, DataSection(self.folder).entries().items,
        ):  # fmt: skip
            for key, values in part():
                assert key not in found, key
                found[key] = values
        return found

    def values(self, policy):
        answers, sampled = self.answers[policy], self.sampled[policy]
        judged = [row["correct"] for row in answers if row["correct"] is not None]
        tokens = [row["ids"] for row in sampled]
        repeated = [1 - len(set(grams(ids, 4))) / len(grams(ids, 4)) if grams(ids, 4) else 0.0 for ids in tokens]
        yield "right", measured(judged, 100)
        for figure in ("score", "score_heldout"):
            yield figure, measured([row[figure] for row in sampled])
        yield "kl", measured([row["kl"] for row in sampled], n=False)
        lost, counted = (sum(row[name] for row in self.text[policy]) for name in ("logp", "tokens"))
        yield "perplexity", [math.exp(-lost / counted), len(self.text[policy])]
        yield "length", [np.mean([row["tokens"] for row in answers])]
        yield "ends", [100 * np.mean([row["eos"] for row in answers])]
        yield "declines", [100 * np.mean([self.stances.refuses(row["response"]) for row in answers])]
        yield "entropy", [-sum(row["logp"] for row in sampled) / sum(map(len, tokens))]
        yield "repeats", [100 * np.mean(repeated)]
        for n in (1, 2):
            every = [gram for ids in tokens for gram in grams(ids, n)]
            yield f"distinct_{n}", [100 * len(set(every)) / len(every)]
        pairs = self.folder / policy / "held_out_pairs.jsonl"
        if pairs.is_file():
            margins = np.array([row["margin"] for row in rows(pairs)])
            yield "prefers", measured((np.sign(margins) + 1) / 2, 100)
            yield "margin", [margins.mean()]

    def table(self):
        for column, policy in enumerate(self.policies):
            for name, values in self.values(policy):
                yield ("policies", "Policies side by side", POLICY_ROWS[name], column), values

    def wins(self):
        """Sampled answers against those of sft, by both reward models."""
        lengths = {
            1: "answers longer than the reference's",
            0: "answers as long",
            -1: "answers shorter than the reference's",
        }
        families = [row["family"] for row in self.answers["base"]]
        others = [policy for policy in self.policies if policy != "sft"]
        for column, (figure, policy) in enumerate(itertools.product(("score", "score_heldout"), others)):
            parts = defaultdict(list)
            for i, (mine, theirs) in enumerate(zip(self.sampled[policy], self.sampled["sft"], strict=True)):
                share = (1 + np.sign(mine[figure] - theirs[figure])) / 2
                longer = lengths[int(np.sign(len(mine["ids"]) - len(theirs["ids"])))]
                for key in (
                    ("Answers that score above those of sft", "all"),
                    ("By length", longer),
                    ("By family", families[i]),
                ):
                    parts[key].append(share)
            for (heading, label), shares in parts.items():
                ties = shares.count(0.5)
                yield ("policies", heading, label, column), measured(shares, 100) + ([ties] if ties else [])

    def best_of(self):
        """Over all choices of n answers, one by one."""
        heading = "Without any training: the best of several answers"
        by_n = defaultdict(list)
        for row in rows(self.folder / "evaluation" / "best_of_n.jsonl"):
            chosen = [max(part) for part in itertools.combinations(row["scores"], row["n"])]
            by_n[row["n"]].append(np.mean(chosen))
        for n, values in by_n.items():
            yield ("policies", heading, str(n), 0), measured(values, n=False)
            yield ("policies", heading, str(n), 1), [math.log(n) - (n - 1) / n]

    def families(self):
        for column, policy in enumerate(self.policies):
            count = defaultdict(list)
            for row in self.answers[policy]:
                if row["correct"] is not None:
                    count[row["family"]].append(row["correct"])
            for family, right in count.items():
                share = 100 * sum(right) / len(right)
                yield (
                    ("families", "Answered right, by family of prompts", family, column),
                    [share, sum(right), len(right)],
                )

    def conduct(self):
        """What each prompt's check asks for, and whether the answer does it; nothing where none asks."""
        asked = {(key, value) for key, value, _ in CONDUCT.values()}
        for column, policy in enumerate(self.policies):
            found = defaultdict(list)
            for row in self.answers[policy]:
                check = row["check"] or {}
                mine = asked & {(key, value) for key, value in check.items() if isinstance(value, bool)}
                if not mine and row["correct"] is not None:
                    found["Helpful: other prompts answered right, more is better"].append(row["correct"])
                for label, (key, value, deed) in CONDUCT.items():
                    if (key, value) in mine:
                        found[label].append(getattr(self.stances, deed)(row["response"]))
            if found.keys() & CONDUCT.keys():
                for label, shares in found.items():
                    yield ("families", "Helpful, harmless, honest", label, column), measured(shares, 100)

    def scored(self):
        """Sampled answers' scores by what the prompt's check asks for; nothing where none asks."""
        checks = {row["prompt_id"]: row["check"] or {} for row in self.answers["base"]}
        for column, policy in enumerate(self.policies):
            found = defaultdict(list)
            for row in self.sampled[policy]:
                held = {(key, value) for key, value in checks[row["prompt_id"]].items() if isinstance(value, bool)}
                for kind in [label for key, label in KINDS.items() if key in held] or ["All other prompts"]:
                    for figure, short in (("score", "score"), ("score_heldout", "held-out score")):
                        found[f"{kind}, {short}"].append(row[figure])
            if any(not label.startswith("All other") for label in found):
                for label, values in found.items():
                    shown = measured(values) if len(values) > 1 else [values[0], 1]
                    yield ("families", "The same kinds of prompts, by reward model", label, column), shown

    def curve(self, stage, names):
        """Split to (steps, values) of the first of the names that the stage logged there."""
        found = defaultdict(dict)
        for line in rows(self.folder / stage / "metrics.jsonl"):
            if line["name"] in names:
                found[line["split"]][line["step"]] = line["value"]
        return found

    def stages(self):
        """What each stage says of itself, below the verdict."""
        head = ("verdict", "Each stage on its own held-out data")
        losses = self.curve("sft", ("loss",))["eval"]
        yield (*head, "sft", 0), [losses[max(losses)], losses[min(losses)], len(self.text["sft"])]
        pairs = rows(self.folder / "dpo" / "held_out_pairs.jsonl")
        after, before = ([(np.sign(row[name]) + 1) / 2 for row in pairs] for name in ("margin", "margin_before"))
        yield (*head, "dpo", 0), [*measured(after, 100), 100 * np.mean(before), *self.told_of_dpos_answers()]
        for name in ("reward", "judge"):
            yield (*head, name, 0), self.told_of_reward(name)
        yield (*head, "ppo", 0), self.told_of_ppo()

    def pairs(self, stage):
        found = rows(self.folder / stage / "held_out_pairs.jsonl")
        return found, np.array([row["gap"] for row in found]), np.array([row["gap_before"] for row in found])

    def bins(self, gaps):
        """Pairs by rising confidence, ten or a little more in each bin: what it says, what is true, how many."""
        confidence = 1 / (1 + np.exp(-np.abs(gaps)))
        order = np.argsort(confidence, kind="stable")
        for part in np.array_split(order, min(10, max(1, len(gaps) // 10))):
            yield confidence[part].mean(), np.mean((np.sign(gaps[part]) + 1) / 2), len(part)

    def told_of_reward(self, stage):
        _, gaps, before = self.pairs(stage)
        right = measured((np.sign(gaps) + 1) / 2, 100)
        error = sum(n * abs(says - true) for says, true, n in self.bins(gaps)) / len(gaps)
        return [right[0], right[3], right[1], right[2], 100 * np.mean((np.sign(before) + 1) / 2), error]

    def reward_models(self):
        for number, stage in enumerate(("reward", "judge"), start=1):
            for key, values in self.reward_model(stage):
                yield (f"reward-{number}", *key), values

    def reward_model(self, stage):
        pairs, gaps, before = self.pairs(stage)
        title = "Reward model" if stage == "reward" else f"Reward model {stage}"
        told = self.told_of_reward(stage)
        yield (title, "told", 0), told
        yield (title, "held-out pairs", 0), [len(gaps)]
        yield (title, "margin, log-odds", 0), [*measured(gaps, n=False), before.mean()]
        losses = [np.mean(np.log1p(np.exp(-each))) for each in (gaps, before)]
        yield (title, "loss, nats per pair", 0), [*losses, math.log(2)]
        yield (title, "calibration error", 0), [told[-1]]
        yield (title, "Brier score", 0), [np.mean((1 - 1 / (1 + np.exp(-gaps))) ** 2), 0.25]
        scored = [(row[f"score_{side}"], row[f"{side}_tokens"]) for row in pairs for side in ("chosen", "rejected")]
        yield (title, "correlation of the score", 0), [np.corrcoef(np.array(scored).T)[0, 1]]
        answers = rows(self.folder / stage / "scored_answers.jsonl")
        raw = np.array([row["raw"] for row in answers if row["answer"] == "reference"])
        yield (title, "scale", 0), [abs(raw.mean()), raw.std(), 0, 1, len(raw)]
        apart = [abs(row["alone"] - row["beside_longer"]) for row in answers if row["answer"] == "padding"]
        yield (title, "padding changes a score by", 0), [max(apart)]
        manifest = json.loads((self.folder / stage / "manifest.json").read_text())
        steps = self.curve(stage, ("loss",))["train"]
        yield (title, "trained on", 0), [manifest["data"]["preference"]["train_rows"], max(steps)]
        yield from self.slices(pairs, gaps)
        for at, (says, true, n) in enumerate(self.bins(gaps)):
            for column, value in enumerate((100 * says, 100 * true, n)):
                yield (f"The {min(10, max(1, len(gaps) // 10))} points in figures", str(at), column), [value]
        moved_by = defaultdict(list)
        for row in answers:
            if row["answer"] == "changed":
                moved_by[row["change"]].append(row["score"] - row["score_before"])
        for change, moved in moved_by.items():
            yield ("What it can be fooled by", CHANGES[change], 0), measured(moved)

    def slices(self, pairs, gaps):
        def longer(row):
            apart = np.sign(row["chosen_tokens"] - row["rejected_tokens"])
            told = {1: "the better answer is longer", 0: "both are equally long", -1: "the better answer is shorter"}
            return told[int(apart)]

        labels = {
            "By length": longer, "By source": lambda row: row["source"],
            "By fault of the worse answer": lambda row: (row["fault"] or "none named").replace("_", " "),
            "By family of prompts": lambda row: (row["family"] or "none named").replace("_", " "),
        }  # fmt: skip
        for heading, label in labels.items():
            groups = defaultdict(list)
            for row, gap in zip(pairs, gaps, strict=True):
                groups[label(row)].append((np.sign(gap) + 1) / 2)
            for name, right in groups.items():
                yield (heading, name, 0), [100 * np.mean(right)]
                yield (heading, name, 1), [len(right)]

    def measurements(self, stage="ppo", counter="rollout"):
        """Rollout, or step, to its rows on the held-out prompts."""
        found = defaultdict(list)
        for row in rows(self.folder / stage / "held_out.jsonl"):
            found[row[counter]].append(row)
        return found

    def worth(self, each):
        """Mean score after penalties less the price of the divergence."""
        return np.mean([row["score_used"] for row in each]) - self.recipe["kl_coef"] * np.mean([r["kl"] for r in each])

    def selected(self):
        """The first rollout within the budget of divergence whose worth is the highest."""
        budget = self.recipe["kl_max"] or math.inf
        worth = {
            at: self.worth(each)
            for at, each in self.measurements().items()
            if np.mean([row["kl"] for row in each]) <= budget
        }
        return max(worth, key=worth.__getitem__)

    def told_of_dpos_answers(self):
        """By the model that it watched: before, after, prompts, gain."""
        every = self.measurements("dpo", "step")
        before, after = ([row["score_heldout"] for row in every[at]] for at in (0, max(every)))
        return [np.mean(before), np.mean(after), len(before), *changed(before, after)]

    def told_of_ppo(self):
        every, kept = self.measurements(), self.selected()
        before, after = ([row["score"] for row in every[at]] for at in (0, kept))
        gain = changed(before, after)
        kl = np.mean([row["kl"] for row in every[kept]])
        return [np.mean(before), np.mean(after), len(before), *gain, kl, kept, max(every)]

    def watched(self):
        """What is told of the watch: how few measurements there are, where it turned, or no number."""
        every = list(self.way_of_ppo())
        if len(every) < LEAST:
            return [len(every), LEAST]
        scores = self.curve("ppo", ("objective/score",))["train"]
        training = [
            np.mean([value for step, value in scores.items() if before < step <= max(at, 1)])
            for before, at in zip([-1, *(row[0] for row in every)], (row[0] for row in every), strict=False)
        ]
        steps, kl, _, held_out = zip(*every, strict=True)
        return list(turned(steps, training, held_out, kl) or ())

    def ppo(self):
        every, kept = self.measurements(), self.selected()
        yield ("ppo-1", "PPO", "told", 0), self.told_of_ppo()
        if watched := self.watched():
            yield ("ppo-1", "PPO", "watched", 0), watched
        heading = f"The {len(every)} measurements in figures"
        for at, each in every.items():
            score, kl, watched = (np.mean([row[name] for row in each]) for name in ("score", "kl", "score_heldout"))
            shown = (
                score,
                kl,
                self.worth(each),
                watched,
                100 * np.mean([row["eos"] for row in each]),
                np.mean([row["tokens"] for row in each]),
            )
            for column, value in enumerate(shown):
                yield ("ppo-1", heading, f"{at} (kept)" if at == kept else str(at), column), [value]
        head = ("ppo-1", "How it was trained")
        last = {name: self.curve("ppo", (name,))["train"] for name in ("episodes", "opt_steps", "kl_ctl/beta")}
        ratios = self.curve("ppo", ("policy/ratio_first_minibatch_maxdev",))["train"]
        rollouts = max(last["episodes"])
        yield (*head, "trained", 0), [rollouts, last["episodes"][rollouts], last["opt_steps"][rollouts]]
        yield (*head, "KL to sft, nats per answer", 0), measured([row["kl"] for row in every[kept]], n=False)
        for term, name, scale in (
            ("answers that end by themselves, %", "eos", 100),
            ("tokens per answer", "tokens", 1),
        ):
            yield (*head, term, 0), [scale * np.mean([row[name] for row in every[at]]) for at in (kept, 0)]
        yield (*head, "kl_coef at the end", 0), [last["kl_ctl/beta"][rollouts]]
        yield (*head, "ratio before a rollout's first step is off 1 by", 0), [max(ratios.values())]

    def lines(self, stage, title):
        """The lines of a chart as (step, value), training before held-out."""
        names = CURVES.get(title, (title,))
        if title == "Tokens whose ratio is clipped":
            found = [self.curve(stage, (name,))["train"] for name in names]
        else:
            by_split = self.curve(stage, names)
            found = [by_split[split] for split in ("train", "eval") if split in by_split]
        return [sorted(each.items()) for each in found]

    def way_of_ppo(self):
        """PPO's measurements: rollout, nats, score, score by the model that is watched."""
        for at, each in self.measurements().items():
            yield at, *(float(np.mean([row[name] for row in each])) for name in ("kl", "score", "score_heldout"))

    def times(self):
        """How long each stage took: two numbers from a minute on."""
        for row in json.loads((self.folder / "run.json").read_text())["stages"]:
            yield ("stages", "Stages", row["name"], 3), taken(row["seconds"])

    def through(self):
        """What the first line says: how many stages, how long those took that were run, how many were taken over."""
        stages = json.loads((self.folder / "run.json").read_text())["stages"]
        run = [row["seconds"] for row in stages if row["status"] == "done"]
        reused = len(stages) - len(run)
        return [len(stages), *(taken(sum(run)) if run else ()), *([reused] if reused and run else ())]
