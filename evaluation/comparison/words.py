"""Sentences for a comparison. None says better where the interval holds zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evaluation.comparison.equal_kl import Frontier, Pair
from evaluation.comparison.evaluation_set import evaluate_again
from evaluation.comparison.load import ComparedRun
from evaluation.comparison.rows import PolicyRow
from evaluation.comparison.seeds import SeedGroup, same_recipe
from evaluation.comparison.sweeps import Sweep
from evaluation.report.measures import LEAST_PROMPTS, alike, measure_named, plain
from evaluation.report.words import Sentence

_FAR = 0.2
"""A path is read far from its policies where the nearest is this share of the root of the KL away."""
_VALUES = {
    "score": "score by the reward model",
    "score_heldout": "score by a reward model that training did not use",
    "rule_accuracy": "held-out prompts answered right",
}


def verdicts(
    found: Sequence[Frontier], groups: Sequence[SeedGroup] = (), noise: Mapping[str, float] | None = None
) -> list[Sentence]:
    """One sentence for each pair of paths that was compared at equal KL, those that show something first.

    Args:
        found: the frontiers.
        groups: of runs that differ by their seed alone, on whose differences there is nothing to say.
        noise: by measure what another seed alone changes (`seeds.floors`).
    """
    pairs = [pair for one in found for pair in one.pairs if not _by_seed_alone(pair, groups)]
    said = [verdict(pair, (noise or {}).get(pair.metric)) for pair in pairs]
    return [*(one for one in said if one.tone == "better"), *(one for one in said if one.tone != "better")]


def tuned_verdicts(pairs: Sequence[Pair], noise: Mapping[str, float]) -> list[Sentence]:
    """One sentence for each pair of SFT policies as they stand, those that show something first.

    Args:
        pairs: of SFT and the base model, or of two recipes of SFT.
        noise: by measure what another seed of SFT alone changes.
    """
    said = [verdict(pair, noise.get(pair.metric)) for pair in pairs]
    return [*(one for one in said if one.tone == "better"), *(one for one in said if one.tone != "better")]


def _by_seed_alone(pair: Pair, groups: Sequence[SeedGroup]) -> bool:
    """Whether both are one method of one recipe: methods of two stages differ by more than their seed."""
    alike = any(same_recipe(groups, a, b) for a in pair.runs_a for b in pair.runs_b if a != b)
    return alike and pair.a.split(" (")[0] == pair.b.split(" (")[0]


def verdict(pair: Pair, noise: float | None = None) -> Sentence:
    """What one comparison shows, and how sure that is; below what another seed changes, nothing."""
    measure = measure_named(pair.metric)
    value = _VALUES.get(pair.metric, measure.label)
    at = "SFT" if pair.kl is None else f"At equal KL ({plain(pair.kl)} nats)"
    low, high = pair.difference.low, pair.difference.high
    assert pair.difference.estimate is not None and low is not None and high is not None
    unit = " points" if measure.percent else ""
    over = f" over {pair.difference.n} prompts"
    if low <= 0 <= high or pair.difference.n < LEAST_PROMPTS:
        size, least, most = alike(measure, [pair.difference.estimate, low, high])
        text = f"{at}: no difference shown between {pair.a} and {pair.b} in {value} "
        return Sentence(text=f"{text}({pair.b} less {pair.a}: {size}{unit} [{least}, {most}]{over}).", tone="none")
    ahead, behind = (pair.b, pair.a) if pair.difference.estimate > 0 else (pair.a, pair.b)
    if pair.difference.estimate < 0:
        low, high = -high, -low
    size, least, most = alike(measure, [abs(pair.difference.estimate), low, high])
    if noise is not None and abs(pair.difference.estimate) <= noise:
        (chance,) = alike(measure, [noise])
        text = f"{at}: {ahead} is ahead of {behind} by {size}{unit} [{least}, {most}]{over} in {value}, but "
        return Sentence(
            text=f"{text}another seed alone changes it by up to {chance}{unit}: nothing shown.", tone="none"
        )
    text = f"{at}: {ahead} is better than {behind} by {size}{unit} [{least}, {most}]{over} in {value}."
    return Sentence(text=text, tone="better")


def seed_notes(
    groups: Sequence[SeedGroup], noise: Mapping[str, float], tuned_noise: Mapping[str, float]
) -> Iterable[str]:
    """What seeds say of chance; `tuned_noise` is that of SFT, `noise` that of methods."""
    for group in groups:
        seeds = _listed([str(seed) for seed in group.seeds])
        yield (
            f"{_listed(group.runs)} are one recipe with seeds {seeds}: what differs between them is chance, and no "
            "verdict is given on it."
        )
    for whose, sizes in (("", noise), (" between SFT policies", tuned_noise)):
        for metric, size in sizes.items():
            measure = measure_named(metric)
            if metric in _VALUES:
                (shown,) = alike(measure, [size])
                unit = " points" if measure.percent else ""
                yield (
                    f"A difference{whose} in {_VALUES[metric]} must exceed {shown}{unit}, which another seed alone can "
                    "make."
                )


def second_opinions(
    found: Sequence[Frontier], groups: Sequence[SeedGroup] = (), noise: Mapping[str, float] | None = None
) -> Iterable[str]:
    """Where a lead by the score that was trained on is none by the one that was kept apart; arguments as `verdicts`."""
    pairs = [pair for one in found for pair in one.pairs if not _by_seed_alone(pair, groups)]
    apart = {(pair.a, pair.b): pair for pair in pairs if pair.metric == "score_heldout"}
    for pair in pairs:
        other = apart.get((pair.a, pair.b))
        if pair.metric != "score" or other is None:
            continue
        first, second = (_ahead(one, (noise or {}).get(one.metric)) for one in (pair, other))
        if first and first != second:
            yield (
                f"{first} leads by the score that training used, {second or 'nobody'} by the one that it did not: a "
                "lead in the first alone may be its weakness."
            )


def _ahead(pair: Pair, noise: float | None) -> str:
    """Who is shown to be ahead; empty for nobody."""
    if verdict(pair, noise).tone != "better" or pair.difference.estimate is None:
        return ""
    return pair.b if pair.difference.estimate > 0 else pair.a


def notes(
    runs: Sequence[ComparedRun], rows: Sequence[PolicyRow], found: Sequence[Frontier], groups: Sequence[SeedGroup] = ()
) -> Iterable[str]:
    """What keeps figures apart that stand near each other; `groups` as in `verdicts`."""
    judges = {row.score_by: row for row in rows if row.score_by}
    if len(judges) > 1:
        whose = "; ".join(f"{_listed(row.runs)}: {key[:12]}" for key, row in judges.items())
        yield (
            f"Scores come from {len(judges)} reward models ({whose}). Scores of different models are never compared; "
            "rules are the same for all."
        )
    apart = {compared.score_heldout_by: compared.label for compared in runs if compared.score_heldout_by}
    if len(apart) > 1:
        whose = _listed([*apart.values()])
        yield f"Held-out scores come from {len(apart)} reward models ({whose}), and are compared where one gave both."
    references = {path.reference for one in found for path in one.paths}
    if len(references) > 1:
        yield (
            f"KL is counted from {len(references)} different references, each run's own: equal KL then means equally "
            "far from where each started."
        )
    paths = [path for one in found for path in one.paths]
    bare = {compared.label for compared in runs if not compared.sampled}
    without = {
        label for path in paths if not path.spots for label in ([run for run in path.runs if run in bare] or path.runs)
    }
    for label in sorted(without):
        command = evaluate_again(next(compared for compared in runs if compared.label == label))
        yield (
            f"{label} was evaluated without values per prompt, by an older version, so it is shown but not compared at "
            f"equal KL: {command} evaluates it again."
        )
    still = sorted({path.name for path in paths if path.spots and not path.band})
    if still:
        stands = "stands" if len(still) == 1 else "stand"
        yield f"{_listed(still)}: {stands} so near the reference that its KL may be 0; not compared at equal KL."
    if any(path.name.startswith("best of n") for path in paths):
        yield (
            "Best of n stands at the upper bound of its KL, log n - (n-1)/n: in truth it is as near or nearer, which "
            "makes the comparison unfavourable to it."
        )
    pairs = [pair for one in found for pair in one.pairs if not _by_seed_alone(pair, groups)]
    yield from _far_from_measured(pairs)
    if (count := len(pairs)) > 1:
        yield f"{count} comparisons at equal KL, each with a 95 % interval of its own: among many, some miss by chance."
    for compared in runs:
        if not compared.evaluated:
            yield f"{compared.label} has not been evaluated yet; what it has logged so far is shown."


def _far_from_measured(pairs: Sequence[Pair]) -> Iterable[str]:
    """Paths that were read where none of their policies is near, so that the line stands for a measurement."""
    read: dict[tuple[str, str], dict[str, None]] = {}
    for pair in pairs:
        for name, near in ((pair.a, pair.near_a), (pair.b, pair.near_b)):
            if pair.kl is not None and near is not None and abs(near**0.5 - pair.kl**0.5) > _FAR * pair.kl**0.5:
                read.setdefault((name, plain(near)), {})[plain(pair.kl)] = None
    if read:
        told = "; ".join(f"{name} at {_listed([*at])} nats, measured at {near}" for (name, near), at in read.items())
        yield (
            f"Read from the straight line between policies, with none near: {told}. Frontiers that flatten lie above "
            "such a line, so what was read there may be better than is shown: policies near there would tell."
        )


def nothing_compared(sweeps: Sequence[Sweep]) -> str:
    """What is said where there is no verdict."""
    if sweeps:
        return (
            "No two methods could be compared at equal KL: all values of one method are one path, so nothing is shown "
            "about which method is better."
        )
    return "No two methods could be compared at equal KL, so nothing is shown about which of them is better."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
