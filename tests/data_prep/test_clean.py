"""Duplicates, limits and mixtures: decided by content and seed, never by order."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.clean import content_key, drop_duplicates, limit_records, mix, mixture_counts
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt
from pipeline.errors import DataError


def demonstration(*texts: str, row: int = 1) -> Demonstration:
    roles = ("user", "assistant") * len(texts)
    messages = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return Demonstration(messages=messages, origin=Origin(source="x", row=row))


def pair(question: str, chosen: str, rejected: str) -> PreferencePair:
    prompt = (Message(role="user", content=question),)
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, origin=Origin(source="x", row=1))


def prompt(question: str, reference: str | None = None) -> Prompt:
    messages = (Message(role="user", content=question),)
    return Prompt(messages=messages, reference=reference, origin=Origin(source="x", row=1))


def many(count: int, source: str = "q") -> list[Demonstration]:
    return [demonstration(f"{source} {n}", "answer", row=n + 1) for n in range(count)]


SAME = [
    (demonstration("Why?", "So."), demonstration(" why? ", "So.\n", row=9)),
    (demonstration("a", "b", "c", "d"), demonstration("a", "b", "c ", " d")),
    (pair("q", "a", "b"), pair("Q", "a", " b")),
    (prompt("q"), prompt("q", "reference")),
]
DIFFERENT = [
    (demonstration("Why?", "So."), demonstration("Why?", "SO.")),
    (demonstration("a", "b", "c", "d"), demonstration("a", "b", "C", "d")),
    (demonstration("a", "b", "c", "d"), demonstration("a", "b")),
    (pair("q", "a", "b"), pair("q", "b", "a")),
    (pair("q", "a b", ""), pair("q", "a", "b")),
    (pair("q", "a", "b"), prompt("q")),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_content_has_one_key(one, other) -> None:
    assert content_key(one) == content_key(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_content_has_another_key(one, other) -> None:
    assert content_key(one) != content_key(other)


def test_duplicates_are_dropped_and_counted() -> None:
    first, again, other = demonstration("a", "b"), demonstration("A", "b", row=2), demonstration("a", "c", row=3)
    cleaned = drop_duplicates([first, other, again, again])
    assert (cleaned.records, cleaned.dropped) == ([first, other], {"duplicate": 2})
    assert drop_duplicates([first, other]).dropped == {}


def test_a_limit_does_not_depend_on_order() -> None:
    records = many(50)
    shuffled = random.Random(3).sample(records, 50)
    sample = limit_records(records, 10, seed=1)
    assert sample == limit_records(shuffled, 10, seed=1)
    assert len({record.origin.row for record in sample}) == 10
    assert sample != limit_records(records, 10, seed=2)
    assert sample != records[:10]


def test_a_limit_does_not_depend_on_order_among_duplicates() -> None:
    twins = [demonstration("a", "b", row=1), demonstration("a", "b", row=2)]
    assert limit_records(twins, 1, seed=0) == limit_records(twins[::-1], 1, seed=0)


def test_a_larger_limit_adds_to_a_smaller_one() -> None:
    records = many(30)
    assert limit_records(records, 20, seed=4)[:7] == limit_records(records, 7, seed=4)
    assert sorted(record.origin.row for record in limit_records(records, 99, seed=4)) == list(range(1, 31))


def test_no_limit_leaves_the_records_as_they_stand() -> None:
    records = many(5)
    assert limit_records(records, None, seed=4) == records
    with pytest.raises(ValueError, match="at least 1"):
        limit_records(records, 0, seed=4)


def test_every_record_is_as_likely_as_another() -> None:
    records = many(20)
    drawn = [record.origin.row for seed in range(400) for record in limit_records(records, 5, seed=seed)]
    # binomial(400, 0.25): standard deviation 8.7, so 5 of them
    assert all(abs(drawn.count(row) - 100) < 44 for row in range(1, 21))


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ([900, 100], [3, 1], [300, 100]),
        ([100, 900], [0.5, 0.5], [100, 100]),
        ([70, 30], [0.7, 0.3], [70, 30]),
        ([10], [0.2], [10]),
        ([10, 10, 10], [1, 1, 1], [10, 10, 10]),
        ([5, 100], [2, 1], [5, 2]),  # 7 in all: 4.67 and 2.33
        ([100, 5], [1, 2], [2, 5]),
        ([], [], []),
    ],
)
def test_mixture_counts(sizes: list[int], weights: list[float], counts: list[int]) -> None:
    assert mixture_counts(sizes, weights) == counts


sources = st.lists(st.tuples(st.integers(1, 500), st.floats(0.01, 100)), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(sources)
def test_mixtures_keep_their_proportion_and_are_the_largest(pairs: list[tuple[int, float]]) -> None:
    sizes, weights = [size for size, _ in pairs], [weight for _, weight in pairs]
    counts = mixture_counts(sizes, weights)
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert all(abs(count - sum(counts) * share) < 1 for count, share in zip(counts, shares, strict=True))
    assert any((sum(counts) + 1) * share > size for size, share in zip(sizes, shares, strict=True))


def test_a_mixture_takes_unweighted_sources_whole() -> None:
    a, b, c = many(90, "a"), many(7, "b"), many(10, "c")
    mixed = mix([(a, 3.0), (b, None), (c, 1.0)], seed=5)
    assert mixed[30:37] == b
    assert len(mixed) == 47 and len({content_key(record) for record in mixed}) == 47
    assert all(record in a for record in mixed[:30]) and all(record in c for record in mixed[37:])
    assert mix([(a[::-1], 3.0), (b, None), (c[::-1], 1.0)], seed=5) == mixed
    assert mix([(a, 3.0), (b, None), (c, 1.0)], seed=6) != mixed
    assert mix([(a, None), (b, None)], seed=5) == a + b


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        mix([(many(2), weight)], seed=0)


def test_an_empty_weighted_source_is_refused() -> None:
    with pytest.raises(DataError, match="weighted source 2 of 2 has no training record left"):
        mix([(many(2), 1.0), ([], 1.0)], seed=0)
