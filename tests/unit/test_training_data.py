"""Labelled images, decoding and augmentation."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from curate.errors import TrainingError
from curate.training.data import Augmentation, LabelledImages, augment, decode_images

STILL = Augmentation(
    shift=0, scale=0, rotation_deg=0, flip_probability=0, light=0, contrast=0, gamma=0, noise=0, blur=0, cutout=0
)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    """Bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def frames(count: int = 5, height: int = 12, width: int = 10) -> torch.Tensor:
    """Smooth random frames [N, 3, H, W] in 0..1."""
    coarse = torch.rand((count, 3, 3, 3), generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def test_decoding_keeps_pixels_and_order() -> None:
    """A lossless file of the right size comes back pixel for pixel, in the order given."""
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    decoded = decode_images([(f"s{i}", encoded(image)) for i, image in enumerate(images)], 8, 6)
    assert np.array_equal(decoded, images)


def test_decoding_scales_and_colours() -> None:
    """A grey frame of another size becomes a colour frame of the asked size."""
    decoded = decode_images([("s", encoded(np.full((20, 30), 77, np.uint8), "JPEG"))], 8, 6)
    assert decoded.shape == (1, 8, 6, 3)
    assert np.abs(decoded.astype(int) - 77).max() <= 2


def test_decoding_nothing_gives_an_empty_stack() -> None:
    """No sample is no error: the empty array has the right shape."""
    assert decode_images([], 8, 6).shape == (0, 8, 6, 3)


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(np.zeros((40, 40, 3), np.uint8), "JPEG")[:200]])
def test_a_bad_image_names_its_sample(data: bytes) -> None:
    """Empty, foreign and truncated bytes raise TrainingError with the sample's id."""
    with pytest.raises(TrainingError, match="sample-17"):
        decode_images([("sample-17", data)], 8, 8)


def test_shapes_that_do_not_fit_are_refused() -> None:
    """Images and labels of different counts, or of the wrong type, never become a LabelledImages."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(TrainingError):
        LabelledImages(images, np.zeros(3, np.int64))
    with pytest.raises(TrainingError):
        LabelledImages(images.astype(np.float32), np.zeros(2, np.int64))  # type: ignore[arg-type]


def test_augmentation_of_strength_zero_changes_nothing() -> None:
    """With every part switched off, frames come back as they were (to float rounding)."""
    original = frames()
    assert torch.allclose(augment(original, STILL, torch.Generator().manual_seed(0)), original, atol=1e-3)


def test_augmentation_stays_in_range_and_varies() -> None:
    """Variants keep shape and range, differ from each other, and repeat for the same generator state."""
    original = frames()
    generator = torch.Generator().manual_seed(1)
    first, second = augment(original, Augmentation(), generator), augment(original, Augmentation(), generator)
    again = augment(original, Augmentation(), torch.Generator().manual_seed(1))
    assert first.shape == original.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_flip_mirrors_left_and_right_only() -> None:
    """A certain flip with all else off is the exact mirror image."""
    original = frames(height=8, width=8)
    flipped = augment(original, STILL.model_copy(update={"flip_probability": 1.0}), torch.Generator().manual_seed(0))
    assert torch.allclose(flipped, original.flip(3), atol=1e-3)


@pytest.mark.parametrize(
    "part", ["shift", "scale", "rotation_deg", "light", "contrast", "gamma", "noise", "blur", "cutout"]
)
def test_every_part_has_an_effect(part: str) -> None:
    """Each strength on its own changes the frames, so none is dead configuration."""
    strength = STILL.model_copy(update={part: getattr(Augmentation(), part) or 0.3})
    original = frames()
    changed = augment(original, strength, torch.Generator().manual_seed(0))
    assert (changed - original).abs().max() > 0.005
