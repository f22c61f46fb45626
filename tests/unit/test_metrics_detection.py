"""A detector's measures: COCO's own numbers, weighted frames, intervals over blocks."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from curate.metrics.average_precision import DetectionEvidence
from curate.metrics.detection import MetricsError, PredictedBoxes, TrueBoxes, evaluate_detection, match_frames

Frames = tuple[list[PredictedBoxes], list[TrueBoxes]]
RECALL = "recall at 1 false positive a frame"


def random_frames(seed: int, frames: int, classes: int, most: int) -> Frames:
    """Boxes found well, badly, twice or not at all, with many equal scores, on a grid so that IoUs tie as well."""
    rng = np.random.default_rng(seed)
    predicted, truth = [], []
    for _ in range(frames):
        corner = rng.integers(0, 60, (int(rng.integers(0, most + 1)), 2))
        true = np.hstack([corner, corner + rng.integers(4, 30, corner.shape)]).astype(np.float64)
        names = rng.integers(0, classes, len(true))
        truth.append(TrueBoxes.of(true, names))
        seen = rng.integers(0, len(true), int(rng.integers(0, 2 * len(true) + 1))) if len(true) else np.empty(0, int)
        found = true[seen] + rng.integers(-3, 4, (len(seen), 4))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        lone = rng.integers(0, 60, (int(rng.integers(0, 3)), 2)).astype(np.float64)
        boxes = np.vstack([found, np.hstack([lone, lone + 12])])
        guesses = np.concatenate([names[seen], rng.integers(0, classes, len(lone))])
        predicted.append(PredictedBoxes.of(boxes, guesses, rng.integers(1, 20, len(boxes)) / 20))
    return predicted, truth


def coco_statistics(predicted: list[PredictedBoxes], truth: list[TrueBoxes], classes: int) -> tuple[float, float]:
    """AP50-95 and AP50 as COCOeval.summarize reports them; NaN where it says -1."""

    def data(frames: list[PredictedBoxes] | list[TrueBoxes]) -> COCO:
        rows = [
            (image, x0, y0, x1 - x0, y1 - y0, name, score)
            for image, each in enumerate(frames, start=1)
            for (x0, y0, x1, y1), name, score in zip(
                each.corners.tolist(),
                each.classes.tolist(),
                getattr(each, "scores", each.classes).tolist(),
                strict=True,
            )
        ]
        coco, whole = COCO(), {"iscrowd": 0}
        coco.dataset = {
            "images": [{"id": i + 1} for i in range(len(frames))],
            "categories": [{"id": i + 1} for i in range(classes)],
            "annotations": [
                {"id": i, "image_id": n, "category_id": c + 1, "bbox": [x, y, w, h], "area": w * h, "score": s} | whole
                for i, (n, x, y, w, h, c, s) in enumerate(rows, start=1)
            ],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(data(truth), data(predicted), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return tuple(float("nan") if value < 0 else float(value) for value in judge.stats[:2])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 3), st.integers(0, 10))
def test_the_numbers_are_the_standards(seed: int, frames: int, classes: int, most: int) -> None:
    """With all frames weighing the same, AP50 and AP50-95 equal those of COCOeval."""
    predicted, truth = random_frames(seed, frames, classes, most)
    evidence = match_frames(predicted, truth, classes)
    ours = (evidence.measuring("AP50-95").value(), evidence.value(np.full(frames, 1 / 0.03)))
    assert ours == pytest.approx(coco_statistics(predicted, truth, classes), abs=1e-9, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_a_weight_counts_a_frame_that_often(seed: int, times: list[int]) -> None:
    """A frame of weight k measures as k copies of the frame do, and one of weight 0 as if it were not there."""
    predicted, truth = random_frames(seed, len(times), 1, 6)
    evidence = match_frames(predicted, truth, 1)
    copies = [i for i, k in enumerate(times) for _ in range(k)]
    repeated = match_frames([predicted[i] for i in copies], [truth[i] for i in copies], 1).measuring(RECALL)
    weights = np.array(times, np.float64)
    assert evidence.measuring(RECALL).value(weights) == pytest.approx(repeated.value(), abs=1e-9, nan_ok=True)
    present = evidence.take(np.flatnonzero(weights))
    assert evidence.value(np.minimum(weights, 1)) == pytest.approx(present.value(), abs=1e-9, nan_ok=True)


def one_class(scores: list[float], hits: list[bool], frame: list[int], truths: list[int]) -> DetectionEvidence:
    order = np.argsort(-np.asarray(scores), kind="stable")
    matched = np.repeat(np.asarray(hits)[None, order], 10, axis=0)
    classes = np.zeros(len(scores), np.int64)
    return DetectionEvidence(
        np.asarray(frame)[order], classes, np.asarray(scores)[order], matched, np.asarray(truths)[:, None]
    )


def test_recall_stops_at_one_false_box_a_frame() -> None:
    """The cut is the lowest score with at most one false box a frame, empty frames counted, ties taken together."""
    evidence = one_class([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, False, True, True], [0, 0, 0, 1, 1], [2, 2])
    assert evidence.measuring(RECALL).value() == pytest.approx(3 / 4)
    alone = evidence.take([0]).measuring(RECALL)
    assert alone.value() == pytest.approx(1 / 2)
    tied = one_class([0.9, 0.5, 0.5, 0.5], [True, True, False, False], [0, 0, 0, 0], [3])
    assert tied.measuring(RECALL).value() == pytest.approx(1 / 3)


def test_empty_frames_are_answers_too() -> None:
    """A false box on an empty frame costs precision; nothing anywhere is NaN; truth never found is 0."""
    box = [[0, 0, 10, 10]]
    none, nothing = PredictedBoxes.of([], [], []), TrueBoxes.of([], [])
    right, true = PredictedBoxes.of(box, [0], [0.5]), TrueBoxes.of(box, [0])
    assert match_frames([right, none], [true, nothing], 1).value() == pytest.approx(1)
    wrong = PredictedBoxes.of(box, [0], [0.9])
    assert match_frames([right, wrong], [true, nothing], 1).value() == pytest.approx(0.5)
    assert match_frames([none], [true], 1).value() == 0
    for frames in ([], [(none, nothing)], [(wrong, nothing)]):
        evidence = match_frames([p for p, _ in frames], [t for _, t in frames], 1)
        assert np.isnan([evidence.measuring(m).value() for m in ("AP50", "AP50-95", RECALL)]).all()
        assert evidence.interval(np.ones(len(frames)), ["a"] * len(frames)) == (0.0, 1.0)


def test_a_class_without_truth_does_not_count() -> None:
    """Average precision is the mean over the classes that occur, and boxes match within their class only."""
    box = [[0, 0, 10, 10]]
    found = match_frames([PredictedBoxes.of(box * 2, [0, 1], [0.5, 0.9])], [TrueBoxes.of(box, [0])], 3)
    assert found.value() == pytest.approx(1)
    missed = match_frames([PredictedBoxes.of(box, [1], [0.9])], [TrueBoxes.of(box, [0])], 2)
    assert missed.value() == 0


def test_probabilities_make_one_detection_a_class() -> None:
    """A box with scores for two classes is a detection of each; a score of exactly 0 is none."""
    boxes = PredictedBoxes.from_probabilities([[0, 0, 4, 4], [1, 1, 5, 5]], [[0.2, 0.7], [0.0, 0.4]])
    assert boxes.classes.tolist() == [0, 1, 1]
    assert boxes.scores.tolist() == [0.2, 0.7, 0.4]
    assert PredictedBoxes.from_probabilities([], []).corners.shape == (0, 4)


def test_curve_ends_at_the_last_detection() -> None:
    """The precision-recall curve has one point a detection by falling score, and is empty without truth."""
    evidence = one_class([0.9, 0.8, 0.3], [True, False, True], [0, 0, 1], [2, 2])
    curve = evidence.curve()
    assert curve.recall.tolist() == [0.25, 0.25, 0.5]
    assert curve.precision == pytest.approx([1, 0.5, 2 / 3])
    assert curve.score.tolist() == [0.9, 0.8, 0.3]
    assert one_class([0.9], [False], [0], [0]).curve().recall.size == 0


def test_quality_by_camera_and_slice() -> None:
    """Each camera and slice is measured on its own frames, with intervals that hold the value."""
    predicted, truth = random_frames(5, 60, 1, 6)
    evidence = match_frames(predicted, truth, 1)
    cameras, light = ["north"] * 30 + ["south"] * 30, ["day", "dusk"] * 30
    blocks = [f"{i // 3}" for i in range(60)]
    report = evaluate_detection(evidence, blocks, cameras=cameras, slices={"light": light})
    assert list(report.cameras) == ["north", "south"]
    assert report.cameras["south"].ap50.value == match_frames(predicted[30:], truth[30:], 1).value()
    dusk = report.slices["light"]["dusk"]
    assert dusk.ap50.value == match_frames(predicted[1::2], truth[1::2], 1).value()
    assert dusk.truths == sum(len(each.classes) for each in truth[1::2])
    for part in (report.overall, dusk, *report.cameras.values()):
        for measured in (part.ap50, part.ap50_95, part.recall_at_1_fp):
            assert 0 <= measured.ci95[0] < measured.value < measured.ci95[1] <= 1
    assert report.overall.ap50_95.value < report.overall.ap50.value
    assert (report.overall.frames, report.overall.blocks) == (60, 20)


def test_the_unit_of_evidence_is_the_block() -> None:
    """The same frames in fewer blocks give a wider interval, and a single block bounds nothing."""
    predicted, truth = random_frames(8, 60, 1, 6)
    evidence, weights = match_frames(predicted, truth, 1), np.ones(60)
    widths = [np.ptp(evidence.interval(weights, [f"{i // k}" for i in range(60)])) for k in (1, 6, 15, 60)]
    assert widths == sorted(widths)
    assert widths[-1] == 1.0


def test_a_paired_difference_cancels_what_frames_share() -> None:
    """Two models that err on the same frames are compared more sharply than each is measured; equal ones by 0."""
    predicted, truth = random_frames(3, 60, 1, 6)
    weaker = [PredictedBoxes.of(p.corners[1:], p.classes[1:], p.scores[1:]) for p in predicted]
    first, second = match_frames(predicted, truth, 1), match_frames(weaker, truth, 1)
    weights, blocks = np.ones(60), [f"{i // 3}" for i in range(60)]
    difference = first.difference(second, weights, blocks)
    assert difference.mean == pytest.approx(first.value() - second.value())
    low, high = difference.bound(0.025), difference.bound(0.975)
    assert high - low < np.ptp(first.interval(weights, blocks))
    same = first.difference(first, weights, blocks)
    assert same.mean == 0
    assert same.bound(0.025) < 0 < same.bound(0.975)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """pycocotools' progress reports stay inside."""
    match_frames(*random_frames(1, 4, 2, 4), 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "build",
    [
        lambda: TrueBoxes.of([[0, 0, 0, 5]], [0]),
        lambda: TrueBoxes.of([[0, 0, 5, np.nan]], [0]),
        lambda: TrueBoxes.of([[0, 0, 5, 5]], [0, 1]),
        lambda: PredictedBoxes.of([[5, 0, 0, 5]], [0], [0.5]),
        lambda: PredictedBoxes.of([[0, 0, 5, 5]], [0], [np.nan]),
        lambda: PredictedBoxes.from_probabilities([[0, 0, 5, 5]], [[0.5], [0.5]]),
        lambda: match_frames([], [TrueBoxes.of([], [])], 1),
        lambda: match_frames([PredictedBoxes.of([[0, 0, 5, 5]], [1], [0.5])], [TrueBoxes.of([], [])], 1),
        lambda: evaluate_detection(match_frames([], [], 1), ["a"]),
    ],
)
def test_nonsense_is_refused(build: object) -> None:
    """Boxes without area or out of order, NaN, unknown classes and ragged columns are MetricsErrors."""
    with pytest.raises(MetricsError):
        build()  # type: ignore[operator]
