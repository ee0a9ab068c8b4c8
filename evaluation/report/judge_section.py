"""What the judge said of the policies, one row each, and in sentences what of it is not to be relied on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from evaluation.judging.asking import unread_sentence
from evaluation.judging.usage import Usage
from evaluation.report.files import bounds, number, whole
from evaluation.report.load import Run
from evaluation.report.rates import Rate

_COLUMNS = {
    "win_rate": "Wins",
    "ties": "Ties",
    "win_rate_agreed": "Wins, agreed",
    "orders_agree": "Orders agree",
    "first_wins": "First wins",
    "longer_wins": "Longer wins",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTable:
    """Shares by policy and column, a cell None where nothing was measured; how many pairs were not read; sentences."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Rate | None, ...], int | None], ...]
    notes: tuple[str, ...]


def judge_table(run: Run) -> JudgeTable | None:
    """What a language model said of the answers; None where the run has no judge."""
    if not run.judge:
        return None
    rows = tuple(
        (policy, tuple(_rate(row, name) for name in _COLUMNS), whole(row.get("unreadable")))
        for policy, row in run.judged.items()
    )
    notes = (*_going_by_place(run), *_unread_verdicts(run), *_unread_grades(run), *_cost(run))
    return JudgeTable(columns=tuple(_COLUMNS.values()), rows=rows, notes=notes)


def _rate(row: Mapping[str, Any], name: str) -> Rate | None:
    rate = number(row.get(name))
    if rate is None:
        return None
    return Rate(rate=rate, bounds=bounds(row.get(f"{name}_ci95")), n=whole(row.get(f"{name}_n")))


def _going_by_place(run: Run) -> Iterator[str]:
    """For each policy whose verdicts depend on the order: how far its win rate is drawn to one half."""
    for policy, row in run.judged.items():
        first, rate, agreed = (_rate(row, name) for name in ("first_wins", "win_rate", "win_rate_agreed"))
        least, most = number(row.get("win_rate_least")), number(row.get("win_rate_most"))
        if first is None or first.bounds is None or first.bounds[0] <= 0.5 <= first.bounds[1]:
            continue
        if rate is None or agreed is None or least is None or most is None:
            continue
        place = "first" if first.rate > 0.5 else "second"
        yield (
            f"{run.judge} goes by place on {policy}: it prefers what stands {place}, so that what stands first wins "
            f"{_percent(first)} of the decided pairs. Contradictions count one half and draw the win rate of "
            f"{100 * rate.rate:.1f} % towards 50 %; of the pairs on which both orders agree {policy} wins "
            f"{_percent(agreed)}. However the contradictions should be decided, its win rate on these prompts lies "
            f"between {100 * least:.1f} and {100 * most:.1f} %."
        )


def _percent(rate: Rate) -> str:
    around = f" [{100 * rate.bounds[0]:.1f}, {100 * rate.bounds[1]:.1f}]" if rate.bounds else ""
    return f"{100 * rate.rate:.1f} %{around}"


def _cost(run: Run) -> Iterator[str]:
    known = {one.name: whole(run.judge_usage.get(one.name)) for one in fields(Usage)}
    if any(known.values()):
        yield f"Asking {run.judge} took {Usage(**{name: n or 0 for name, n in known.items()}).told}."


def _unread_verdicts(run: Run) -> Iterator[str]:
    for policy, row in run.judged.items():
        if unread := whole(row.get("unreadable")):
            pairs = unread + (whole(row.get("win_rate_n")) or 0)
            yield unread_sentence(f"{run.judge}'s verdicts on {policy}", unread, pairs, "pairs") + "."


def _unread_grades(run: Run) -> Iterator[str]:
    for policy, row in run.graded.items():
        if unread := whole(row.get("unreadable")):
            answers = unread + sum(whole(row.get(f"{turn}_n")) or 0 for turn in ("turn_1", "turn_2"))
            yield unread_sentence(f"{run.judge}'s grades of {policy}", unread, answers, "answers") + "."
