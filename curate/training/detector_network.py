"""The detector: a centre-point network on EfficientNet-Lite0, and what a device runs of it.

Objects are peaks of a score map, boxes are read at the peaks as distances to the four sides: Zhou et al. 2019
(CenterNet, arXiv:1904.07850), Tian et al. 2019 (FCOS, arXiv:1904.01355).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from curate.training.architectures import normalise
from curate.training.backbone import Backbone
from curate.training.detector_recipe import DetectorShape

_RARE = 0.01
"""Score of an untrained cell: nearly all cells are background, and the loss must not begin by saying so."""
_LONGEST = 5.0
"""Largest logarithm of a distance in cells: keeps an untrained net from boxes of infinite size."""


class Maps(NamedTuple):
    """What the network says of every cell, and of the whole frame.

    `logits` [N, K, h, w]; `distances` [N, 4, h, w] in pixels from the cell's centre to the left, top, right and bottom
    side; `features` [N, W, h, w] that both were read from; `context` [N, V] of the frame.
    """

    logits: Tensor
    distances: Tensor
    features: Tensor
    context: Tensor


class DetectorNetwork(nn.Module):
    """Float frames [N, 3, H, W] in -1..1 to `Maps`; H and W are multiples of the coarsest stride."""

    def __init__(self, shape: DetectorShape, class_count: int) -> None:
        super().__init__()
        self.stride = shape.stride
        self.backbone = Backbone(shape.coarsest_stride)
        width, widths = shape.neck_width, self.backbone.widths
        self.levels = tuple(stride for stride in sorted(widths, reverse=True) if stride >= shape.stride)
        self.lateral = nn.ModuleList([nn.Conv2d(widths[stride], width, 1) for stride in self.levels])
        self.merge = nn.ModuleList([_separable(width, width) for _ in self.levels[1:]])
        self.score_tower = nn.Sequential(_separable(width, width), _separable(width, width))
        self.box_tower = nn.Sequential(_separable(width, width), _separable(width, width))
        self.score = nn.Conv2d(width, class_count, 1)
        self.box = nn.Conv2d(width, 4, 1)
        self.feature_width, self.context_width = 2 * width, widths[16]
        nn.init.constant_(_bias(self.score), math.log(_RARE / (1.0 - _RARE)))
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.box.weight, std=0.01)
        nn.init.constant_(_bias(self.box), 1.0)

    def forward(self, frames: Tensor) -> Maps:
        """Maps at the prediction stride."""
        maps = self.backbone(frames)
        fused: Tensor = self.lateral[0](maps[self.levels[0]])
        for stride, lateral, merge in zip(self.levels[1:], self.lateral[1:], self.merge, strict=True):
            fused = merge(lateral(maps[stride]) + functional.interpolate(fused, scale_factor=2.0, mode="nearest"))
        of_scores, of_boxes = self.score_tower(fused), self.box_tower(fused)
        distances = self.box(of_boxes).clamp(max=_LONGEST).exp() * float(self.stride)
        features = torch.cat([of_scores, of_boxes], dim=1)
        return Maps(self.score(of_scores), distances, features, maps[16].mean(dim=(2, 3)))


class Projections(nn.Module):
    """Linear maps from features to embeddings, fitted once after training (see detector_embedding)."""

    def __init__(self, network: DetectorNetwork, shape: DetectorShape) -> None:
        super().__init__()
        self.box = nn.Linear(network.feature_width, shape.box_embedding_dim)
        self.frame = nn.Linear(network.context_width + network.feature_width, shape.embedding_dim)


class ServingDetector(nn.Module):
    """What a device runs: raw frames uint8 [N, H, W, 3] to boxes, probabilities, box embeddings and the embedding.

    `boxes` [N, C, 4] are corners in pixels of these frames, `probabilities` [N, C, K] independent scores,
    `box_embeddings` [N, C, E] and `embedding` [N, D] have length 1. C raw candidates by falling score, nothing
    suppressed: the scores of a capture see what suppression hides.
    """

    def __init__(
        self, network: DetectorNetwork, projections: Projections, candidates: int, calibration: tuple[float, float]
    ) -> None:
        super().__init__()
        self.network = network
        self.projections = projections
        self.candidates = candidates
        self.slope, self.offset = calibration

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes, probabilities, box embeddings, embedding."""
        maps = self.network(normalise(images.permute(0, 3, 1, 2).to(torch.float32)))
        scores = torch.sigmoid(maps.logits * self.slope + self.offset).flatten(2)
        _, cells = scores.amax(dim=1).topk(min(self.candidates, scores.shape[2]), dim=1)
        corners = corners_of(maps.distances, self.network.stride).flatten(2)
        height, width = images.shape[1], images.shape[2]
        boxes = _clip(_at(corners, cells), float(height), float(width))
        box_features = _at(maps.features.flatten(2), cells)
        return (
            boxes,
            _at(scores, cells),
            _unit(self.projections.box(box_features)),
            _unit(self.projections.frame(frame_features(maps, torch.sigmoid(maps.logits)))),
        )


def frame_features(maps: Maps, scores: Tensor) -> Tensor:
    """[N, V + W]: the frame's context, and the mean feature of where objects are; `scores` [N, K, h, w]."""
    weights = scores.amax(dim=1, keepdim=True)
    objects = (maps.features * weights).sum(dim=(2, 3)) / (weights.sum(dim=(2, 3)) + 1e-3)
    return torch.cat([maps.context, objects], dim=1)


def cell_centres(height: int, width: int, stride: int) -> tuple[Tensor, Tensor]:
    """Pixel coordinates of the cells' centres: x [w] and y [h]."""
    return (torch.arange(width) + 0.5) * stride, (torch.arange(height) + 0.5) * stride


def corners_of(distances: Tensor, stride: int) -> Tensor:
    """Distances [N, 4, h, w] to corner boxes [N, 4, h, w], all in pixels."""
    x, y = cell_centres(distances.shape[2], distances.shape[3], stride)
    left, top, right, bottom = distances.unbind(dim=1)
    return torch.stack([x - left, y[:, None] - top, x + right, y[:, None] + bottom], dim=1)


def _at(values: Tensor, cells: Tensor) -> Tensor:
    """Pick cells: values [N, V, h*w] at cells [N, C] as [N, C, V]."""
    index = cells.unsqueeze(1).expand(-1, values.shape[1], -1)
    return values.gather(2, index).transpose(1, 2)


def _clip(boxes: Tensor, height: float, width: float) -> Tensor:
    limit = torch.tensor([width, height, width, height])
    return boxes.clamp(min=0.0).minimum(limit)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (vectors.square().sum(dim=-1, keepdim=True).sqrt() + 1e-6)


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """Depthwise 3x3, pointwise, batch norm, ReLU6."""
    filtered = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    return nn.Sequential(filtered, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6())


def _bias(layer: nn.Conv2d) -> Tensor:
    bias = layer.bias
    if bias is None:
        raise TypeError("this layer has no bias")
    return bias
