"""What a detector's training is made of: augmentation, targets, loss, embeddings, calibration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.training.architectures import normalise
from curate.training.backbone import Backbone, load_pretrained
from curate.training.detector_data import Boxes, augment_frames, make_targets, read_boxes
from curate.training.detector_embedding import fit_projections
from curate.training.detector_loss import detection_loss, generalised_iou, score_loss
from curate.training.detector_network import DetectorNetwork, Maps, Projections, corners_of, frame_features
from curate.training.detector_quality import Matches, fit_calibration, match_detections
from curate.training.detector_recipe import DetectorAugmentation
from tests.unit.detector_world import NAMES, SHAPE, blocks

STILL = DetectorAugmentation(
    flip_probability=0, shift=0, scale=0, light=0, contrast=0, gamma=0, tint=0, dusk_probability=0, noise=0, blur=0
)


def boxes_of(*rows: tuple[float, float, float, float]) -> Boxes:
    """Boxes of class 0."""
    return Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), torch.zeros(len(rows), dtype=torch.int64))


def generator(seed: int = 0) -> torch.Generator:
    """A fresh stream."""
    return torch.Generator().manual_seed(seed)


def test_without_strength_augmentation_changes_nothing() -> None:
    """All ranges at zero give the captured frame and its boxes back."""
    frames = blocks(3, 0)
    images, boxes = torch.from_numpy(frames.images), read_boxes(frames, NAMES)
    variants, moved = augment_frames(images, boxes, (64, 64), STILL, generator())
    assert torch.allclose(variants * 255.0, images.permute(0, 3, 1, 2).float(), atol=0.1)
    assert all(torch.allclose(a.corners, b.corners, atol=1e-3) for a, b in zip(boxes, moved, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_boxes_move_with_what_they_show(seed: int) -> None:
    """Wherever a bright block lands, mirrored, zoomed and shifted, its box still encloses exactly the bright pixels."""
    image = torch.zeros((1, 64, 64, 3), dtype=torch.uint8)
    image[0, 20:44, 24:36] = 255
    moving = STILL.model_copy(update={"flip_probability": 0.5, "shift": 0.1, "scale": 0.2})
    variants, moved = augment_frames(image, [boxes_of((24, 20, 36, 44))], (64, 64), moving, generator(seed))
    # Outside of the frame is grey, so only what is brighter counts.
    bright = (variants[0, 0] > 0.75).nonzero()
    low, high = bright.min(dim=0).values.flip(0), bright.max(dim=0).values.flip(0) + 1
    assert torch.allclose(moved[0].corners[0], torch.cat([low, high]).float(), atol=1.01)


def test_boxes_mostly_outside_are_dropped_and_the_others_end_at_the_edge() -> None:
    """A box with less than the visible share inside is gone, one with more is cut."""
    image = torch.zeros((1, 64, 64, 3), dtype=torch.uint8)
    outside, across = (-14.0, 0.0, 4.0, 18.0), (-6.0, 20.0, 20.0, 70.0)
    _, moved = augment_frames(image, [boxes_of(outside, across)], (64, 64), STILL, generator())
    assert torch.allclose(moved[0].corners, torch.tensor([[0.0, 20.0, 20.0, 64.0]]), atol=1e-3)


def test_dusk_is_dark() -> None:
    """With certain dusk, frames are darker on average, and never outside 0..1."""
    images = torch.full((16, 32, 32, 3), 200, dtype=torch.uint8)
    dusk = STILL.model_copy(update={"dusk_probability": 1.0, "darkest": 0.2, "noise": 0.1})
    variants, _ = augment_frames(images, [boxes_of()] * 16, (32, 32), dusk, generator())
    assert variants.mean() < 0.65
    assert variants.min() >= 0
    assert variants.max() <= 1


def test_targets_peak_at_centres_and_share_their_weight_out() -> None:
    """Every box has one certain cell, its own class, its own corners there, and weights that add up to one."""
    boxes = Boxes(torch.tensor([[8.0, 8, 24, 40], [40.0, 16, 56, 48]]), torch.tensor([1, 0]))
    targets = make_targets([boxes, boxes_of()], 64, 64, 4, 2)
    assert targets.heat.shape == (2, 2, 16, 16)
    assert (targets.heat[0] == 1).nonzero().tolist() == [[0, 8, 12], [1, 6, 4]]
    assert targets.corners[0, :, 6, 4].tolist() == [8, 8, 24, 40]
    assert targets.weights[0].sum() == pytest.approx(2.0, abs=1e-4)
    assert targets.heat[1].sum() == targets.weights[1].sum() == 0
    assert targets.box_count == 2


def test_neighbours_in_a_crowd_are_taught_their_own_boxes() -> None:
    """Where two people overlap, each cell belongs to the one whose centre it is nearer to."""
    boxes = boxes_of((10, 10, 26, 50), (20, 10, 36, 50))
    targets = make_targets([boxes], 64, 64, 4, 1)
    assert targets.corners[0, :, 7, 4].tolist() == [10, 10, 26, 50]
    assert targets.corners[0, :, 7, 7].tolist() == [20, 10, 36, 50]


def test_generalised_iou() -> None:
    """Equal boxes give 1, half-overlapping ones their overlap, distant ones less than 0."""
    left = torch.tensor([[0.0, 0, 10, 10]] * 3)
    right = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 5, 10], [30.0, 0, 40, 10]])
    assert generalised_iou(left, right).tolist() == pytest.approx([1.0, 0.5, -0.5])


def test_the_score_loss_prefers_the_truth() -> None:
    """Certain and right costs almost nothing, certain and wrong a lot, a near miss less than a far one."""
    heat = torch.zeros(1, 1, 4, 4)
    heat[0, 0, 1, 1], heat[0, 0, 1, 2] = 1.0, 0.8
    silent = torch.full_like(heat, -8.0)
    right, near, far = silent.clone(), silent.clone(), silent.clone()
    right[0, 0, 1, 1] = near[0, 0, 1, 2] = far[0, 0, 3, 3] = 8.0
    losses = [float(score_loss(logits, heat)) for logits in (right, near, far)]
    assert losses[0] < 0.01
    assert losses[0] < losses[1] < losses[2]


def test_the_loss_of_the_truth_is_nearly_nothing() -> None:
    """A network that says exactly the targets has next to no loss; saying nothing costs more."""
    targets = make_targets([boxes_of((8, 8, 24, 40))], 64, 64, 4, 1)
    logits = torch.where(targets.heat >= 1.0, 9.0, -9.0)
    own = corners_of(torch.zeros(1, 4, 16, 16), 4)
    distances = (targets.corners - own) * torch.tensor([-1.0, -1, 1, 1]).view(1, 4, 1, 1)
    said = Maps(logits, distances, torch.zeros(1, 1, 16, 16), torch.zeros(1, 1))
    assert float(detection_loss(said, targets, 4, 2.0)) < 0.01
    assert float(detection_loss(said._replace(logits=-logits), targets, 4, 2.0)) > 5


def test_the_pretrained_backbone_gives_maps_of_every_stride() -> None:
    """The shipped weights fit, and maps halve in size from stride 4 to 32."""
    backbone = Backbone(32)
    before = backbone.stem.weight.clone()
    load_pretrained(backbone)
    assert not torch.equal(before, backbone.stem.weight)
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert {stride: tuple(found.shape[1:]) for stride, found in maps.items()} == {
        4: (24, 16, 24),
        8: (40, 8, 12),
        16: (112, 4, 6),
        32: (192, 2, 3),
    }


def test_embeddings_are_centred_and_fitted_the_same_every_time() -> None:
    """Over the frames they were fitted on, frame embeddings have mean zero, the first direction spreads most."""
    frames = blocks(8, 0)
    torch.manual_seed(0)
    network = DetectorNetwork(SHAPE, 2).eval().requires_grad_(False)
    load_pretrained(network.backbone)
    images, boxes = torch.from_numpy(frames.images), read_boxes(frames, NAMES)
    projections, again = Projections(network, SHAPE), Projections(network, SHAPE)
    fit_projections(projections, network, images, boxes)
    fit_projections(again, network, images, boxes)
    assert torch.equal(projections.box.weight, again.box.weight)
    maps = network(normalise(images.permute(0, 3, 1, 2).float()))
    embedded = projections.frame(frame_features(maps, torch.sigmoid(maps.logits)))
    spread = embedded.std(dim=0)
    assert embedded.mean(dim=0).abs().max() < 0.01 * spread[0]
    assert spread[0] == spread.max()


def matches_of(scores: list[float], hits: list[bool], box_count: int) -> Matches:
    """Matches as evaluated."""
    return Matches(np.array(scores), np.array(hits), box_count)


def test_average_precision_counts_what_was_found_and_what_was_missed() -> None:
    """All found and nothing else is 1, a missed box and a false alarm on top each cost their share, no boxes is NaN."""
    assert matches_of([0.9, 0.8], [True, True], 2).average_precision() == 1.0
    assert matches_of([0.9], [True], 2).average_precision() == 0.5
    assert matches_of([0.9, 0.8], [False, True], 1).average_precision() == 0.5
    assert np.isnan(matches_of([0.9], [False], 0).average_precision())


def test_a_box_is_found_once() -> None:
    """A duplicate that suppression leaves is a false alarm; another class finds nothing."""
    truth = [boxes_of((0, 0, 20, 40))]
    boxes = np.array([[[0, 0, 20, 40], [0, 0, 20, 22], [50, 0, 70, 40]]], np.float32)
    scores = np.array([[[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]]], np.float32)
    found = match_detections(boxes, scores, truth)
    assert found.hits.tolist() == [True, False, False]
    assert found.box_count == 1


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 2.0), st.floats(-1.0, 1.0), st.integers(0, 100))
def test_calibration_finds_the_curve_that_made_the_hits(slope: float, offset: float, seed: int) -> None:
    """Hits drawn with a chance that is a curve of the score give that curve back."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, 20_000)
    hits = rng.random(20_000) < 1 / (1 + np.exp(-(slope * logits + offset)))
    found = fit_calibration(Matches(1 / (1 + np.exp(-logits)), hits, int(hits.sum())))
    assert found == pytest.approx((slope, offset), abs=0.15)


def test_calibration_needs_hits_and_misses() -> None:
    """All right, all wrong, or nothing at all leave the scores as they are."""
    for hits in ([True] * 3, [False] * 3, []):
        assert fit_calibration(matches_of([0.9, 0.5, 0.2][: len(hits)], hits, 3)) == (1.0, 0.0)
