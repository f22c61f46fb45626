"""The law every annotation backend obeys: the one in memory and a real Label Studio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from curate.annotation.backend import AnnotationBackend
from curate.annotation.dispatch import plan_dispatch
from curate.annotation.models import AnnotationTask
from tests.fakes.annotation_backend import MemoryAnnotationBackend
from tests.fakes.label_studio_server import question

pytest_plugins = ["tests.fakes.label_studio_plugin"]

Answer = Callable[[str, dict[str, Any] | None], None]


@pytest.fixture(params=["memory", "label-studio"])
def backend_and_answer(request: pytest.FixtureRequest) -> tuple[AnnotationBackend, Answer]:
    """An empty backend of each kind, and a person who answers there."""
    if request.param == "memory":
        memory = MemoryAnnotationBackend()
        return memory, memory.answer
    server = request.getfixturevalue("label_studio_server")
    return server.backend(overlap_s=0.0), server.answer


@pytest.fixture
def backend(backend_and_answer: tuple[AnnotationBackend, Answer]) -> AnnotationBackend:
    """The backend alone."""
    return backend_and_answer[0]


@pytest.fixture
def answer(backend_and_answer: tuple[AnnotationBackend, Answer]) -> Answer:
    """The person alone."""
    return backend_and_answer[1]


def _questions(*numbers: int) -> list[AnnotationTask]:
    return [question(number) for number in numbers]


def _labels(collected: Any) -> dict[str, Any]:
    return {annotation.sample_id: annotation.label for annotation in collected.annotations}


def test_an_empty_backend_answers(backend: AnnotationBackend) -> None:
    """Before anything was sent, reading finds nothing and creates nothing."""
    assert backend.find_tasks(["s-1"]) == []
    assert backend.count_tasks() == 0
    first = backend.collect(None)
    assert first.annotations == ()
    assert backend.collect(first.watermark).watermark >= first.watermark
    assert backend.send_tasks([]) == []


def test_ensuring_the_project_twice_is_the_same(backend: AnnotationBackend) -> None:
    """The same project is found again, with its tasks."""
    address = backend.ensure_project()
    backend.send_tasks(_questions(1))
    assert backend.ensure_project() == address
    assert backend.count_tasks() == 1


def test_sent_tasks_are_found(backend: AnnotationBackend) -> None:
    """What was sent is found by its sample, in the order sent, and nothing else."""
    sent = backend.send_tasks(_questions(3, 1, 2))
    assert [task.sample_id for task in sent] == ["s-3", "s-1", "s-2"]
    assert backend.find_tasks(["s-1", "s-3", "s-9"]) == [sent[0], sent[1]]
    assert backend.count_tasks() == 3


def test_many_samples_are_found_at_once(backend: AnnotationBackend) -> None:
    """A lookup larger than one request or one page misses nothing."""
    numbers = range(230)
    backend.send_tasks(_questions(*numbers))
    found = backend.find_tasks([f"s-{number}" for number in reversed(numbers)])
    assert [task.sample_id for task in found] == [f"s-{number}" for number in numbers]


def test_duplicates_show_and_can_be_deleted(backend: AnnotationBackend) -> None:
    """A sample sent twice appears twice, the oldest first; deleting is done once, also when asked twice."""
    (first,) = backend.send_tasks(_questions(1))
    (second,) = backend.send_tasks(_questions(1))
    assert backend.find_tasks(["s-1"]) == [first, second]
    for _ in range(2):
        backend.delete_tasks([second.backend_task_id])
    assert backend.find_tasks(["s-1"]) == [first]


def test_dispatching_again_after_a_lost_answer_sends_once(backend: AnnotationBackend) -> None:
    """A wave arrived but nobody wrote it down: after planning anew every sample has one task."""
    planned = [f"s-{number}" for number in range(6)]
    backend.send_tasks(_questions(0, 1, 2))
    backend.send_tasks(_questions(2))
    for _ in range(2):
        plan = plan_dispatch(planned, backend.find_tasks(planned))
        backend.delete_tasks(plan.delete_duplicates)
        backend.send_tasks([task for task in _questions(*range(6)) if task.sample_id in plan.send])
    assert sorted(task.sample_id for task in backend.find_tasks(planned)) == planned
    assert backend.count_tasks() == 6
    assert set(plan_dispatch(planned, backend.find_tasks(planned)).adopt) == set(planned)


def test_answers_are_collected_once_reached(backend: AnnotationBackend, answer: Answer) -> None:
    """Answers and skips arrive; from the watermark on only later ones do, and none is lost."""
    first, second, third, _ = (task.backend_task_id for task in backend.send_tasks(_questions(1, 2, 3, 4)))
    answer(first, {"class": "bag"})
    answer(second, None)
    collected = backend.collect(None)
    assert _labels(collected) == {"s-1": {"class": "bag"}, "s-2": None}
    assert {a.sample_id: a.was_cancelled for a in collected.annotations} == {"s-1": False, "s-2": True}
    assert all(a.created_at <= a.updated_at <= collected.watermark for a in collected.annotations)
    answer(third, {"class": "coat"})
    later = backend.collect(collected.watermark)
    assert _labels(later)["s-3"] == {"class": "coat"}
    assert "s-1" not in _labels(later)
    assert later.watermark > collected.watermark


def test_a_corrected_answer_comes_again(backend: AnnotationBackend, answer: Answer) -> None:
    """Changing an answer keeps its id, moves its time and is collected after the watermark."""
    (task,) = backend.send_tasks(_questions(1))
    answer(task.backend_task_id, {"class": "bag"})
    before = backend.collect(None)
    answer(task.backend_task_id, {"class": "boot"})
    (again,) = backend.collect(before.watermark).annotations
    assert again.label == {"class": "boot"}
    assert again.annotation_id == before.annotations[0].annotation_id
    assert again.updated_at > before.annotations[0].updated_at


def test_found_tasks_say_whether_they_are_answered(backend: AnnotationBackend, answer: Answer) -> None:
    """An answer or a skip shows in what is found, so that deleting duplicates spares a person's work."""
    sent = backend.send_tasks(_questions(1, 2, 3))
    answer(sent[0].backend_task_id, {"class": "bag"})
    answer(sent[1].backend_task_id, None)
    assert [task.is_answered for task in backend.find_tasks(["s-1", "s-2", "s-3"])] == [True, True, False]
