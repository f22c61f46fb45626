"""Reading raw candidates of a detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.answers.base import BadOutputError
from curate.answers.detection import DETECTION, MAX_BOXES, RECORD_FLOOR, DetectionAnswer
from curate.answers.detection_scores import TOP_K, entropy_parts, margin_parts, near_miss_parts, top_k_mean
from curate.answers.registry import ANSWERS, SCORE_NAMES
from curate.contracts.prediction import DetectedBox, DetectionPrediction
from curate.contracts.release import ModelSpec

SPEC = ModelSpec(kind="detection", class_names=["person"], height=100, width=200, embedding_dim=3)
TWO = SPEC.model_copy(update={"class_names": ["person", "dog"]})
Candidate = tuple[tuple[float, float, float, float], float]


def raw(*candidates: Candidate) -> dict[str, np.ndarray]:
    """Return one-class outputs with these (corners, score)."""
    count = len(candidates)
    return {
        "boxes": np.array([corners for corners, _ in candidates], np.float32).reshape(count, 4),
        "probabilities": np.array([[score] for _, score in candidates], np.float32).reshape(count, 1),
        "box_embeddings": np.arange(count * 2, dtype=np.float32).reshape(count, 2),
        "embedding": np.array([0.5, -1.0, 2.0], np.float32),
    }


def read(*candidates: Candidate, height: int = 100, width: int = 200) -> DetectionAnswer:
    return DETECTION.reader(SPEC).read(raw(*candidates), height, width)


def prediction_of(answer: DetectionAnswer) -> DetectionPrediction:
    found = answer.to_prediction("p-1", "r-1")
    assert isinstance(found, DetectionPrediction)
    return found


FAR = [((10.0 * n, 10.0, 10.0 * n + 8, 40.0), 0.9 - 0.05 * n) for n in range(10)]


def test_boxes_come_in_the_frames_pixels_by_falling_score() -> None:
    """Corners are scaled per axis and clipped; ids count from the surest; each box keeps its own embedding."""
    answer = read(((10, 10, 20, 30), 0.5), ((100, 50, 260, 90), 0.8), height=200, width=800)
    prediction = prediction_of(answer)
    assert [(box.box_id, box.score) for box in prediction.boxes] == [("b1", 0.8), ("b2", 0.5)]
    first, second = prediction.boxes
    assert (first.x_min, first.y_min, first.x_max, first.y_max) == (400.0, 100.0, 800.0, 180.0)
    assert (second.x_min, second.y_min, second.x_max, second.y_max) == (40.0, 20.0, 80.0, 60.0)
    assert first.embedding is not None
    assert np.frombuffer(first.embedding.raw(), "<f2").tolist() == [2.0, 3.0]
    assert answer.box_ids == {"b1", "b2"}
    assert prediction.embedding is not None
    assert (prediction.scores, prediction.embedding.dim) == (dict(answer.scores), 3)


def test_no_box_is_an_answer() -> None:
    """A frame without anything above the floor, and a model without candidates, give no boxes and scores of 0."""
    for candidates in ([], [((0, 0, 9, 9), 0.01)]):
        answer = read(*candidates)
        assert prediction_of(answer).boxes == []
        assert set(answer.scores.values()) == {0.0}


def test_faint_boxes_travel_and_are_not_shown() -> None:
    """From the record floor on a box is in the prediction; only from the specification's threshold on it is shown."""
    spec = SPEC.model_copy(update={"score_threshold": 0.6})
    outputs = raw(((0, 0, 9, 9), 0.7), ((50, 0, 59, 9), 0.5), ((90, 0, 99, 9), RECORD_FLOOR - 0.01))
    prediction = prediction_of(DETECTION.reader(spec).read(outputs, 100, 200))
    assert [box.box_id for box in prediction.boxes] == ["b1", "b2"]
    assert [box.box_id for box in prediction.shown_boxes] == ["b1"]
    told = DETECTION.describe(prediction, ["person"])
    assert told["score_threshold"] == 0.6
    assert told["boxes"][1] == {
        "box_id": "b2",
        "label": "person",
        "class_index": 0,
        "score": 0.5,
        "x_min": 50.0,
        "y_min": 0.0,
        "x_max": 59.0,
        "y_max": 9.0,
        "shown": False,
    }
    assert told["boxes"][0]["shown"] is True


def test_duplicates_are_merged_within_a_class_only() -> None:
    """Of two boxes at one place the surer stays, unless they are of different classes."""
    assert len(read(((10, 10, 30, 50), 0.9), ((11, 10, 31, 50), 0.8)).boxes) == 1
    outputs = raw(((10, 10, 30, 50), 0.9), ((11, 10, 31, 50), 0.8))
    outputs["probabilities"] = np.array([[0.9, 0.1], [0.1, 0.8]], np.float32)
    prediction = prediction_of(DETECTION.reader(TWO).read(outputs, 100, 200))
    assert [box.class_index for box in prediction.boxes] == [0, 1]


def test_the_number_of_boxes_is_bounded() -> None:
    """However many objects a model sees, the surest `MAX_BOXES` travel."""
    many = [((x, y, x + 1.0, y + 1.0), 0.2 + 0.003 * n) for n, (x, y) in enumerate(np.ndindex(15, 15))]
    answer = read(*many)
    assert len(answer.boxes) == MAX_BOXES
    assert answer.probabilities.min() > 0.2 + 0.003 * (len(many) - MAX_BOXES - 1)


def broken(**changes: Any) -> dict[str, np.ndarray]:
    return raw(((0, 0, 9, 9), 0.7), ((50, 0, 59, 9), 0.5)) | {
        name: np.array(value, np.float32) for name, value in changes.items()
    }


@pytest.mark.parametrize(
    "bad",
    [
        broken(boxes=[[0, 0, 9, 9]]),
        broken(boxes=[[0, 0, 9, 9], [9, 0, 0, 9]]),
        broken(boxes=[[0, 0, 9, 9], [0, np.nan, 9, 9]]),
        broken(boxes=[[0, 0, 9, 9], [0, 0, np.inf, 9]]),
        broken(probabilities=[[0.5], [1.5]]),
        broken(probabilities=[[0.5], [-0.5]]),
        broken(probabilities=[[0.5], [np.nan]]),
        broken(probabilities=[[0.5, 0.5], [0.5, 0.5]]),
        broken(probabilities=[0.5, 0.5]),
        broken(box_embeddings=[[1.0, np.inf], [0.0, 0.0]]),
        broken(box_embeddings=[[], []]),
        broken(box_embeddings=1.0),
        broken(embedding=[np.nan, 0, 0]),
        broken(embedding=[0.0]),
        {name: value for name, value in broken().items() if name != "boxes"},
    ],
)
def test_a_bad_answer_is_refused_and_the_next_one_read(bad: dict[str, np.ndarray]) -> None:
    """Wrong shapes, NaN, corners out of order and impossible probabilities raise; the reader goes on as before."""
    reader, fresh = DETECTION.reader(SPEC), DETECTION.reader(SPEC)
    with pytest.raises(BadOutputError):
        reader.read(bad, 100, 200)
    assert reader.read(broken(), 100, 200).scores == fresh.read(broken(), 100, 200).scores


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 30), classes=st.integers(1, 3), frames=st.integers(1, 4))
def test_any_sound_answer_is_read(seed: int, count: int, classes: int, frames: int) -> None:
    """Scores are those the kind names, each in [0, 1]; boxes lie in the frame; the wire form round-trips."""
    rng = np.random.default_rng(seed)
    spec = SPEC.model_copy(update={"class_names": [f"c{n}" for n in range(classes)]})
    reader = DETECTION.reader(spec)
    for _ in range(frames):
        corner = rng.uniform(-50, 220, (count, 2))
        outputs = {
            "boxes": np.concatenate([corner, corner + rng.uniform(0, 60, (count, 2))], axis=1).astype(np.float32),
            "probabilities": rng.random((count, classes)).astype(np.float32) ** 2,
            "box_embeddings": rng.normal(size=(count, 2)).astype(np.float32) * 1e5,
            "embedding": rng.normal(size=3).astype(np.float32),
        }
        answer = reader.read(outputs, 480, 640)
        assert set(answer.scores) == DETECTION.score_names
        assert all(0.0 <= score <= 1.0 for score in answer.scores.values())
        prediction = prediction_of(answer)
        assert DetectionPrediction.from_bytes(prediction.to_bytes()) == prediction
        assert all(0 <= b.x_min <= b.x_max <= 640 and 0 <= b.y_min <= b.y_max <= 480 for b in prediction.boxes)
        assert answer.size_bytes >= answer.without_embeddings().size_bytes


# -- scores -------------------------------------------------------------------------------------------------------


def test_parts_are_what_their_formulas_say() -> None:
    """Known probabilities give the near miss, margin and entropy that the table in the module promises."""
    assert near_miss_parts(np.array([0.3, 0.4, 0.9]), 0.3) == pytest.approx([1.0, 0.5, 0.0])
    assert margin_parts(np.array([[0.5], [0.9], [0.1]])) == pytest.approx([1.0, 0.2, 0.2])
    assert margin_parts(np.array([[0.9, 0.8], [0.05, 0.04]])) == pytest.approx([0.9, 0.1])
    assert entropy_parts(np.array([[0.5], [1.0], [0.0]])) == pytest.approx([1.0, 0.0, 0.0])
    assert top_k_mean([0.9]) == pytest.approx(0.9 / TOP_K)
    assert top_k_mean([0.3] * 50) == pytest.approx(0.3)


def test_a_crowd_of_sure_boxes_is_sure() -> None:
    """Many confident boxes score no higher than one; one doubtful box among them scores as high as alone."""
    sure = [((10.0 * n, 10, 10.0 * n + 8, 40), 0.95) for n in range(12)]
    doubtful = ((150, 50, 158, 80), 0.35)
    assert read(*sure).scores["near_miss"] == read(sure[0]).scores["near_miss"] == 0.0
    assert read(*sure, doubtful).scores["near_miss"] == read(doubtful).scores["near_miss"] > 0.2
    assert read(*sure, doubtful).scores["uncertainty"] > read(*sure).scores["uncertainty"]


def test_one_more_candidate_never_lowers_a_still_score() -> None:
    """Adding a candidate that stands alone leaves each score of a single frame as it was, or raises it."""
    for count in range(len(FAR) - 1):
        less, more = read(*FAR[:count]).scores, read(*FAR[: count + 1]).scores
        assert all(more[name] >= less[name] for name in ("near_miss", "margin", "entropy", "crowding", "uncertainty"))


def test_crowding_sees_what_suppression_hides() -> None:
    """A sure box merged at the edge of the allowed overlap is suspicious, an exact duplicate is not."""
    box = (50, 20, 70, 60)
    duplicate = read((box, 0.9), (box, 0.85))
    merged = read((box, 0.9), ((55, 20, 75, 60), 0.85))
    assert len(duplicate.boxes) == len(merged.boxes) == 1
    assert duplicate.scores["crowding"] == 0.0
    assert merged.scores["crowding"] > 0.2


def test_time_tells_of_flicker_and_loss() -> None:
    """A box that vanishes in the middle raises `lost_track`; one that blinks raises `flicker`; a fresh reader knows
    neither."""
    steady = raw(((90, 40, 110, 60), 0.9))
    empty = raw()
    reader = DETECTION.reader(SPEC)
    for _ in range(6):
        calm = reader.read(steady, 100, 200).scores
    assert (calm["flicker"], calm["lost_track"]) == (0.0, 0.0)
    lost = reader.read(empty, 100, 200).scores
    assert lost["lost_track"] == pytest.approx(0.9 / TOP_K, abs=1e-4)
    assert lost["uncertainty"] >= lost["lost_track"]
    back = reader.read(steady, 100, 200).scores
    assert (back["lost_track"], back["flicker"] > 0) == (0.0, True)
    assert DETECTION.reader(SPEC).read(empty, 100, 200).scores["lost_track"] == 0.0


# -- golden -------------------------------------------------------------------------------------------------------


def test_the_golden_difference_ignores_the_order() -> None:
    """The same candidates in any order are no difference at all."""
    order = np.random.default_rng(0).permutation(len(FAR))
    shuffled = raw(*[FAR[n] for n in order])
    assert DETECTION.golden_difference(shuffled, raw(*FAR)) == 0.0


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        ([((0, 0, 10, 10), 0.8), ((50, 0, 60, 10), 0.1)], 0.1),
        ([((0, 0, 10, 10), 0.9), ((50, 0, 60, 9), 0.1)], 0.1),
        ([((0, 0, 10, 10), 0.9), ((80, 0, 90, 9), 0.12)], 0.12),
        ([((80, 0, 90, 10), 0.9), ((50, 0, 60, 10), 0.1)], 0.9),
        ([((0, 0, 10, 5), 0.9), ((50, 0, 60, 10), 0.1)], 0.5),
    ],
    ids=["score", "place", "a faint one elsewhere", "a sure one elsewhere", "half a box"],
)
def test_the_golden_difference_is_that_of_the_worst_candidate(found: list[Candidate], difference: float) -> None:
    """A moved score counts by itself, a moved box by the overlap it lost, one without counterpart by its score."""
    expected = raw(((0, 0, 10, 10), 0.9), ((50, 0, 60, 10), 0.1))
    assert DETECTION.golden_difference(raw(*found), expected) == pytest.approx(difference, abs=1e-6)
    assert DETECTION.golden_difference(expected, raw(*found)) == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize(
    ("other", "apart"),
    [
        ([((0, 0, 10, 10), 0.9), ((50, 0, 60, 10), 0.4)], 0.0),
        ([((0, 0, 10, 10), 0.7), ((50, 0, 60, 10), 0.4)], 0.2),
        ([((0, 0, 10, 8), 0.9), ((50, 0, 60, 10), 0.4)], 0.2),
        ([((0, 0, 10, 10), 0.9)], 0.4),
        ([((50, 0, 60, 10), 0.4)], 0.9),
        ([], 0.9),
    ],
    ids=["same", "score", "place", "the fainter one gone", "the surer one gone", "nothing"],
)
def test_two_models_disagree_by_their_worst_box(other: list[Candidate], apart: float) -> None:
    """A box counts by its change of score or the overlap it lost, whichever is more, and never beyond its score."""
    ours = read(((0, 0, 10, 10), 0.9), ((50, 0, 60, 10), 0.4)).to_prediction("p", "r")
    theirs = read(*other).to_prediction("p", "r")
    assert DETECTION.disagreement(ours, theirs) == pytest.approx(apart, abs=1e-5)
    assert DETECTION.disagreement(theirs, ours) == pytest.approx(apart, abs=1e-5)


def test_two_empty_frames_agree_and_other_classes_are_refused() -> None:
    """No box on either side is no disagreement; boxes over other classes, or over several, cannot be compared."""
    empty = read().to_prediction("p", "r")
    assert DETECTION.disagreement(empty, empty) == 0.0
    one, two = (
        DetectedBox(box_id=f"b{len(p)}", x_min=0, y_min=0, x_max=9, y_max=9, probabilities=p)
        for p in ([0.5], [0.5, 0.5])
    )
    known = read(((0, 0, 10, 10), 0.9)).to_prediction("p", "r")
    for boxes in ([two], [one, two]):
        wrong = DetectionPrediction(prediction_id="p", release_id="r", boxes=boxes)
        with pytest.raises(BadOutputError):
            DETECTION.disagreement(known, wrong)


def test_golden_answers_must_be_comparable() -> None:
    """Another number of candidates and NaN are refused; another frame embedding counts."""
    expected = raw(*FAR)
    with pytest.raises(BadOutputError):
        DETECTION.golden_difference(raw(*FAR[:3]), expected)
    with pytest.raises(BadOutputError):
        DETECTION.golden_difference(expected | {"boxes": np.full((10, 4), np.nan, np.float32)}, expected)
    moved = expected | {"embedding": expected["embedding"] + np.float32(0.25)}
    assert DETECTION.golden_difference(moved, expected) == pytest.approx(0.25)


def test_every_kind_keeps_the_registry_s_promises() -> None:
    """Each kind's default is one of its scores, all scores are known together, and an embedding is an output."""
    for kind in ANSWERS.values():
        assert kind.default_score in kind.score_names <= SCORE_NAMES
        assert "embedding" in kind.output_names


def agree(left: tuple[Candidate, ...], right: tuple[Candidate, ...]) -> bool:
    one, other = read(*left), read(*right)
    assert one.agrees_with(other) == other.agrees_with(one)
    return one.agrees_with(other)


def test_answers_agree_while_people_see_the_same_boxes() -> None:
    """A box that moved a little, or wavers around the threshold, changes nothing; a new, lost or far one does."""
    here: Candidate = ((10, 10, 30, 50), 0.8)
    assert agree((), ())
    assert agree((here,), (((12, 10, 32, 50), 0.6),))
    assert agree((here, ((100, 10, 130, 50), 0.32)), (here, ((100, 10, 130, 50), 0.25)))
    assert agree((here,), (here, ((100, 10, 130, 50), 0.2)))
    assert not agree((here,), ())
    assert not agree((here,), (((60, 10, 80, 50), 0.8),))
    assert not agree((here,), (here, ((100, 10, 130, 50), 0.9)))
    assert read(here).without_embeddings().agrees_with(read(here))


def test_answers_of_other_classes_or_kinds_do_not_agree() -> None:
    """The same box under another class is another answer, and so is another kind's."""

    def read_two(probabilities: list[float]) -> DetectionAnswer:
        outputs = raw(((10, 10, 30, 50), 0.8)) | {"probabilities": np.array([probabilities], np.float32)}
        return DETECTION.reader(TWO).read(outputs, 100, 200)

    assert read_two([0.8, 0.1]).agrees_with(read_two([0.7, 0.2]))
    assert not read_two([0.8, 0.1]).agrees_with(read_two([0.1, 0.8]))
    whole = ModelSpec(kind="classification", class_names=["a", "b"], height=8, width=8, embedding_dim=1)
    outputs = {"probabilities": np.array([0.5, 0.5], np.float32), "embedding": np.ones(1, np.float32)}
    assert not read_two([0.8, 0.1]).agrees_with(ANSWERS["classification"].reader(whole).read(outputs, 8, 8))
