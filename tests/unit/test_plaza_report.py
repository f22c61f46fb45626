"""What the plaza's report tells: measures by light, the gap that was closed, and boxes over pictures."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.catalog.boxes import LabelledBox, boxes_label
from curate.catalog.models import FeedbackRow, ModelRow, ModelStatus, Round, RoundPhase, Sample
from curate.contracts.prediction import DetectedBox, DetectionPrediction
from curate.metrics.detection import PredictedBoxes, TrueBoxes, match_frames
from curate.storage.local import LocalBlobStore
from flows.sandbox.heldout import HeldOutScore, RoundFacts
from flows.sandbox.journal import MetricNames
from flows.sandbox.plaza_clip import HEIGHT_PX, WIDTH_PX
from flows.sandbox.plaza_conclusion import conclude, describe_gap
from flows.sandbox.plaza_measure import quality
from flows.sandbox.plaza_scene import ClipReader, decode, encode, show
from flows.sandbox.plaza_truth import TruthBox
from flows.sandbox.plaza_witness import PlazaWitness
from flows.sandbox.report import assemble_report
from flows.sandbox.report_gallery import Gallery
from flows.sandbox.report_html import headline, render_report
from flows.sandbox.report_scores import Scores
from flows.sandbox.world_schedule import WorldConfig
from flows.sandbox.worlds.plaza import AP50, PlazaWorld
from tests.demo_leftovers import Leftovers, placeholder_garments

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FIRST = 199
PEOPLE = tuple(TruthBox(n, 100.0 + 120 * n, 200.0, 140.0 + 120 * n, 300.0) for n in range(3))


def _quality(found: int, wrong: int) -> dict[str, Any]:
    """Measures of a model that finds `found` of ten people on each of eight frames, and `wrong` who are not there."""
    truth = [TrueBoxes.of([(60 * n, 0, 60 * n + 20, 50) for n in range(10)], [0] * 10)] * 8
    boxes = [(60 * n, 0, 60 * n + 20, 50) for n in range(found)] + [
        (60 * n, 300, 60 * n + 20, 350) for n in range(wrong)
    ]
    scores = np.linspace(0.9, 0.5, len(boxes))
    said = [PredictedBoxes.of(boxes, [0] * len(boxes), scores)] * 8
    return quality(match_frames(said, truth, 1), [str(n // 2) for n in range(8)])


def _score(day: int, dusk: int) -> HeldOutScore:
    int8 = {"day": _quality(day, 1), "dusk": _quality(dusk, 2)}
    cells = {"plaza-1/day": int8["day"], "plaza-2/day": int8["day"], "plaza-1/dusk": int8["dusk"]}
    return HeldOutScore({cell: each["ap50"]["value"] for cell, each in cells.items()}, {"int8": int8, "float": int8})


def _facts() -> list[RoundFacts]:
    facts = []
    for number, (day, dusk) in enumerate([(4, 2), (6, 3), (8, 7)]):
        model = ModelRow(
            f"m{number}", number, "v", NOW, ModelStatus.RELEASED, {}, {}, release_id=f"r000{number}-abcdef"
        )
        facts.append(
            RoundFacts(Round(number, RoundPhase.CLOSED, 60, 0, NOW, NOW), model, model, _score(day, dusk), None)
        )
    return facts


def test_measures_say_what_was_found() -> None:
    """AP50, recall and the curve's end agree on a model that finds six of ten people before its first wrong box."""
    measured = _quality(6, 1)
    assert measured["ap50"]["value"] == pytest.approx(61 / 101)
    assert measured["recall_at_1fp"]["value"] == pytest.approx(0.6)
    assert measured["curve"][-1] == [0.6, round(6 / 7, 4)]
    assert measured["ap50"]["ci95"][0] <= measured["ap50"]["value"] <= measured["ap50"]["ci95"][1]
    assert (measured["frames"], measured["people"]) == (8, 80)
    assert _quality(0, 0)["curve"] == []


def test_the_gap_is_between_the_first_release_and_the_ceiling() -> None:
    """Half the way is a half; without a measured ceiling, or with one below the start, nothing is claimed."""
    ceiling = {"quality": {"day": {"ap50": {"value": 0.9}}, "dusk": {"ap50": {"value": 0.7}}}, "settings": {"seed": 0}}
    assert describe_gap(0.4, 0.6, ceiling)["closed"] == pytest.approx(0.5)
    assert describe_gap(0.4, 0.6, None)["closed"] is None
    assert describe_gap(0.85, 0.9, ceiling)["closed"] is None


def test_the_conclusion_compares_the_ends() -> None:
    """Curves show the first and the last release in each light, the table every release; all of it is plain JSON."""
    told = json.loads(json.dumps(conclude(_facts())))
    assert [line["name"] for line in told["curves"]["dusk"]][:2] == ["r0", "r2"]
    assert len(told["quality"]["rows"]) == 6
    assert told["int8"]["ap50_minus_float"] == {"day": 0.0, "dusk": 0.0}
    assert told["gap"]["seed"] < told["gap"]["last"]
    assert conclude([]) == {}


class Shown:
    """A plaza of one person more each frame, a bucket that holds two captures of it, and who knows about them."""

    def __init__(self, root: Path) -> None:
        frames = []
        for number in range(4):
            frame = np.full((HEIGHT_PX, WIDTH_PX, 3), 130, np.uint8)
            for person in PEOPLE[:number]:
                frame[int(person.y_min) : int(person.y_max), int(person.x_min) : int(person.x_max)] = 25
            frames.append(frame)
        self.store = LocalBlobStore(root / "bucket")
        self.truth = {FIRST + n: PEOPLE[:n] for n in range(4)}
        reader = ClipReader(range(FIRST, FIRST + 4), frames)
        self.samples = {
            f"s{n}": self._capture(f"s{n}", encode(show(frames[n], FIRST + n, light, 0)), n)
            for n, light in ((0, "day"), (2, "dusk"))
        }
        labels = {"s2": boxes_label([LabelledBox("person", 100, 200, 140, 300)])}
        self.witness = PlazaWitness(self.store.get, reader, self.truth, labels)
        self.feedback = [
            _verdict("fb-plaza-1-p2-b2", "dismissed", "not_there", "s2"),
            _verdict("fb-plaza-1-p2-m1", "corrected", None, "s2"),
        ]

    def _capture(self, sample_id: str, jpeg: bytes, number: int) -> Sample:
        key = f"captures/plaza-1/{sample_id}.jpg"
        self.store.put(key, jpeg)
        boxes = [(101, 200, 141, 300, 0.9), (500, 100, 540, 200, 0.7), (220, 200, 260, 300, 0.2)] if number else []
        prediction = DetectionPrediction(
            prediction_id=f"p{number}",
            release_id="r1",
            score_threshold=0.3,
            boxes=[
                DetectedBox(box_id=f"b{n}", x_min=a, y_min=b, x_max=c, y_max=d, probabilities=[score])
                for n, (a, b, c, d, score) in enumerate(boxes, start=1)
            ],
        )
        return Sample(
            sample_id=sample_id,
            device_id="plaza-1",
            camera_id="plaza-1",
            frame_index=number,
            captured_at=NOW,
            boot_id="b",
            batch_sequence=1,
            image_key=key,
            image_sha256=f"{number}" * 64,
            image_bytes=len(jpeg),
            width=WIDTH_PX,
            height=HEIGHT_PX,
            release_id="r1",
            prediction=prediction,
            embedding=None,
            arms=("random",),
            random_probability=0.1,
            inclusion_probability=0.1,
            reasons=(),
        )


def _verdict(feedback_id: str, verdict: str, reason: str | None, sample_id: str) -> FeedbackRow:
    return FeedbackRow(feedback_id, "plaza-1", "p2", verdict, reason, None, "person-0", NOW, True, sample_id)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(tmp_path_factory.mktemp("plaza"))


def test_a_picture_says_what_became_of_every_box(shown: Shown) -> None:
    """Found, dismissed and missed are told apart by recognition alone; faint boxes are not drawn."""
    told = shown.witness.describe(shown.samples["s2"], shown.feedback)
    assert [box["what"] for box in told["boxes"]] == ["right", "dismissed", "missed"]
    assert (told["predicted"], told["label"], told["truth"]) == ("2 people", "1 person", "2 people")
    assert (told["right"], told["mistakes"], told["light"]) == (False, 2, "dusk")
    empty = shown.witness.describe(shown.samples["s0"])
    assert (empty["predicted"], empty["truth"], empty["right"], empty["boxes"]) == ("nobody", "nobody", True, [])


def test_scenes_are_seconds_of_the_clip(shown: Shown) -> None:
    """Captures of the same second are one scene whatever the light; imported and lost pictures have none."""
    assert shown.witness.scene_of(shown.samples["s2"]) == (FIRST + 2) // 10
    assert shown.witness.scene_of(replace(shown.samples["s2"], device_id="imported")) is None
    assert shown.witness.scene_of(replace(shown.samples["s2"], sample_id="gone", image_key="captures/none.jpg")) is None


def test_dusk_is_when_it_was_first_seen() -> None:
    """The drift camera's first dark sighting counts; other cameras and brighter frames do not."""
    from datetime import timedelta

    from flows.sandbox.journal import Sighting
    from flows.sandbox.script import DemoScript

    world = PlazaWorld(DemoScript(world="plaza"), Path("unused"))

    def seen(camera: str, second: int, scene: str) -> Sighting:
        return Sighting(camera, second, "r1", NOW + timedelta(seconds=second), (), scene=scene)

    sightings = [seen("plaza-1", 1, "201/day"), seen("plaza-1", 5, "205/dusk"), seen("plaza-2", 2, "202/dusk")]
    assert world.dusk_began(sightings, {}) == NOW + timedelta(seconds=5)
    assert world.dusk_began(sightings[:1], {}) is None


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, shown: Shown) -> dict[str, Any]:
    """A run's report in the plaza's words, with its pictures."""
    root = tmp_path_factory.mktemp("page")
    left = Leftovers(
        root / "run", placeholder_garments(20), WorldConfig(reserved_images=20), window_frames=120, fps=10.0
    )
    told = assemble_report(left.facts(), Scores(*left.scores()))
    left.catalog.close()
    known = MetricNames("accuracy", "accuracy")
    renamed = {
        getattr(known, each): getattr(AP50, each) for each in ("heldout", "candidate", "control", "field", "oracle")
    }
    rounds = [{renamed.get(name, name): value for name, value in entry.items()} for entry in told["rounds"]]
    rounds[1][AP50.control] = None
    gallery = Gallery(shown.witness, shown.samples, shown.feedback)
    dismissed = gallery.describe_dismissed()
    gallery.persist_thumbnails(root, lambda keys: {key: shown.store.get(key) for key in keys}, dismissed)
    return (
        told
        | conclude(_facts())
        | {
            "root": str(root),
            "rounds": rounds,
            "metric": {"key": AP50.key, "title": AP50.title},
            "words": dict(PlazaWorld.words),
            "gallery": {"rounds": {}, "dismissed": dismissed},
        }
    )


def test_the_page_shows_boxes_curves_and_measures(report: dict[str, Any]) -> None:
    """One self-contained page in the metric's own words, with boxes drawn over a smaller picture."""
    page = render_report(report, Path(report["root"]))
    assert {"AP50 of each camera over time", "Labels against AP50", "Precision and recall"} <= set(
        re.findall(r"<h2>(.*?)</h2>", page)
    )
    assert page.count('<rect class="') == 3
    assert 'class="dismissed"' in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"|url\((?!#)|@import|<script|<link", page)
    picture = next((Path(report["root"]) / "thumbnails").iterdir())
    assert decode(picture.read_bytes()).shape[:2] == (360, 480)


def test_the_head_of_the_page_tells_the_gap(report: dict[str, Any]) -> None:
    """The tile appears when a ceiling is known; without one the page still stands."""
    known = deepcopy(report)
    known["gap"] = {"seed": 0.4, "last": 0.7, "ceiling": 0.8, "closed": 0.75, "settings": {}}
    assert "75.0 %" in {tile.value for tile in headline(known)}
    known["gap"]["closed"] = None
    assert "Of the gap closed" not in {tile.name for tile in headline(known)}
