"""People of the plaza: what they see, tap, report and draw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from curate.annotation.formats import FORMATS
from curate.annotation.models import ImageSize
from curate.catalog.boxes import LabelledBox, parse_boxes
from curate.catalog.labels import LabelSpec
from flows.sandbox.annotators import AnnotatorsConfig
from flows.sandbox.audience import Audience
from flows.sandbox.journal import Sighting, load_journal
from flows.sandbox.plaza_annotators import PlazaAnnotator
from flows.sandbox.plaza_clip import HEIGHT_PX, WIDTH_PX
from flows.sandbox.plaza_people import PERSON, Carefulness, annotate, compare
from flows.sandbox.plaza_scene import ClipReader, encode
from flows.sandbox.plaza_sightings import average_precision
from flows.sandbox.plaza_truth import TruthBox
from flows.sandbox.plaza_users import PlazaSpectator, PlazaUsersConfig

FIRST = 199
AT = datetime(2026, 3, 1, tzinfo=UTC)


def _box(x: float, y: float, width: float = 20.0, height: float = 50.0) -> LabelledBox:
    return LabelledBox(PERSON, x, y, x + width, y + height)


CROWD = tuple(_box(40.0 + 60 * n, 30.0 + 40 * n) for n in range(8))


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    made = []
    for number in range(6):
        frame = np.full((HEIGHT_PX, WIDTH_PX, 3), 120, np.uint8)
        frame[100:300, 50 + 90 * number : 130 + 90 * number] = 20
        made.append(frame)
    return made


@pytest.fixture(scope="module")
def reader(frames: list[np.ndarray]) -> ClipReader:
    return ClipReader(range(FIRST, FIRST + len(frames)), frames)


TRUTH = {FIRST + n: tuple(TruthBox(track, *box.corners) for track, box in enumerate(CROWD[:n])) for n in range(6)}


def test_each_person_is_found_once() -> None:
    """The surest box takes the person it overlaps most; a second box on the same person is wrong."""
    truth = (_box(0, 0), _box(100, 0))
    predicted = (_box(1, 1), _box(2, 0), _box(300, 0), _box(99, 2))
    assert compare(predicted, [True] * 4, truth).right == (True, False, False, True)


def test_who_has_only_a_faint_box_is_missed() -> None:
    """A box that is not shown finds nobody for the people who look, though it counts as right."""
    found = compare((_box(0, 0), _box(100, 0)), [True, False], (_box(0, 0), _box(100, 0)))
    assert found.right == (True, True)
    assert found.missed == (1,)


def test_nothing_against_nothing() -> None:
    """An empty frame without a box has nothing wrong and nobody missed; a box in it is wrong."""
    assert compare((), [], ()).right == compare((), [], ()).missed == ()
    assert compare((_box(0, 0),), [True], ()).right == (False,)


def test_annotators_err_as_much_as_configured() -> None:
    """Over 4,000 people about 2 % are left out and 1 % added, edges are off by a pixel, nothing leaves the frame."""
    rng = np.random.default_rng(0)
    answers = [annotate(CROWD, Carefulness(), rng) for _ in range(500)]
    matches = [compare(answer, [True] * len(answer), CROWD) for answer in answers]
    assert abs(sum(len(match.missed) for match in matches) / 4_000 - 0.02) < 0.01
    assert abs(sum(match.right.count(False) for match in matches) / 4_000 - 0.01) < 0.008
    careful = [annotate(CROWD, Carefulness(missed_rate=0.0, spurious_rate=0.0), rng) for _ in range(100)]
    offsets = np.array(
        [np.subtract(a.corners, t.corners) for answer in careful for a, t in zip(answer, CROWD, strict=True)]
    )
    assert abs(offsets.std() - 1.0) < 0.1
    inside = [box for answer in answers for box in answer]
    assert all(0 <= b.x_min < b.x_max <= WIDTH_PX and 0 <= b.y_min < b.y_max <= HEIGHT_PX for b in inside)


def _person(reader: ClipReader, seed: int = 0, skip_rate: float = 0.0) -> PlazaAnnotator:
    config = AnnotatorsConfig(seed=seed, url="http://ls", token="t", class_names=(PERSON,), skip_rate=skip_rate)
    return PlazaAnnotator(config, reader, TRUTH, Carefulness(missed_rate=0.0, spurious_rate=0.0))


def test_an_annotator_answers_what_the_picture_shows(frames: list[np.ndarray], reader: ClipReader) -> None:
    """Whatever a task says of its camera and frame, the boxes are those of the picture; nobody there gives no box."""
    labels = LabelSpec(kind="detection", class_names=(PERSON,), height=288, width=384)
    size = ImageSize(WIDTH_PX, HEIGHT_PX)
    for number, frame in enumerate(frames):
        asked = {"sample_id": f"s-{number}", "camera": "elsewhere", "frame": "7"}
        regions = _person(reader).answer(asked, lambda frame=frame: encode(frame))
        assert regions is not None
        found = parse_boxes(FORMATS["detection"].parse(regions, labels, size))
        assert compare(found, [True] * len(found), CROWD[:number]).missed == ()
        assert len(found) == number


def test_a_restarted_annotator_draws_the_same(frames: list[np.ndarray], reader: ClipReader) -> None:
    """The answer is a function of seed and sample; some are skipped without a look."""
    task = {"sample_id": "s-1"}
    first, again = (_person(reader).answer(task, lambda: encode(frames[3])) for _ in range(2))
    assert first is not None
    assert again is not None
    assert [region["value"] for region in first] == [region["value"] for region in again]
    other = _person(reader, seed=1).answer(task, lambda: encode(frames[3]))
    assert other is not None
    assert [region["value"] for region in first] != [region["value"] for region in other]

    def nobody_looks() -> bytes:
        raise AssertionError

    assert _person(reader, skip_rate=1.0).answer(task, nobody_looks) is None


def _users(root: Path, **changes: object) -> PlazaUsersConfig:
    values = {"clip": root / "unused", "agents": {"plaza-1": "http://agent"}, "journal_dir": root / "journal"}
    return PlazaUsersConfig.model_validate(values | {"look_share": 1.0} | changes)


def _prediction(index: int, boxes: Sequence[tuple[LabelledBox, float]]) -> dict[str, Any]:
    return {
        "cursor": index + 1,
        "prediction_id": f"p-{index}",
        "frame_index": index,
        "release_id": "r1",
        "captured_at": AT.isoformat(),
        "boxes": [
            dict(zip(("x_min", "y_min", "x_max", "y_max"), box.corners, strict=True))
            | {"box_id": f"b{place}", "score": score, "shown": score >= 0.3}
            for place, (box, score) in enumerate(boxes, start=1)
        ],
    }


def test_people_tap_boxes_on_nobody_and_report_who_is_missed(
    tmp_path: Path, frames: list[np.ndarray], reader: ClipReader
) -> None:
    """Taps name their box and say why, a report brings its own box; a faint box is neither tapped nor a mistake."""
    always = _users(tmp_path, dismiss_wrong=1.0, dismiss_right=0.0, report_missed=1.0)
    person = PlazaSpectator(always, reader, TRUTH)
    said = _prediction(3, [(CROWD[0], 0.9), (_box(600, 400), 0.8), (CROWD[1], 0.2), (_box(500, 400), 0.2)])
    seen = person.look("plaza-1", said, lambda: encode(frames[2]))
    assert seen is not None
    sighting, verdicts = seen
    assert sighting.answers == ((0.9, True), (0.8, False), (0.2, True), (0.2, False))
    assert (sighting.expected, sighting.mistakes, sighting.scene) == (2, 1, f"{FIRST + 2}/day")
    tap, report = (verdict.body for verdict in verdicts)
    assert (tap["verdict"], tap["reason"], tap["box_id"]) == ("dismissed", "not_there", "b2")
    assert (report["verdict"], report["label"]) == ("corrected", PERSON)
    assert tuple(report["box"].values()) == CROWD[1].corners
    assert tap["feedback_id"] != report["feedback_id"]


def test_people_look_at_a_share_of_the_frames(tmp_path: Path, frames: list[np.ndarray], reader: ClipReader) -> None:
    """About a fifth of the frames is looked at, the same ones by a restarted person; a frame that is gone is let be."""
    person = PlazaSpectator(_users(tmp_path, look_share=0.2), reader, TRUTH)
    picture = encode(frames[0])
    looked = [n for n in range(300) if person.look("plaza-1", _prediction(n, []), lambda: picture) is not None]
    assert 35 <= len(looked) <= 85
    assert all(person.look("plaza-1", _prediction(n, []), lambda: picture) is not None for n in looked)
    assert person.look("plaza-1", _prediction(looked[0], []), lambda: None) is None


def test_the_audience_notes_and_tells_through_an_agent_that_fails_now_and_then(
    tmp_path: Path, frames: list[np.ndarray], reader: ClipReader
) -> None:
    """Every frame is noted once and every verdict arrives, though pages, pictures and posts fail on the way."""
    config = _users(tmp_path, dismiss_wrong=1.0, late_fraction=0.0)
    predictions = [_prediction(n, [(_box(600, 400), 0.9)]) for n in range(12)]
    received: dict[str, dict[str, Any]] = {}
    calls = {"n": 0}

    def agent(request: httpx.Request) -> httpx.Response:
        calls["n"] += 1
        if calls["n"] % 5 == 0:
            return httpx.Response(503)
        if request.method == "POST":
            body = json.loads(request.content)
            received[body["feedback_id"]] = body
            return httpx.Response(202, json={})
        if request.url.path.endswith("/image"):
            return httpx.Response(200, content=encode(frames[1]))
        after = int(request.url.params["after"])
        page = [each for each in predictions if each["cursor"] > after]
        next_cursor = page[-1]["cursor"] if page else after
        return httpx.Response(200, json={"boot_id": "b", "next_cursor": next_cursor, "predictions": page})

    with httpx.Client(transport=httpx.MockTransport(agent)) as client:
        audience = Audience(config, client, PlazaSpectator(config, reader, TRUTH))
        for second in range(60):
            audience.turn(float(second))
    noted = load_journal(config.journal_dir)
    assert [sighting.frame_index for sighting in noted] == list(range(12))
    taps = [body for body in received.values() if body["verdict"] == "dismissed"]
    assert len(taps) == 12


def _seen(answers: Sequence[tuple[float, bool]], expected: int) -> Sighting:
    return Sighting("plaza-1", 0, "r1", AT, tuple(answers), expected=expected)


def test_average_precision_of_what_was_seen() -> None:
    """All found and nothing else is 1; a surer wrong box costs; misses cap it; nobody at all tells nothing."""
    assert average_precision([_seen([(0.9, True)], 1), _seen([], 0)]) == pytest.approx(1.0)
    assert average_precision([_seen([(0.9, False), (0.8, True)], 1)]) == pytest.approx(0.5)
    assert average_precision([_seen([(0.9, True)], 2)]) == pytest.approx(51 / 101)
    assert average_precision([_seen([], 3)]) == 0.0
    assert average_precision([_seen([(0.5, False)], 0)]) is None
