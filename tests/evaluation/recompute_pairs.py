"""How two policies of a run compare, row by row, by family and at equal KL, computed from the rows on disk alone."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
from recompute_statistics import exact, grams, interval, measured, read, rows, tail

PAIRS = [("base", "sft"), ("sft", "dpo"), ("sft", "ppo"), ("dpo", "ppo")]
COMPARED = {
    "rule_accuracy": "Held-out prompts answered right, points",
    "score_heldout": "Score from a reward model that training did not use", "score": "Score from the reward model",
    "response_tokens": "Response length, tokens", "eos_rate": "Responses that end by themselves, points",
    "refusal_rate": "Answers that decline, points", "repetition": "4-grams repeated within an answer, points",
    "perplexity": "Perplexity on held-out text", "entropy": "Entropy, nats per token",
    "Harmless: harmful requests declined, more is better": "Harmful requests declined, points",
    "Over-refusal: harmless requests declined, less is better": "Harmless requests declined, points",
    "Honest: says so where it cannot be known, more is better": "Says so where it cannot be known, points",
    "Needless doubt: says so where it can be known, less is better": "Says it cannot be known where it can, points",
    "Gives in to a false claim, less is better": "False claims agreed to, points",
}  # fmt: skip
CONDUCT = {
    "Harmless: harmful requests declined, more is better": ("refuses", True, "refuses"),
    "Over-refusal: harmless requests declined, less is better": ("refuses", False, "refuses"),
    "Honest: says so where it cannot be known, more is better": ("admits_unknown", True, "admits_unknown"),
    "Needless doubt: says so where it can be known, less is better": ("admits_unknown", False, "admits_unknown"),
    "Gives in to a false claim, less is better": ("agrees", False, "gives_in"),
}


class Pairs:
    """The part of a run's numbers that are about two policies; `Run` has read the rows."""

    def shares(self, policy):
        """Every figure that is a mean over prompts: one value per prompt, None where it was not asked for."""
        answers, sampled = self.answers[policy], self.sampled[policy]
        yield "rule_accuracy", [None if row["correct"] is None else float(row["correct"]) for row in answers]
        for figure in ("score_heldout", "score"):
            yield figure, [row[figure] for row in sampled]
        yield "response_tokens", [row["tokens"] for row in answers]
        yield "eos_rate", [float(row["eos"]) for row in answers]
        yield "refusal_rate", [float(self.stances.refuses(row["response"])) for row in answers]
        repeated = []
        for row in sampled:
            every = grams(row["ids"], 4)
            repeated.append(1 - len(set(every)) / len(every) if every else 0.0)
        yield "repetition", repeated
        for label, (key, value, deed) in CONDUCT.items():
            asked = [(row["check"] or {}).get(key) is value for row in answers]
            does = [float(getattr(self.stances, deed)(row["response"])) for row in answers]
            yield label, [one if mine else None for one, mine in zip(does, asked, strict=True)]

    def comparisons(self):
        """(metric, before, after) to difference, interval, n: every stage behind its start, and PPO behind DPO."""
        for before, after in PAIRS:
            for (metric, mine), (_, theirs) in zip(self.shares(before), self.shares(after), strict=True):
                gaps = [b - a for a, b in zip(mine, theirs, strict=True) if None not in (a, b)]
                percent = metric not in ("score", "score_heldout", "response_tokens")
                if gaps:
                    within = (-1, 1) if percent else None
                    yield (metric, before, after), measured(gaps, 100 if percent else 1, within=within)
            yield ("perplexity", before, after), self.ratio(self.text, before, after, math.exp)
            yield ("entropy", before, after), self.ratio(self.sampled, before, after, float)

    def ratio(self, source, before, after, of):
        """Nats over tokens, both summed over rows, or `of` it: the difference, resampled row by row."""

        def worth(picked, policy):
            mine = [source[policy][i] for i in picked]
            return of(-sum(row["logp"] for row in mine) / sum(row["tokens"] for row in mine))

        n = len(source[before])
        nats, tokens = (
            np.array([[row[name] for row in source[policy]] for policy in (before, after)])
            for name in ("logp", "tokens")
        )
        picked = np.random.default_rng(0).integers(n, size=(10_000, n))
        drawn = -nats[:, picked].sum(2) / tokens[:, picked].sum(2)
        drawn = np.exp(drawn) if of is math.exp else drawn
        low, high = np.quantile(drawn[1] - drawn[0], [tail(n), 1 - tail(n)])
        return [worth(range(n), after) - worth(range(n), before), low, high, n]

    def differences(self):
        """The table of all comparisons, a column for each two policies."""
        found = list(self.comparisons())
        heading = f"All {len(found)} comparisons in figures"
        for (metric, *pair), values in found:
            yield ("verdict", heading, COMPARED.get(metric, metric), PAIRS.index(tuple(pair))), values

    def family_differences(self):
        """Family by family, exact intervals of which all of two policies hold together."""
        for column, (before, after) in enumerate(PAIRS):
            found = defaultdict(list)
            for mine, theirs in zip(self.answers[before], self.answers[after], strict=True):
                if None not in (mine["correct"], theirs["correct"]):
                    found[mine["family"]].append(theirs["correct"] - mine["correct"])
            for family, gaps in found.items():
                miss = 0.05 / len(found) / 2
                moved, won = sum(gap != 0 for gap in gaps), sum(gap > 0 for gap in gaps)
                ends = [exact(moved, len(gaps), miss), exact(won, moved, miss)]
                corners = [100 * m * (2 * w - 1) for m, w in itertools.product(*ends)]
                values = [100 * sum(gaps) / len(gaps), min(corners), max(corners), len(gaps)]
                yield ("families", "Differences by family", f"{family}, points", column), values

    def places(self, metric):
        """Paths on the frontier: name to nats and value per prompt of reference and policy, or of best of n."""

        def spot(policy):
            rows = self.answers[policy] if metric == "rule_accuracy" else self.sampled[policy]
            of = "correct" if metric == "rule_accuracy" else metric
            size = max(len(self.answers[policy]), len(self.sampled[policy]))
            columns = np.full((2, size), np.nan)
            columns[0, : len(self.sampled[policy])] = [row["kl"] for row in self.sampled[policy]]
            columns[1, : len(rows)] = [math.nan if row[of] is None else row[of] for row in rows]
            return columns

        start = spot("sft")
        found = {name: [start, spot(name)] for name in ("dpo", "ppo") if name in self.policies}
        if metric == "score":
            by_n = defaultdict(list)
            for row in rows(self.folder / "evaluation" / "best_of_n.jsonl"):
                best = np.mean([max(part) for part in itertools.combinations(row["scores"], row["n"])])
                by_n[row["n"]].append(best)
            path = [start]
            for n, values in by_n.items():
                columns = np.full_like(start, np.nan)
                columns[:, : len(values)] = [[math.log(n) - (n - 1) / n] * len(values), values]
                path.append(columns)
            found["best of n"] = path
        return found

    def at_equal_kl(self):
        """(metric, a, b) to nats, both values there, their difference and its interval, and the fewest prompts."""
        for metric in ("score_heldout", "rule_accuracy", "score"):
            paths = self.places(metric)
            away = {name: max(np.nanmean(spot[0]) for spot in path) for name, path in paths.items()}
            for a, b in itertools.combinations(paths, 2):
                furthest = [max(paths[name], key=lambda spot: np.nanmean(spot[0]))[0] for name in (a, b)]
                if min(interval(kl[np.isfinite(kl)], draws=2000)[0] for kl in furthest) <= 0:
                    continue
                kl = min(away[a], away[b])
                ends = [read(paths[name], kl) for name in (a, b)]
                n = min(np.isfinite(column).sum() for name in (a, b) for spot in paths[name] for column in spot)
                generator, size, gaps = np.random.default_rng(0), paths[a][0].shape[1], []
                for _ in range(8):
                    for count in generator.multinomial(size, np.full(size, 1 / size), size=500):
                        picked = np.repeat(np.arange(size), count)
                        gaps.append(read(paths[b], kl, picked) - read(paths[a], kl, picked))
                        low, high = np.nanquantile(gaps, [tail(n), 1 - tail(n)])
                yield (metric, a, b), [kl, *ends, ends[1] - ends[0], low, high, n]

    def frontier(self):
        """The table below the charts; rows of one value and other methods are told apart by their place."""
        found = list(self.at_equal_kl())
        heading = f"The {len(found)} {'comparison' if len(found) == 1 else 'comparisons'} at equal KL in figures"
        for (metric, a, b), (kl, *ends, gap, low, high, _) in found:
            for column, values in zip((2, 3, 4, 5), ([kl], [ends[0]], [ends[1]], [gap, low, high]), strict=True):
                yield ("frontier", heading, f"{metric.replace('_', ' ')}: {a}, {b}", column), values
