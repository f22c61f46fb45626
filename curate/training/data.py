"""Labelled images and their augmentation."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional

from curate.errors import TrainingError

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class LabelledImages:
    """Frames uint8 [N, H, W, 3] with one class index each, int64 [N]. N may be 0."""

    images: Images
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Raises TrainingError unless shapes and types are as documented."""
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise TrainingError(f"images are uint8 [N, H, W, 3], not {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise TrainingError(f"labels are int64 [{len(self.images)}], not {self.labels.dtype} {self.labels.shape}")

    def __len__(self) -> int:
        """Number of labelled images."""
        return len(self.labels)

    @classmethod
    def empty(cls, height: int, width: int) -> LabelledImages:
        """No labels at all, of a given frame size: a validation split that has nothing in it yet."""
        return cls(np.zeros((0, height, width, 3), np.uint8), np.zeros(0, np.int64))


class Augmentation(BaseModel):
    """How far a training frame may wander from the captured one. Zero switches a part off.

    The ranges are those of fixed cameras: small displacement, changing light, noise, a soft lens, things in the way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: float = Field(default=0.1, ge=0, le=0.5, description="displacement, share of the side")
    scale: float = Field(default=0.1, ge=0, le=0.5, description="zoom in or out, share")
    rotation_deg: float = Field(default=8.0, ge=0, le=45)
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    light: float = Field(default=0.35, ge=0, le=0.9, description="gain: 1 ± light")
    contrast: float = Field(default=0.3, ge=0, le=0.9)
    gamma: float = Field(default=0.3, ge=0, le=2, description="exponent: exp(± gamma)")
    noise: float = Field(default=0.06, ge=0, le=0.5, description="largest standard deviation, share of full scale")
    blur: float = Field(default=0.6, ge=0, le=1, description="largest weight of the blurred copy")
    cutout: float = Field(default=0.3, ge=0, le=0.8, description="side of the hidden square, share of the side")


def decode_images(encoded: Iterable[tuple[str, bytes]], height: int, width: int) -> Images:
    """Decode `(sample_id, JPEG or PNG bytes)` pairs to uint8 [N, height, width, 3], scaled where the size differs.

    Raises TrainingError, naming the sample, when bytes are no readable image.
    """
    frames = [_decode_image(sample_id, data, height, width) for sample_id, data in encoded]
    return np.stack(frames) if frames else np.zeros((0, height, width, 3), np.uint8)


def augment(images: Tensor, strength: Augmentation, generator: torch.Generator) -> Tensor:
    """A random variant of every frame. `images` float [N, 3, H, W] in 0..1; the same shape and range returns.

    One pass of batched tensor operations; all chance comes from `generator`.
    """
    moved = _move(images, strength, generator)
    lit = _relight(moved, strength, generator)
    return _degrade(lit, strength, generator).clamp_(0.0, 1.0)


def _decode_image(sample_id: str, data: bytes, height: int, width: int) -> Images:
    try:
        with Image.open(io.BytesIO(data)) as image:
            rgb = image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as exc:
        raise TrainingError(
            f"sample {sample_id} is not a readable image: {exc}",
            hint="quarantine the sample, or ingest it again from the bucket",
        ) from exc
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(rgb, dtype=np.uint8)


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
