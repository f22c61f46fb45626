"""Labels and bytes that choosing saves."""

from __future__ import annotations

import numpy as np
import pytest

from curate.contracts.telemetry import DeviceCounters
from curate.errors import SelectionError
from curate.selection.estimate.savings import CurvePoint, bytes_saved, labels_saved

FRAMES = 400
BLOCKS = [f"b{frame // 2}" for frame in range(FRAMES)]
WEIGHTS = np.ones(FRAMES)
DIFFICULTY = np.random.default_rng(0).permutation(FRAMES) / FRAMES


def point(labels: int, accuracy: float) -> CurvePoint:
    """A model that is right on the easiest frames."""
    return CurvePoint(labels, (accuracy > DIFFICULTY).astype(np.float64))


def test_the_share_is_read_off_our_curve() -> None:
    """A control as good as our middle model was reached with that model's labels."""
    saved = labels_saved([point(100, 0.5), point(200, 0.7), point(400, 0.8)], point(300, 0.7), WEIGHTS, BLOCKS)
    assert saved.share == pytest.approx(200 / 300)
    assert saved.ci95 is not None
    assert saved.ci95[0] - 1e-9 <= 200 / 300 <= saved.ci95[1] + 1e-9
    assert saved.ci95[1] < 1


def test_between_two_points_labels_are_read_on_a_logarithm() -> None:
    """Halfway between two accuracies lies the geometric mean of their labels."""
    saved = labels_saved([point(100, 0.5), point(400, 0.7)], point(200, 0.6), WEIGHTS, BLOCKS)
    assert saved.share == pytest.approx(1.0, abs=0.01)


def test_a_dip_in_the_curve_is_levelled() -> None:
    """A model that got worse by chance is pooled with its neighbour, so that the curve can be read."""
    ours = [point(100, 0.5), point(200, 0.72), point(300, 0.68), point(400, 0.8)]
    saved = labels_saved(ours, point(250, 0.6), WEIGHTS, BLOCKS)
    assert saved.share is not None
    assert 100 / 250 < saved.share < 200 / 250


@pytest.mark.parametrize(("control", "word"), [(0.2, "smallest"), (0.95, "worse")])
def test_beyond_the_curve_nothing_is_told(control: float, word: str) -> None:
    """A control outside our curve gets no number, and the reason is said."""
    saved = labels_saved([point(100, 0.5), point(200, 0.7)], point(200, control), WEIGHTS, BLOCKS)
    assert saved.share is None
    assert saved.ci95 is None
    assert word in saved.why


def test_curves_that_cannot_be_told_apart_are_not_told() -> None:
    """A control right at the curve's end is beyond it in half of the replicates: no number."""
    ours = [point(100, 0.5), point(200, 0.7)]
    shuffled = np.random.default_rng(1).permutation(FRAMES)
    control = CurvePoint(200, ours[1].correct[shuffled])
    assert labels_saved(ours, control, WEIGHTS, BLOCKS).share is None


def test_few_scenes_tell_nothing() -> None:
    """With fewer than ten held-out scenes there is no interval worth the name."""
    blocks = [f"b{frame % 5}" for frame in range(FRAMES)]
    assert labels_saved([point(100, 0.5), point(200, 0.7)], point(150, 0.6), WEIGHTS, blocks).share is None


@pytest.mark.parametrize("ours", [[], [point(100, 0.5)], [point(100, 0.5), point(100, 0.6)], [point(0, 0.1)] * 2])
def test_no_curve_is_refused(ours: list[CurvePoint]) -> None:
    """Fewer than two sizes, or a model without labels, raise SelectionError."""
    with pytest.raises(SelectionError):
        labels_saved(ours, point(100, 0.5), WEIGHTS, BLOCKS)


def test_ragged_columns_are_refused() -> None:
    """All models have to have answered the same frames."""
    with pytest.raises(SelectionError):
        labels_saved([point(100, 0.5), point(200, 0.7)], CurvePoint(100, np.ones(3)), WEIGHTS, BLOCKS)


def test_bytes_of_all_frames_include_those_the_gate_spared() -> None:
    """A frame that was never encoded counts as the mean of those that were."""
    counters = [
        DeviceCounters(frames_inferred=10, bytes_seen=1000, bytes_uploaded=50, frames_skipped={"unchanged": 30}),
        DeviceCounters(frames_inferred=5, bytes_seen=500, bytes_uploaded=100),
    ]
    saved = bytes_saved(counters)
    assert (saved.all_frames, saved.uploaded) == (4500, 150)
    assert saved.share == pytest.approx(1 / 30)


def test_no_frame_has_no_share() -> None:
    """Before the first frame nothing is saved or spent."""
    assert bytes_saved([]).share is None
