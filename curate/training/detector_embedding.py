"""Embeddings of frames and boxes: the directions in which the trained network's features differ most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from curate.training.architectures import normalise
from curate.training.detector_data import Boxes
from curate.training.detector_network import DetectorNetwork, Projections, frame_features

_FRAMES = 48
"""Frames that the projections are fitted on: means and directions settle long before."""


def fit_projections(projections: Projections, network: DetectorNetwork, images: Tensor, boxes: Sequence[Boxes]) -> None:
    """Fit both projections to frames uint8 [N, H, W, 3] and the boxes in them.

    The features are centred first: in front of a fixed camera all frames share most of their features, and cosines
    between embeddings would all be near 1.
    """
    chosen = torch.linspace(0, len(images) - 1, min(_FRAMES, len(images))).round().to(torch.int64).tolist()
    of_frames, of_boxes = [], []
    with torch.no_grad():
        for index in chosen:
            maps = network(normalise(images[index : index + 1].permute(0, 3, 1, 2).to(torch.float32)))
            of_frames.append(frame_features(maps, torch.sigmoid(maps.logits))[0])
            of_boxes.append(_at_centres(maps.features[0], boxes[index].corners, network.stride))
    _fit(projections.frame, torch.stack(of_frames))
    _fit(projections.box, torch.cat(of_boxes))


def _at_centres(features: Tensor, corners: Tensor, stride: int) -> Tensor:
    """Features [W, h, w] at the boxes' centres, [M, W]."""
    _, height, width = features.shape
    x = ((corners[:, 0] + corners[:, 2]) / (2.0 * stride)).to(torch.int64).clamp(0, width - 1)
    y = ((corners[:, 1] + corners[:, 3]) / (2.0 * stride)).to(torch.int64).clamp(0, height - 1)
    return features[:, y, x].T


def _fit(layer: nn.Linear, features: Tensor) -> None:
    """Principal directions of standardised features [N, V]; fewer than two rows leave the layer as it is."""
    if len(features) < 2:
        return
    wide = features.to(torch.float64)
    mean, deviation = wide.mean(dim=0), wide.std(dim=0)
    scale = 1.0 / (deviation + 0.05 * deviation.mean() + 1e-6)
    scaled = (wide - mean) * scale
    _, directions = torch.linalg.eigh(scaled.T @ scaled)
    kept = directions.flip(1)[:, : layer.out_features]
    # The sign of a direction is arbitrary; fixing it makes the result the same on every machine.
    kept = kept * torch.where(kept.sum(dim=0) < 0, -1.0, 1.0)
    weight = torch.zeros_like(layer.weight, dtype=torch.float64)
    weight[: kept.shape[1]] = (kept * scale[:, None]).T
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(-(weight @ mean))
