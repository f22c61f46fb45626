"""Labelled images and augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curate.errors import TrainingError
from curate.training.data import LabelledImages, augment
from curate.training.recipe import Augmentation

STILL = Augmentation(
    shift=0, scale=0, rotation_deg=0, flip_probability=0, light=0, contrast=0, gamma=0, noise=0, blur=0, cutout=0
)


def frames(count: int = 5, height: int = 12, width: int = 10) -> torch.Tensor:
    """Smooth random frames [N, 3, H, W] in 0..1."""
    coarse = torch.rand((count, 3, 3, 3), generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


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
