"""Labelled images and their augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from curate.errors import TrainingError
from curate.training.recipe import Augmentation

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class LabelledFrames:
    """What every kind of model is trained on: frames uint8 [N, H, W, 3] at the model's size, and a label for each.

    A label is what people settled on, as the catalog keeps it; boxes are in pixels of these frames. N may be 0.
    """

    images: Images
    labels: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        """Raises TrainingError unless shapes and types are as documented."""
        _verify_frames(self.images)
        if len(self.labels) != len(self.images):
            raise TrainingError(f"{len(self.images)} frames have {len(self.labels)} labels")

    def __len__(self) -> int:
        """Number of labelled frames."""
        return len(self.labels)

    @classmethod
    def empty(cls, height: int, width: int) -> LabelledFrames:
        """No labels at all, of a given frame size: a validation split that has nothing in it yet."""
        return cls(np.zeros((0, height, width, 3), np.uint8), ())

    def subset(self, indices: Sequence[int]) -> LabelledFrames:
        """The frames at `indices`, in that order."""
        return LabelledFrames(self.images[list(indices)], tuple(self.labels[index] for index in indices))


@dataclass(frozen=True)
class LabelledImages:
    """Frames uint8 [N, H, W, 3] with one class index each, int64 [N]. N may be 0."""

    images: Images
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Raises TrainingError unless shapes and types are as documented."""
        _verify_frames(self.images)
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise TrainingError(f"labels are int64 [{len(self.images)}], not {self.labels.dtype} {self.labels.shape}")

    def __len__(self) -> int:
        """Number of labelled images."""
        return len(self.labels)

    @classmethod
    def empty(cls, height: int, width: int) -> LabelledImages:
        """No labels at all, of a given frame size: a validation split that has nothing in it yet."""
        return cls(np.zeros((0, height, width, 3), np.uint8), np.zeros(0, np.int64))

    @classmethod
    def from_frames(cls, frames: LabelledFrames, class_names: tuple[str, ...]) -> LabelledImages:
        """Labels `{"class": name}` as indices into `class_names`.

        Raises TrainingError for a label that names no such class.
        """
        names = [str(label.get("class")) for label in frames.labels]
        strange = sorted(set(names) - set(class_names))
        if strange:
            raise TrainingError(f"labels name {', '.join(strange)}, which is none of the {len(class_names)} classes")
        return cls(frames.images, np.array([class_names.index(name) for name in names], np.int64))


def _verify_frames(images: Images) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise TrainingError(f"images are uint8 [N, H, W, 3], not {images.dtype} {images.shape}")


def augment(images: Tensor, strength: Augmentation, generator: torch.Generator) -> Tensor:
    """A random variant of every frame. `images` float [N, 3, H, W] in 0..1; the same shape and range returns.

    One pass of batched tensor operations; all chance comes from `generator`.
    """
    moved = _move(images, strength, generator)
    lit = _relight(moved, strength, generator)
    return _degrade(lit, strength, generator).clamp_(0.0, 1.0)


def _uniform(count: int, limit: float, generator: torch.Generator) -> Tensor:
    """`count` draws from -limit..limit."""
    return (torch.rand(count, generator=generator) * 2.0 - 1.0) * limit


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _move(images: Tensor, strength: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift, zoom, turn and mirror as one affine map, so that pixels are resampled once."""
    count = len(images)
    angle = _uniform(count, strength.rotation_deg * torch.pi / 180.0, generator)
    zoom = 1.0 + _uniform(count, strength.scale, generator)
    mirrored = torch.rand(count, generator=generator) < strength.flip_probability
    mirror = torch.where(mirrored, -1.0, 1.0)
    # Normalised coordinates span 2 per side, hence twice the share.
    right = _uniform(count, 2.0 * strength.shift, generator)
    down = _uniform(count, 2.0 * strength.shift, generator)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    top = torch.stack([cosine * mirror, -sine, right], dim=1)
    bottom = torch.stack([sine * mirror, cosine, down], dim=1)
    grid = functional.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _relight(images: Tensor, strength: Augmentation, generator: torch.Generator) -> Tensor:
    count = len(images)
    gamma = _per_image(_uniform(count, strength.gamma, generator).exp())
    contrast = _per_image(1.0 + _uniform(count, strength.contrast, generator))
    gain = _per_image(1.0 + _uniform(count, strength.light, generator))
    curved = images.clamp(1e-4, 1.0).pow(gamma)
    mean = curved.mean(dim=(1, 2, 3), keepdim=True)
    return ((curved - mean) * contrast + mean) * gain


def _degrade(images: Tensor, strength: Augmentation, generator: torch.Generator) -> Tensor:
    """Soft lens, then an obstacle of mean grey, then sensor noise: the order in which light meets them."""
    count, _, height, width = images.shape
    softness = _per_image(torch.rand(count, generator=generator) * strength.blur)
    soft = torch.lerp(images, functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False), softness)
    visible = ~_hidden_square(count, height, width, strength.cutout, generator)
    covered = torch.where(visible, soft, soft.mean(dim=(1, 2, 3), keepdim=True))
    sigma = _per_image(torch.rand(count, generator=generator) * strength.noise)
    return covered + torch.randn(images.shape, generator=generator) * sigma


def _hidden_square(count: int, height: int, width: int, share: float, generator: torch.Generator) -> Tensor:
    """Mask [N, 1, H, W], true inside a square of random size up to `share` of each side, around a random centre."""
    half = torch.rand(count, generator=generator) * (share / 2.0)
    centre_y, centre_x = torch.rand(count, generator=generator), torch.rand(count, generator=generator)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    in_rows = (rows[None, :] - centre_y[:, None]).abs() < half[:, None]
    in_columns = (columns[None, :] - centre_x[:, None]).abs() < half[:, None]
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)
