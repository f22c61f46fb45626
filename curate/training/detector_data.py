"""Frames with boxes as tensors: reading labels, augmentation, and what the network should say of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from curate.catalog.boxes import corner_array, parse_boxes
from curate.errors import CatalogError, TrainingError
from curate.training.data import LabelledFrames
from curate.training.detector_network import cell_centres
from curate.training.detector_recipe import DetectorAugmentation

_REACH = 0.54
"""Share of a box in which its cells are taught, from TTFNet (Liu et al. 2019, arXiv:1909.00700, section 4.1)."""


@dataclass(frozen=True)
class Boxes:
    """Boxes of one frame: corners float32 [M, 4] in pixels, classes int64 [M]. M may be 0."""

    corners: Tensor
    classes: Tensor

    def __len__(self) -> int:
        """Number of boxes."""
        return len(self.classes)


@dataclass(frozen=True)
class Targets:
    """What the network should say of a batch.

    `heat` [N, K, h, w] is 1 at the centre of an object and falls off around it; `corners` [N, 4, h, w] is the box each
    cell is taught with weight `weights` [N, h, w], which adds up to 1 for every box that has a cell of its own.
    """

    heat: Tensor
    corners: Tensor
    weights: Tensor
    box_count: int


def read_boxes(data: LabelledFrames, class_names: tuple[str, ...]) -> tuple[Boxes, ...]:
    """Labels of kind detection (see curate/catalog/boxes.py) as tensors.

    Raises TrainingError for a label of another form or an unknown class.
    """
    row_of = {name: row for row, name in enumerate(class_names)}
    try:
        labels = [parse_boxes(label, row_of) for label in data.labels]
    except CatalogError as exc:
        raise TrainingError(f"a label cannot be trained on: {exc}", hint=exc.hint) from exc
    return tuple(
        Boxes(
            torch.from_numpy(corner_array(boxes)),
            torch.tensor([row_of[box.class_name] for box in boxes], dtype=torch.int64),
        )
        for boxes in labels
    )


def augment_frames(
    images: Tensor,
    boxes: Sequence[Boxes],
    window: tuple[int, int],
    strength: DetectorAugmentation,
    generator: torch.Generator,
) -> tuple[Tensor, list[Boxes]]:
    """Random variants of frames uint8 [N, H, W, 3]: float [N, 3, *window] in 0..1 with the boxes that moved along.

    All chance comes from `generator`. Boxes that mostly leave the window are dropped, the others end at its edge.
    """
    moved, boxes_moved = _move(images, boxes, window, strength, generator)
    return _degrade(_relight(moved, strength, generator), strength, generator).clamp_(0.0, 1.0), boxes_moved


def make_targets(boxes: Sequence[Boxes], height: int, width: int, stride: int, class_count: int) -> Targets:
    """Targets on the grid of a `height` x `width` frame."""
    frames = [_frame_targets(each, height, width, stride, class_count) for each in boxes]
    heat, corners, weights = (torch.stack(parts) for parts in zip(*frames, strict=True))
    return Targets(heat, corners, weights, sum(len(each) for each in boxes))


def _frame_targets(
    boxes: Boxes, height: int, width: int, stride: int, class_count: int
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = cell_centres(height // stride, width // stride, stride)
    heat = torch.zeros(class_count, len(y), len(x))
    if not len(boxes):
        return heat, torch.zeros(4, len(y), len(x)), torch.zeros(len(y), len(x))
    bumps = _bumps(boxes.corners, x, y, stride)
    for index, row in enumerate(boxes.classes.tolist()):
        heat[row] = torch.maximum(heat[row], bumps[index])
    strength, owner = bumps.max(dim=0)
    owned = functional.one_hot(owner, len(boxes)).permute(2, 0, 1) * strength * (strength > 0.1)
    total = owned.sum(dim=(1, 2)).clamp(min=1e-6)
    return heat, boxes.corners[owner].permute(2, 0, 1), (owned / total[:, None, None]).sum(dim=0)


def _bumps(corners: Tensor, x: Tensor, y: Tensor, stride: int) -> Tensor:
    """Gaussians [M, h, w] around the cells that hold the boxes' centres, wide as the boxes; exactly 1 in that cell."""
    centre_x = _cell_of(corners[:, 0] + corners[:, 2], stride, len(x))
    centre_y = _cell_of(corners[:, 1] + corners[:, 3], stride, len(y))
    sigma_x = (_REACH * (corners[:, 2] - corners[:, 0]) + stride) / 6.0
    sigma_y = (_REACH * (corners[:, 3] - corners[:, 1]) + stride) / 6.0
    along_x = torch.exp(-0.5 * ((x[None] - centre_x[:, None]) / sigma_x[:, None]).square())
    along_y = torch.exp(-0.5 * ((y[None] - centre_y[:, None]) / sigma_y[:, None]).square())
    return along_y[:, :, None] * along_x[:, None, :]


def _cell_of(doubled_centre: Tensor, stride: int, count: int) -> Tensor:
    """Centre of the cell that a coordinate, given doubled, falls into."""
    return ((doubled_centre / (2.0 * stride)).floor().clamp(0, count - 1) + 0.5) * stride


def _uniform(count: int, limit: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) * 2.0 - 1.0) * limit


def _chance(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _per_frame(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _move(
    images: Tensor,
    boxes: Sequence[Boxes],
    window: tuple[int, int],
    strength: DetectorAugmentation,
    generator: torch.Generator,
) -> tuple[Tensor, list[Boxes]]:
    """A random window, zoomed and perhaps mirrored, in one resampling; what lies outside the frame is grey."""
    count, height, width, _ = images.shape
    zoom = _uniform(count, strength.scale, generator).exp()
    mirror = torch.where(_chance(count, strength.flip_probability, generator), -1.0, 1.0)
    centre_x = _centre(width, window[1] / zoom, strength.shift, generator)
    centre_y = _centre(height, window[0] / zoom, strength.shift, generator)
    # Normalised coordinates run from -1 to 1 over the frame.
    zero = torch.zeros(count)
    right = torch.stack([mirror * window[1] / (zoom * width), zero, 2.0 * centre_x / width - 1.0], dim=1)
    down = torch.stack([zero, window[0] / (zoom * height), 2.0 * centre_y / height - 1.0], dim=1)
    grid = functional.affine_grid(torch.stack([right, down], dim=1), [count, 3, *window], align_corners=False)
    pixels = images.permute(0, 3, 1, 2).to(torch.float32) * (1.0 / 255.0) - 0.5
    sampled = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 0.5
    moved = []
    for index, each in enumerate(boxes):
        x = (each.corners[:, 0::2] - centre_x[index]) * zoom[index] * mirror[index] + window[1] / 2.0
        y = (each.corners[:, 1::2] - centre_y[index]) * zoom[index] + window[0] / 2.0
        moved.append(_cut(Boxes(_corners(x.sort(dim=1).values, y), each.classes), window, strength.min_visible))
    return sampled, moved


def _centre(side: int, seen: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """Centre of a window that sees `seen` pixels of `side`: anywhere inside the frame, and `shift` beyond."""
    slack = (side - seen).clamp(min=0.0) / 2.0 + shift * seen
    return side / 2.0 + (torch.rand(len(seen), generator=generator) * 2.0 - 1.0) * slack


def _corners(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def _cut(boxes: Boxes, window: tuple[int, int], min_visible: float) -> Boxes:
    limit = torch.tensor([window[1], window[0], window[1], window[0]], dtype=torch.float32)
    inside = boxes.corners.clamp(min=0.0).minimum(limit)
    seen = (inside[:, 2:] - inside[:, :2]).prod(dim=1)
    whole = (boxes.corners[:, 2:] - boxes.corners[:, :2]).prod(dim=1)
    kept = seen > min_visible * whole
    return Boxes(inside[kept], boxes.classes[kept])


def _relight(images: Tensor, strength: DetectorAugmentation, generator: torch.Generator) -> Tensor:
    """Curve, contrast, gain and tint; some frames go dark."""
    count = len(images)
    gamma = _per_frame(_uniform(count, strength.gamma, generator).exp())
    contrast = _per_frame(1.0 + _uniform(count, strength.contrast, generator))
    gain = 1.0 + _uniform(count, strength.light, generator)
    dark = strength.darkest + torch.rand(count, generator=generator) * (1.0 - strength.darkest)
    at_dusk = _chance(count, strength.dusk_probability, generator)
    gain = _per_frame(torch.where(at_dusk, gain * dark, gain))
    tint = 1.0 + _uniform(3 * count, strength.tint, generator).view(count, 3, 1, 1)
    curved = images.clamp(1e-4, 1.0).pow(gamma)
    mean = curved.mean(dim=(1, 2, 3), keepdim=True)
    return ((curved - mean) * contrast + mean) * (gain * tint)


def _degrade(images: Tensor, strength: DetectorAugmentation, generator: torch.Generator) -> Tensor:
    """Soft lens, then sensor noise: the order in which light meets them."""
    count = len(images)
    softness = _per_frame(torch.rand(count, generator=generator) * strength.blur)
    soft = torch.lerp(images, functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False), softness)
    sigma = _per_frame(torch.rand(count, generator=generator) * strength.noise)
    return soft + torch.randn(images.shape, generator=generator) * sigma
