"""What only a real Label Studio can show: images, guesses, the queue, refusals, and being killed."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from curate.annotation.dispatch import plan_dispatch
from curate.annotation.label_studio import LabelStudioBackend
from curate.annotation.models import AnnotationTask
from curate.catalog.labels import LabelSpec
from curate.errors import AnnotationError, AnnotationUnavailableError
from flows.sandbox.annotators import run_annotators
from flows.sandbox.fashion_annotators import FashionAnnotator, FashionAnnotatorsConfig, decide_answer
from flows.sandbox.ports import find_free_ports
from flows.sandbox.stack import kill_service, restart_service
from flows.sandbox.stack_state import LABEL_STUDIO_SERVER, data_path
from tests.fakes.label_studio_server import LABELS, LabelStudioServer, picture, question

pytest_plugins = ["tests.fakes.label_studio_plugin"]


@pytest.fixture
def server(label_studio_server: LabelStudioServer) -> LabelStudioServer:
    """The session's server, under a short name."""
    return label_studio_server


def _project_id(address: str) -> int:
    return int(address.split("/projects/")[1].split("/", maxsplit=1)[0])


def _next_task(server: LabelStudioServer, project_id: int) -> dict[str, Any]:
    """The task an annotator gets who presses 'Label All Tasks'."""
    with server.client() as client:
        answer: dict[str, Any] = client.get(f"/api/projects/{project_id}/next").raise_for_status().json()
        return answer


def _dispatch(backend: LabelStudioBackend, tasks: list[AnnotationTask], wave: int = 5) -> None:
    """What the flow does: reconcile, then send the rest in waves."""
    plan = plan_dispatch([task.sample_id for task in tasks], backend.find_tasks([task.sample_id for task in tasks]))
    backend.delete_tasks(plan.delete_duplicates)
    rest = [task for task in tasks if task.sample_id in plan.send]
    for start in range(0, len(rest), wave):
        backend.send_tasks(rest[start : start + wave])


def test_an_annotator_sees_the_image_and_the_guess(server: LabelStudioServer) -> None:
    """The image comes from the bucket through an address made when it is viewed; the camera's guess is chosen."""
    backend = server.backend()
    project_id = _project_id(backend.ensure_project())
    backend.send_tasks([question(1, bucket=server.stack.bucket)])
    task = _next_task(server, project_id)
    with server.client() as client:
        image = client.get(task["data"]["image"], follow_redirects=False)
    assert image.status_code == 303
    assert httpx.get(image.headers["location"]).content == picture()
    (guess,) = task["predictions"]
    assert guess["result"][0]["value"] == {"choices": ["bag"]}
    assert guess["score"] == 0.7


def test_the_queue_is_in_order_of_rank_and_every_release_shows_its_guess(server: LabelStudioServer) -> None:
    """Waves sent in rank order are asked in that order, and the guess of a newer release is not hidden."""
    backend = server.backend()
    project_id = _project_id(backend.ensure_project())
    backend.send_tasks([question(number, release="r-1") for number in (4, 2)])
    backend.send_tasks([question(number, release="r-2") for number in (3, 1)])
    asked = []
    for _ in range(4):
        task = _next_task(server, project_id)
        asked.append((task["data"]["sample_id"], task["data"]["release"], len(task["predictions"])))
        server.answer(str(task["id"]), {"class": "bag"})
    assert asked == [("s-4", "r-1", 1), ("s-2", "r-1", 1), ("s-3", "r-2", 1), ("s-1", "r-2", 1)]


def test_a_skipped_task_leaves_the_queue(server: LabelStudioServer) -> None:
    """One person's 'cannot tell' settles the question: the next task is another."""
    backend = server.backend()
    project_id = _project_id(backend.ensure_project())
    first, _ = backend.send_tasks([question(1), question(2)])
    server.answer(first.backend_task_id, None)
    assert _next_task(server, project_id)["data"]["sample_id"] == "s-2"


def test_an_unreadable_answer_does_not_stop_the_others(
    server: LabelStudioServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown class counts as a skip, is named in the log, and the answers beside it arrive."""
    backend = server.backend()
    bad, good = backend.send_tasks([question(1), question(2)])
    region = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["ghost"]}}
    server.post_answer(bad.backend_task_id, {"result": [region]})
    server.answer(good.backend_task_id, {"class": "boot"})
    with caplog.at_level(logging.WARNING):
        collected = {a.sample_id: a.label for a in backend.collect(None).annotations}
    assert collected == {"s-1": None, "s-2": {"class": "boot"}}
    assert f"task {bad.backend_task_id}" in caplog.text
    assert "ghost" in caplog.text


def _lose_count(server: LabelStudioServer, task_id: str) -> None:
    """What is left when a project was deleted while an answer was saved: the answer, but no trace of it on the task."""
    database = data_path(server.stack.root, LABEL_STUDIO_SERVER) / "label_studio.sqlite3"
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        connection.execute(
            "UPDATE task SET total_annotations = 0, cancelled_annotations = 0, is_labeled = 0 WHERE id = ?", (task_id,)
        )


def test_an_answer_that_was_not_counted_arrives_and_stays_the_only_one(
    server: LabelStudioServer, annotators: Callable[[LabelStudioBackend, str], FashionAnnotatorsConfig]
) -> None:
    """Label Studio can lose count: the answer is collected, its task counts as answered, nobody answers it again."""
    title = server.settings().project_title
    backend = server.backend(project_title=title)
    uncounted, _ = backend.send_tasks([question(1), question(2)])
    server.answer(uncounted.backend_task_id, {"class": "boot"})
    _lose_count(server, uncounted.backend_task_id)
    assert [task.is_answered for task in backend.find_tasks(["s-1", "s-2"])] == [True, False]
    annotators(backend, title)
    deadline = time.monotonic() + 60
    while len(backend.collect(None).annotations) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1.0)  # more turns of the annotators
    answers = backend.collect(None).annotations
    assert sorted(answer.sample_id for answer in answers) == ["s-1", "s-2"]
    assert answers[0].label == {"class": "boot"}


def test_tasks_of_others_are_left_alone(server: LabelStudioServer) -> None:
    """A task that a person added by hand is neither found nor collected."""
    backend = server.backend()
    project_id = _project_id(backend.ensure_project())
    by_hand = {"image": "http://x/y.png", "headline": "-", "why": "-"}
    with server.client() as client:
        added = client.post("/api/tasks/", json={"project": project_id, "data": by_hand}).raise_for_status().json()
    server.answer(str(added["id"]), {"class": "bag"})
    assert backend.count_tasks() == 1
    assert backend.collect(None).annotations == ()


def test_processes_that_start_together_share_one_project(server: LabelStudioServer) -> None:
    """Titles are not unique in Label Studio, yet all settle on one project, and what one sends the others find."""
    settings = server.settings()
    backends = [server.backend(project_title=settings.project_title) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        addresses = set(pool.map(_ensure, backends))
    assert {backend.ensure_project() for backend in backends} == addresses
    assert len(addresses) == 1
    backends[0].send_tasks([question(1)])
    assert [backend.count_tasks() for backend in backends] == [1] * 4


def _ensure(backend: LabelStudioBackend) -> str:
    """Label Studio on SQLite answers some of the simultaneous writes with 500; the flow tries again, too."""
    for _ in range(5):
        with contextlib.suppress(AnnotationUnavailableError):
            return backend.ensure_project()
        time.sleep(0.2)
    return backend.ensure_project()


def test_a_change_of_the_settings_reaches_the_project(server: LabelStudioServer) -> None:
    """New classes appear on the page, new keys in the one storage; without a change nothing is written."""
    settings = server.settings()
    first = server.backend(project_title=settings.project_title)
    project_id = _project_id(first.ensure_project())
    wider = LabelSpec(class_names=(*LABELS.class_names, "dress"), height=32, width=32)
    storage = settings.storage
    assert storage is not None
    with server.client() as client:

        def stored() -> tuple[str, list[dict[str, Any]]]:
            project = client.get(f"/api/projects/{project_id}/").raise_for_status().json()
            return project["label_config"], client.get("/api/storages/s3", params={"project": project_id}).json()

        before = stored()
        assert first.ensure_project().endswith(f"/projects/{project_id}/data")
        assert stored() == before
        changed = settings.model_copy(update={"storage": storage.model_copy(update={"presign_ttl_min": 7})})
        second = LabelStudioBackend(changed, wider)
        second.ensure_project()
        second.close()
        page, storages = stored()
    assert "dress" in page
    assert "dress" not in before[0]
    assert [each["presign_ttl"] for each in storages] == [7]
    assert [each["id"] for each in storages] == [each["id"] for each in before[1]]


def test_a_bucket_without_captures_is_worth_another_try(server: LabelStudioServer) -> None:
    """Label Studio refuses an empty prefix: that passes by itself, and the hint says so."""
    settings = server.settings()
    assert settings.storage is not None
    backend = server.backend(storage=settings.storage.model_copy(update={"prefix": "captures/nobody/"}).model_dump())
    with pytest.raises(AnnotationUnavailableError) as caught:
        backend.ensure_project()
    assert "capture" in str(caught.value.hint)


def test_a_wrong_token_is_for_a_person(server: LabelStudioServer) -> None:
    """Trying again cannot help; the hint says where to look, and the token is not shown."""
    backend = server.backend(token=SecretStr("0" * 40), token_file=None)
    with pytest.raises(AnnotationError) as caught:
        backend.ensure_project()
    assert not caught.value.retryable
    assert "token" in str(caught.value.hint)
    assert "0" * 40 not in str(caught.value)


def test_a_server_that_is_away_is_worth_another_try(server: LabelStudioServer) -> None:
    """Every method says so in the same way."""
    (port,) = find_free_ports(1)
    backend = server.backend(url=f"http://127.0.0.1:{port}")
    calls: list[Callable[[], object]] = [
        backend.ensure_project,
        lambda: backend.find_tasks(["s-1"]),
        lambda: backend.send_tasks([question(1)]),
        lambda: backend.collect(None),
        backend.count_tasks,
        lambda: backend.delete_tasks(["1"]),
    ]
    for call in calls:
        with pytest.raises(AnnotationUnavailableError):
            call()


@pytest.fixture
def annotators(server: LabelStudioServer) -> Iterator[Callable[[LabelStudioBackend, str], FashionAnnotatorsConfig]]:
    """Start simulated annotators on a project; they stop at the end of the test."""
    stopping = threading.Event()
    threads: list[threading.Thread] = []

    def start(backend: LabelStudioBackend, title: str) -> FashionAnnotatorsConfig:
        config = FashionAnnotatorsConfig(
            url=server.stack.label_studio_url,
            token=server.stack.secrets.label_studio_token,
            class_names=LABELS.class_names,
            project_title=title,
            error_rate=0.2,
            skip_rate=0.1,
            poll_s=0.2,
        )
        person = FashionAnnotator(config, _truth)
        threads.append(threading.Thread(target=run_annotators, args=(config, stopping, person)))
        threads[-1].start()
        return config

    yield start
    stopping.set()
    for thread in threads:
        thread.join(timeout=40)
        assert not thread.is_alive()


def _truth(data: Any) -> int:
    return int(data["frame"]) % len(LABELS.class_names)


def _expected(config: FashionAnnotatorsConfig, tasks: list[AnnotationTask]) -> dict[str, dict[str, str] | None]:
    chosen = {task.sample_id: decide_answer(config, task.sample_id, _truth(task.context)) for task in tasks}
    return {sample_id: {"class": name} if name else None for sample_id, name in chosen.items()}


def test_nothing_is_lost_or_doubled_when_label_studio_is_killed(
    server: LabelStudioServer, annotators: Callable[[LabelStudioBackend, str], FashionAnnotatorsConfig]
) -> None:
    """Killed while tasks are sent and while people answer: each sample has one task with one answer, all collected."""
    title = server.settings().project_title
    backend = server.backend(project_title=title)
    backend.ensure_project()
    tasks = [question(number) for number in range(60)]
    config = annotators(backend, title)
    killer = threading.Timer(1.0, kill_service, args=(server.stack.root, LABEL_STUDIO_SERVER))
    killer.start()
    collected: dict[str, dict[str, Any] | None] = {}
    watermark = None
    sent = False
    deadline = time.monotonic() + 150
    while len(collected) < len(tasks) and time.monotonic() < deadline:
        try:
            if not sent:
                _dispatch(backend, tasks)
                sent = True
            answers = backend.collect(watermark)
            collected |= {answer.sample_id: answer.label for answer in answers.annotations}
            watermark = answers.watermark
        except AnnotationUnavailableError:
            killer.join()
            restart_service(server.stack.root, LABEL_STUDIO_SERVER)
        time.sleep(0.3)
    assert not killer.is_alive()
    assert collected == _expected(config, tasks)
    every = backend.collect(None).annotations
    assert set(Counter(answer.sample_id for answer in every).values()) == {1}
    assert backend.count_tasks() == len(tasks)
