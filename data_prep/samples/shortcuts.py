"""What can be told about a pair without reading it: `python -m data_prep.samples.shortcuts` prints the accuracies.

Small classifiers that see only lengths, only the first tokens or only the language are trained on the train pairs and
tried on the eval pairs. Near one half means that a reward model cannot learn from these pairs to prefer, say, the
longer answer. numpy only.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from data_prep.samples import PREFERENCES, tokens
from data_prep.text_forms import language

Row = dict[str, Any]
Array = np.ndarray
Learner = Callable[[Array, Array], Callable[[Array], Array]]


def answers(row: Row) -> tuple[str, str]:
    """The chosen and the rejected answer."""
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


def length_features(first: str, second: str) -> list[float]:
    """Characters and words of both, their differences and log ratios."""
    (c1, w1), (c2, w2) = tokens.sizes(first), tokens.sizes(second)
    return [c1, w1, c2, w2, c1 - c2, w1 - w2, abs(c1 - c2), abs(w1 - w2), math.log(c1 / c2), math.log(w1 / w2)]


def _oriented(rows: Sequence[Row]) -> tuple[Array, Array]:
    """Each pair both ways round: is the first answer the chosen one?"""
    features, first_chosen = [], []
    for row in rows:
        chosen, rejected = answers(row)
        features += [length_features(chosen, rejected), length_features(rejected, chosen)]
        first_chosen += [True, False]
    return np.array(features), np.array(first_chosen)


def logistic(features: Array, labels: Array, steps: int = 400, decay: float = 1e-2) -> Callable[[Array], Array]:
    """Logistic regression by gradient descent on standardised features."""
    mean, spread = features.mean(0), features.std(0) + 1e-9

    def design(x: Array) -> Array:
        return np.hstack([(x - mean) / spread, np.ones((len(x), 1))])

    x, weight = design(features), np.zeros(features.shape[1] + 1)
    for _ in range(steps):
        error = 1 / (1 + np.exp(-np.clip(x @ weight, -30, 30))) - labels
        weight -= 0.3 * (x.T @ error / len(x) + decay * weight)
    return lambda other: design(other) @ weight > 0


def quadratic(features: Array, labels: Array) -> Callable[[Array], Array]:
    """Logistic regression on the features and their products."""
    mean, spread = features.mean(0), features.std(0) + 1e-9
    upper = np.triu_indices(features.shape[1])

    def expand(x: Array) -> Array:
        z = (x - mean) / spread
        return np.hstack([z, (z[:, :, None] * z[:, None, :])[:, upper[0], upper[1]]])

    fitted = logistic(expand(features), labels)
    return lambda other: fitted(expand(other))


def tree(depth: int, smallest: int = 40) -> Learner:
    """Greedy decision tree; depth 1 is the best single threshold."""

    def fit(features: Array, labels: Array, left_depth: int = depth) -> Callable[[Array], Array]:
        majority = labels.mean() >= 0.5
        best = _best_threshold(features, labels, smallest) if left_depth else None
        if best is None:
            return lambda other: np.full(len(other), majority)
        column, threshold = best
        below = features[:, column] <= threshold
        low = fit(features[below], labels[below], left_depth - 1)
        high = fit(features[~below], labels[~below], left_depth - 1)
        return lambda other: np.where(other[:, column] <= threshold, low(other), high(other))

    return fit


def _best_threshold(features: Array, labels: Array, smallest: int) -> tuple[int, float] | None:
    """The split with the fewest mistakes (Gini impurity), if any leaves enough on both sides."""
    best, lowest = None, np.inf
    for column in range(features.shape[1]):
        for threshold in np.unique(features[:, column])[:-1]:
            below = features[:, column] <= threshold
            sizes = below.sum(), (~below).sum()
            if min(sizes) < smallest:
                continue
            shares = labels[below].mean(), labels[~below].mean()
            impurity = sum(n * p * (1 - p) for n, p in zip(sizes, shares, strict=True))
            if impurity < lowest:
                best, lowest = (column, float(threshold)), impurity
    return best


def naive_bayes(bags: Sequence[Iterable[str]], labels: Sequence[bool]) -> Callable[[Sequence[Iterable[str]]], Array]:
    """Multinomial naive Bayes with add-one smoothing."""
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for bag, label in zip(bags, labels, strict=True):
        counts[label].update(bag)
    size = len(counts[True] | counts[False])
    total = {label: sum(count.values()) + size for label, count in counts.items()}

    def odds(bag: Iterable[str]) -> float:
        return sum(
            math.log((counts[True][token] + 1) / total[True]) - math.log((counts[False][token] + 1) / total[False])
            for token in bag
        )

    return lambda other: np.array([odds(bag) > 0 for bag in other])


def opening_bag(text: str, count: int) -> list[str]:
    """The first tokens, each also with its place and with digits made alike."""
    found = tokens.opening(text, count)
    return [*found, *(f"{place} {tokens.masked(token)}" for place, token in enumerate(found))]


def _single(rows: Sequence[Row], features: Callable[[str], list[str]]) -> tuple[list[list[str]], list[bool]]:
    bags = [features(text) for row in rows for text in answers(row)]
    return bags, [True, False] * len(rows)


def accuracies(rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy on the eval pairs of every shortcut classifier."""
    train, held = ([row for row in rows if row["split"] == split] for split in ("train", "eval"))
    x, y = _oriented(train)
    x_eval, y_eval = _oriented(held)
    learners: dict[str, Learner] = {
        "lengths, logistic": logistic,
        "lengths, logistic with products": quadratic,
        **{f"lengths, tree of depth {depth}": tree(depth) for depth in (1, 2, 3, 4, 6)},
    }
    found = {name: float((fit(x, y)(x_eval) == y_eval).mean()) for name, fit in learners.items()}
    views: dict[str, Callable[[str], list[str]]] = {
        **{f"opening of {k}": lambda text, k=k: opening_bag(text, k) for k in (1, 2, 3)},  # type: ignore[misc]
        "language": lambda text: [language(text)],
    }
    for name, view in views.items():
        classify = naive_bayes(*_single(train, view))
        bags, labels = _single(held, view)
        found[f"{name}, naive Bayes"] = float((classify(bags) == np.array(labels)).mean())
    return found


def read_pairs() -> list[Row]:
    """The committed preference rows."""
    return [json.loads(line) for line in PREFERENCES.read_text(encoding="utf-8").strip().split("\n")]


if __name__ == "__main__":
    for name, accuracy in accuracies(read_pairs()).items():
        print(f"{name:35} {accuracy:.3f}")
