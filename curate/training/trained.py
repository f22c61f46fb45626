"""What every trained model tells of itself from its metadata, whatever its kind."""

from __future__ import annotations

from typing import Protocol


class Shape(Protocol):
    """A network's size, as far as it matters outside."""

    @property
    def embedding_dim(self) -> int:
        """Length of a frame's embedding."""


class Metadata(Protocol):
    """All about a model but its weights, as far as every kind has it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in output order."""

    @property
    def height(self) -> int:
        """Of a frame, in pixels."""

    @property
    def width(self) -> int:
        """Of a frame, in pixels."""

    @property
    def network(self) -> Shape:
        """The network's size."""

    @property
    def validation(self) -> dict[str, float]:
        """Figures of the validation split by name."""


class Described:
    """The part of a `TrainedModel` (curate/training/tasks.py) that follows from its metadata."""

    metadata: Metadata

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the probabilities."""
        return self.metadata.class_names

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one input frame."""
        return (self.metadata.height, self.metadata.width, 3)

    @property
    def embedding_dim(self) -> int:
        """Length of a frame's embedding."""
        return self.metadata.network.embedding_dim

    @property
    def validation(self) -> dict[str, float]:
        """What it scored on its validation split; empty if that had no labels."""
        return self.metadata.validation
