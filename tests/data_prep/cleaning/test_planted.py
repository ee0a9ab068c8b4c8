"""Four hundred faults of fifteen kinds among four thousand rows: each rule finds its own, and leaves the rest alone."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from planted import NEAR, SETTINGS, planted

from data_prep.cleaning import Cleaner
from data_prep.readers import SourceSpec, read_demonstrations
from data_prep.split import Split
from pipeline.recipe.cleaning_settings import CleanSettings

ROOT = Path(__file__).parents[3]
REAL = Path(os.environ.get("TRIVET_REAL_DATA") or ROOT.parent / "shared" / "data")
ROWS, FAULTS = 4000, 400


def dropped_rules(records, settings) -> dict[int, str]:
    """By row number, the rule that dropped it."""
    cleaner = Cleaner(settings)
    cleaner.among(cleaner.rows(Split(train=list(records))).train, [])
    return {each.record.origin.row: each.finding.rule for each in cleaner.dropped}


def precision_and_recall(found: dict[int, str], expected: dict[int, str]) -> dict[str, tuple[float, float]]:
    rates = {}
    for kind in sorted(set(expected.values())):
        said = [row for row, rule in found.items() if rule == kind]
        right = sum(expected.get(row) == kind for row in said)
        rates[kind] = (right / len(said) if said else 1.0, right / Counter(expected.values())[kind])
    return rates


@pytest.fixture(scope="module")
def sample():
    """The bundled demonstrations of one turn, less those that decline: they are what `refusals` looks for."""
    records = read_demonstrations(SourceSpec(path="builtin:alpaca_sample")).records
    return [each for each in records if len(each.messages) == 2 and each.origin.family != "refusal"]


def test_every_rule_finds_its_faults(sample) -> None:
    rows = planted(1, ROWS, FAULTS, sample)
    assert len(rows.records) == ROWS and len(rows.expected) == FAULTS and len(set(rows.expected.values())) == 15
    found = dropped_rules(rows.records, SETTINGS)
    for kind, (precision, recall) in precision_and_recall(found, rows.expected).items():
        wanted = 0.95 if kind == NEAR else 0.98
        wrong = {row: rule for row, rule in found.items() if rule == kind and rows.expected.get(row) != kind}
        missed = {row: found.get(row) for row, rule in rows.expected.items() if rule == kind and found.get(row) != kind}
        assert precision >= wanted, f"{kind}: precision {precision:.3f}, {[rows.records[row - 1] for row in wrong][:5]}"
        assert recall >= wanted, f"{kind}: recall {recall:.3f}, {[rows.records[row - 1] for row in missed][:5]}"


@pytest.mark.parametrize("rule", ["truncated", "refusals", "secrets", "languages", "near_duplicates"])
def test_without_its_rule_a_fault_is_not_found(rule, sample) -> None:
    """The control: what finds a fault is the rule of its name."""
    rows = planted(3, 500, 90, sample[:200])
    off = SETTINGS.model_copy(update={rule: CleanSettings.model_fields[rule].default})
    kind = NEAR if rule == "near_duplicates" else rule
    assert kind not in dropped_rules(rows.records, off).values()
    assert kind in dropped_rules(rows.records, SETTINGS).values()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no folder {REAL}; set TRIVET_REAL_DATA")
@pytest.mark.parametrize("name", ["alpaca_en/alpaca_data_20k.json", "alpaca_zh/alpaca_chinese_4k.json"])
def test_faults_are_found_among_real_rows(name) -> None:
    """Real rows have faults of their own, so that precision is unknown; few of them may be dropped."""
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    real = read_demonstrations(SourceSpec(path=str(path))).records[:900]
    rows = planted(4, 1200, 150, real)
    found = dropped_rules(rows.records, SETTINGS)
    for kind, (_, recall) in precision_and_recall(found, rows.expected).items():
        assert recall >= (0.95 if kind == NEAR else 0.98), f"{kind}: recall {recall:.3f}"
    others = Counter(rule for row, rule in found.items() if row not in rows.expected)
    assert others.total() <= 0.03 * len(real), others
