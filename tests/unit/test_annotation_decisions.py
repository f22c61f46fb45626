"""Consensus and dispatch: what is decided about answers and about sending."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.annotation.agreement import CONSENSUS, Consensus, consensus_of, majority, shared_boxes
from curate.annotation.dispatch import plan_dispatch
from curate.annotation.formats import FORMATS
from curate.annotation.models import SentTask
from curate.catalog.boxes import LabelledBox, boxes_label
from curate.catalog.labels import LabelSpec
from curate.errors import AnnotationError

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
    assert majority([]) is None
    assert majority(_answers(None, None)) is None


def test_the_majority_holds_and_skips_do_not_count() -> None:
    """Two of three answers decide, a skip changes nothing."""
    assert majority(_answers("bag", "coat", None, "bag")) == Consensus({"class": "bag"}, 3, 2 / 3)


def test_the_newest_answer_breaks_a_tie() -> None:
    """Of equally frequent labels the one given last holds, in whatever order the rows come."""
    rows = _answers("bag", "coat")
    for order in (rows, rows[::-1]):
        agreed = majority(order)
        assert agreed is not None
        assert agreed.label == {"class": "coat"}


@given(st.lists(st.sampled_from(["bag", "coat", "dress", None]), max_size=9), st.randoms(use_true_random=False))
def test_consensus_does_not_depend_on_the_order_of_rows(names: list[str | None], random: Any) -> None:
    """The catalog may return answers in any order."""
    rows = _answers(*names)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert majority(rows) == majority(shuffled)


def _box(x: float, name: str = "person", *, y: float = 0) -> LabelledBox:
    return LabelledBox(name, x, y, x + 10, y + 20)


def _boxed(*people: list[LabelledBox] | None) -> list[_Answer]:
    """Each person's boxes, None for a skip."""
    return [
        _Answer(None if boxes is None else boxes_label(boxes), NOON + timedelta(minutes=minute))
        for minute, boxes in enumerate(people)
    ]


def test_one_persons_boxes_hold_as_they_are() -> None:
    """Their order too, and an empty frame is an answer; skips do not count."""
    boxes = [_box(50), _box(0)]
    assert shared_boxes(_boxed(None, boxes)) == Consensus(boxes_label(boxes), 1, 1.0)
    assert shared_boxes(_boxed([])) == Consensus({"boxes": []}, 1, 1.0)
    assert shared_boxes(_boxed(None)) is None
    assert shared_boxes([]) is None


def test_boxes_that_half_of_the_people_drew_are_averaged() -> None:
    """Corners are means; what one of three drew alone, or called something else, is left out."""
    agreed = shared_boxes(_boxed([_box(0)], [_box(1), _box(90)], [_box(2), _box(0, "dog")]))
    assert agreed is not None
    assert agreed.label == boxes_label([_box(1)])
    assert agreed.n == 3
    assert agreed.agreement == pytest.approx((2 / 3 + 2 / 3 + 2 / 4) / 3)


def test_two_people_who_disagree_are_both_believed() -> None:
    """Half is enough: of two, one."""
    agreed = shared_boxes(_boxed([_box(0)], [_box(50)]))
    assert agreed == Consensus(boxes_label([_box(0), _box(50)]), 2, 0.0)
    assert shared_boxes(_boxed([], [])) == Consensus({"boxes": []}, 2, 1.0)
    assert shared_boxes(_boxed([_box(0)], [], [])) == Consensus({"boxes": []}, 3, pytest.approx(1 / 3))


def test_neighbours_in_a_crowd_stay_apart() -> None:
    """Two boxes of one person are two objects, however much they overlap."""
    crowd = [_box(0), _box(2)]
    agreed = shared_boxes(_boxed(crowd, crowd))
    assert agreed == Consensus(boxes_label(crowd), 2, 1.0)


def test_a_chain_of_overlaps_is_not_one_object() -> None:
    """The first and the last of a row overlap too little, so they are not joined by those between."""
    agreed = shared_boxes(_boxed([_box(0)], [_box(3)], [_box(3)], [_box(6)]))
    assert agreed is not None
    assert agreed.label == boxes_label([_box(2)])  # without the last, which stays alone


_PEOPLE = st.lists(st.one_of(st.none(), st.lists(st.integers(0, 60).map(_box), max_size=4)), max_size=5)


@given(_PEOPLE, st.randoms(use_true_random=False))
def test_shared_boxes_do_not_depend_on_the_order_of_rows(people: list[list[LabelledBox] | None], random: Any) -> None:
    """The catalog may return answers in any order; the agreement is a share."""
    rows = _boxed(*people)
    shuffled = list(rows)
    random.shuffle(shuffled)
    agreed, again = shared_boxes(rows), shared_boxes(shuffled)
    assert (agreed is None) == (again is None) == all(boxes is None for boxes in people)
    if agreed is not None and again is not None:
        assert (agreed.label, agreed.n) == (again.label, again.n)
        assert agreed.agreement == pytest.approx(again.agreement)
        assert 0 <= agreed.agreement <= 1


@given(st.lists(st.integers(0, 20), unique=True, max_size=4), st.integers(1, 4))
def test_people_who_say_the_same_agree(places: list[int], people: int) -> None:
    """Whatever they drew is the label, up to its order, and the agreement is full."""
    boxes = [_box(25 * place) for place in sorted(places)]
    assert shared_boxes(_boxed(*[boxes] * people)) == Consensus(boxes_label(boxes), people, 1.0)


def test_every_kind_has_its_rule() -> None:
    """The labels' kind decides, and one without a rule is refused."""
    labels = LabelSpec(kind="detection", class_names=("person",), height=8, width=8)
    assert consensus_of(labels) is shared_boxes
    assert set(CONSENSUS) == set(FORMATS)
    with pytest.raises(AnnotationError):
        consensus_of(labels.model_copy(update={"kind": "segmentation"}))


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
