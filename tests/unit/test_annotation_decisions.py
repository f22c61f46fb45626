"""Consensus and dispatch: what is decided about answers and about sending."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from curate.annotation.agreement import Consensus, consensus
from curate.annotation.dispatch import plan_dispatch
from curate.annotation.models import SentTask

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class _Answer:
    label: dict[str, Any] | None
    updated_at: datetime


def _answers(*names: str | None) -> list[_Answer]:
    """Answers a minute apart, the newest last."""
    return [
        _Answer({"class": name} if name else None, NOON + timedelta(minutes=minute))
        for minute, name in enumerate(names)
    ]


def test_nobody_answered() -> None:
    """Without answers, and with skips only, there is no consensus."""
    assert consensus([]) is None
    assert consensus(_answers(None, None)) is None


def test_the_majority_holds_and_skips_do_not_count() -> None:
    """Two of three answers decide, a skip changes nothing."""
    assert consensus(_answers("bag", "coat", None, "bag")) == Consensus({"class": "bag"}, 3, 2 / 3)


def test_the_newest_answer_breaks_a_tie() -> None:
    """Of equally frequent labels the one given last holds, in whatever order the rows come."""
    rows = _answers("bag", "coat")
    for order in (rows, rows[::-1]):
        agreed = consensus(order)
        assert agreed is not None
        assert agreed.label == {"class": "coat"}


@given(st.lists(st.sampled_from(["bag", "coat", "dress", None]), max_size=9), st.randoms(use_true_random=False))
def test_consensus_does_not_depend_on_the_order_of_rows(names: list[str | None], random: Any) -> None:
    """The catalog may return answers in any order."""
    rows = _answers(*names)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert consensus(rows) == consensus(shuffled)


def test_what_the_backend_holds_is_adopted_and_the_rest_is_sent() -> None:
    """A send whose answer got lost is found again; only the missing samples go out, in queue order."""
    plan = plan_dispatch(["c", "a", "b"], [SentTask("a", "1")])
    assert plan.adopt == {"a": "1"}
    assert plan.send == ["c", "b"]
    assert plan.delete_duplicates == []


def test_an_answered_task_is_kept_before_an_older_one() -> None:
    """Deleting the duplicate that a person answered would throw their work away."""
    plan = plan_dispatch(["a"], [SentTask("a", "1"), SentTask("a", "2", is_answered=True)])
    assert plan.adopt == {"a": "2"}
    assert plan.delete_duplicates == ["1"]


_FOUND = st.lists(st.builds(SentTask, st.sampled_from("abcxy"), st.uuids().map(str), st.booleans()), max_size=12)


@given(st.lists(st.sampled_from("abcde"), unique=True), _FOUND)
def test_every_planned_sample_ends_with_exactly_one_open_question(planned: list[str], found: list[SentTask]) -> None:
    """After adopting, sending and deleting, each planned sample has one task, or answered ones that nobody deletes."""
    plan = plan_dispatch(planned, found)
    left = [task for task in found if task.backend_task_id not in plan.delete_duplicates]
    for sample_id in planned:
        tasks = [task for task in left if task.sample_id == sample_id]
        assert (sample_id in plan.send) == (not tasks)
        assert len([task for task in tasks if not task.is_answered]) <= 1
        if tasks:
            assert plan.adopt[sample_id] in {task.backend_task_id for task in tasks}
            assert len(tasks) == 1 or all(task.is_answered for task in tasks)
    deleted = [task for task in found if task.backend_task_id in plan.delete_duplicates]
    assert all(task.sample_id in planned and not task.is_answered for task in deleted)
