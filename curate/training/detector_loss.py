"""What a detector is taught by: a focal loss on its score map, and the overlap of its boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from curate.training.detector_data import Targets
from curate.training.detector_network import Maps, corners_of


def detection_loss(maps: Maps, targets: Targets, stride: int, box_weight: float) -> Tensor:
    """Loss of a batch, per box; frames without boxes count through the score map."""
    per_box = 1.0 / max(1, targets.box_count)
    overlap = generalised_iou(corners_of(maps.distances, stride), targets.corners)
    boxes = ((1.0 - overlap) * targets.weights).sum() * per_box
    return score_loss(maps.logits, targets.heat) * per_box + box_weight * boxes


def score_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Penalty-reduced focal loss, summed: Zhou et al. 2019 (arXiv:1904.07850), equation 1, alpha 2 and beta 4."""
    probability = torch.sigmoid(logits)
    at_centre = (1.0 - probability).square() * functional.logsigmoid(logits)
    elsewhere = (1.0 - heat).pow(4) * probability.square() * functional.logsigmoid(-logits)
    return -torch.where(heat >= 1.0, at_centre, elsewhere).sum()


def generalised_iou(left: Tensor, right: Tensor) -> Tensor:
    """Rezatofighi et al. 2019 (arXiv:1902.09630), algorithm 1, of corner boxes [N, 4, ...]; the result is [N, ...]."""
    low, high = torch.maximum(left[:, :2], right[:, :2]), torch.minimum(left[:, 2:], right[:, 2:])
    shared = (high - low).clamp(min=0.0).prod(dim=1)
    union = _area(left) + _area(right) - shared
    hull = torch.maximum(left[:, 2:], right[:, 2:]) - torch.minimum(left[:, :2], right[:, :2])
    around = hull.prod(dim=1).clamp(min=1e-6)
    return shared / union.clamp(min=1e-6) - (around - union) / around


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.0).prod(dim=1)
