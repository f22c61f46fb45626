"""Boxes in a real Label Studio: shown, corrected, turned, deleted, and collected in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from curate.annotation.formats import FORMATS, image_size
from curate.annotation.label_studio import LabelStudioBackend
from curate.annotation.models import AnnotationTask
from curate.catalog.boxes import LabelledBox, boxes_label
from curate.catalog.labels import LabelSpec
from curate.contracts.prediction import DetectedBox, DetectionPrediction
from tests.fakes.label_studio_server import LabelStudioServer

pytest_plugins = ["tests.fakes.label_studio_plugin"]

BOX_LABELS = LabelSpec(kind="detection", class_names=("person",), height=576, width=768)


@pytest.fixture
def server(label_studio_server: LabelStudioServer) -> LabelStudioServer:
    """The session's server, under a short name."""
    return label_studio_server


@pytest.fixture
def box_backend(server: LabelStudioServer) -> Iterator[LabelStudioBackend]:
    """A backend that asks for boxes, in a project of its own."""
    backend = LabelStudioBackend(server.settings(), BOX_LABELS)
    yield backend
    backend.close()


def _box_question(number: int, width: int, height: int, *, blind: bool = False) -> AnnotationTask:
    """A frame where the device is sure of one box, and of another it is not."""
    shapes = [("sure", 30.5, 0.9), ("unsure", 5.0, 0.1)]
    seen = [
        DetectedBox(box_id=name, x_min=x, y_min=10.25, x_max=x + 20, y_max=90.75, probabilities=[probability])
        for name, x, probability in shapes
    ]
    return AnnotationTask(
        sample_id=f"s-{number}",
        image_url="s3://gleaner/captures/cam-1/1.png",
        rank=number,
        width=width,
        height=height,
        pre_annotation=DetectionPrediction(
            prediction_id=f"p-{number}", release_id="r-1", boxes=seen, score_threshold=0.3
        ),
        context={"camera": "cam-1", "frame": str(number)},
        blind=blind,
    )


def _project_id(address: str) -> int:
    return int(address.split("/projects/")[1].split("/", maxsplit=1)[0])


def _next_task(server: LabelStudioServer, project_id: int) -> dict[str, Any]:
    """The task an annotator gets who presses 'Label All Tasks'."""
    with server.client() as client:
        answer: dict[str, Any] = client.get(f"/api/projects/{project_id}/next").raise_for_status().json()
        return answer


def _task(server: LabelStudioServer, backend_task_id: str) -> dict[str, Any]:
    with server.client() as client:
        task: dict[str, Any] = client.get(f"/api/tasks/{backend_task_id}/").raise_for_status().json()
        return task


def test_a_person_corrects_the_boxes(server: LabelStudioServer, box_backend: LabelStudioBackend) -> None:
    """The guess shows what the device was sure of; accepted as it is, moved, extended, emptied or turned, it comes back
    in pixels of frames of several sizes; an empty frame is an answer and a skip is none."""
    sizes = {1: (768, 576), 2: (333, 127), 3: (768, 576), 4: (768, 576), 5: (768, 576), 6: (4096, 100)}
    sent = box_backend.send_tasks([_box_question(number, *size) for number, size in sizes.items()])
    tasks = {task.sample_id: _task(server, task.backend_task_id) for task in sent}
    guesses = {name: task["predictions"][0]["result"] for name, task in tasks.items()}
    assert [region["id"] for region in guesses["s-1"]] == ["sure"]
    drawn = boxes_label([LabelledBox("person", 0.125, 1 / 3, 0.126, 99.9), LabelledBox("person", 4000, 7, 4096, 100)])
    turned = guesses["s-5"][0] | {"value": guesses["s-5"][0]["value"] | {"rotation": 90}}
    answers: dict[str, dict[str, Any]] = {
        "s-1": {"result": guesses["s-1"]},
        "s-2": {"result": guesses["s-2"]},
        "s-3": {"result": []},
        "s-4": {"result": [], "was_cancelled": True},
        "s-5": {"result": [turned]},
        "s-6": {"result": FORMATS["detection"].encode(drawn, image_size(tasks["s-6"]["data"]))},
    }
    for task in sent:
        server.post_answer(task.backend_task_id, answers[task.sample_id])
    collected = {answer.sample_id: answer.label for answer in box_backend.collect(None).annotations}
    sure = (30.5, 10.25, 50.5, 90.75)
    expected = {
        "s-1": [sure],
        "s-2": [sure],
        "s-3": [],
        "s-5": [(0.0, 10.25, 30.5, 30.25)],  # 80.5 wide, of which 30.5 are in the image, and 20 high
        "s-6": [(0.125, 1 / 3, 0.126, 99.9), (4000, 7, 4096, 100)],
    }
    assert collected.pop("s-4") is None
    assert {name: [list(box)[:1] for box in label["boxes"]] for name, label in collected.items() if label} == {
        name: [["class"]] * len(boxes) for name, boxes in expected.items()
    }
    for name, boxes in expected.items():
        label = collected[name]
        assert label is not None
        for found, wanted in zip(label["boxes"], boxes, strict=True):
            assert [found[side] for side in ("x_min", "y_min", "x_max", "y_max")] == pytest.approx(wanted, abs=1e-6)
    assert all(task.is_answered for task in box_backend.find_tasks(list(tasks)))


def test_a_blind_question_shows_only_the_frame(server: LabelStudioServer, box_backend: LabelStudioBackend) -> None:
    """What measures the model is asked without the model's answer, in the same queue as what is."""
    project_id = _project_id(box_backend.ensure_project())
    box_backend.send_tasks([_box_question(1, 768, 576, blind=True), _box_question(2, 768, 576)])
    shown = []
    for _ in range(2):
        task = _next_task(server, project_id)
        shown.append((task["data"]["sample_id"], len(task["predictions"])))
        server.post_answer(str(task["id"]), {"result": []})
    assert shown == [("s-1", 0), ("s-2", 1)]


def test_the_project_allows_empty_frames(server: LabelStudioServer, box_backend: LabelStudioBackend) -> None:
    """Somebody turned it off: the next start of a round turns it on again, with the instruction of the kind."""
    project_id = _project_id(box_backend.ensure_project())
    with server.client() as client:
        path = f"/api/projects/{project_id}/"
        client.patch(path, json={"enable_empty_annotation": False}).raise_for_status()
        box_backend.ensure_project()
        project = client.get(path).raise_for_status().json()
    assert project["enable_empty_annotation"] is True
    assert "box" in project["expert_instruction"]
