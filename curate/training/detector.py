"""A trained detector as a value: what it predicts, what it shows to export, how it is kept on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from curate.errors import TrainingError
from curate.training.data import Images
from curate.training.detector_network import DetectorNetwork, Projections, ServingDetector
from curate.training.detector_recipe import DetectorShape
from curate.training.trained import Described
from curate.training.weights import persist_weights, read_weights

_HEADER_KEY = "gleaner.detector"


class DetectorMetadata(BaseModel):
    """All about a detector but its weights; travels as JSON in the safetensors header."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    class_names: tuple[str, ...] = Field(min_length=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    network: DetectorShape
    calibration_slope: float = Field(default=1.0, gt=0)
    calibration_offset: float = 0.0
    seed: int = 0
    label_count: int = Field(default=0, ge=0)
    validation: dict[str, float] = Field(default_factory=dict)


class Learned(nn.Module):
    """All that has weights: the network and the projections to embeddings."""

    def __init__(self, shape: DetectorShape, class_count: int) -> None:
        super().__init__()
        self.network = DetectorNetwork(shape, class_count)
        self.projections = Projections(self.network, shape)


@dataclass(frozen=True)
class Detections:
    """Raw candidates of N frames: boxes [N, C, 4], probabilities [N, C, K], embeddings [N, C, E] and [N, D]."""

    boxes: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    box_embeddings: NDArray[np.float32]
    embedding: NDArray[np.float32]


@dataclass(frozen=True)
class TrainedDetector(Described):
    """A network in evaluation mode with its metadata. Treat both as immutable.

    It is a `TrainedModel` (curate/training/tasks.py).
    """

    kind: ClassVar[str] = "detection"
    output_names: ClassVar[tuple[str, ...]] = ("boxes", "probabilities", "box_embeddings", "embedding")

    learned: Learned
    metadata: DetectorMetadata

    def persist(self, path: Path) -> None:
        """Write it as one safetensors file, atomically: a crash leaves the old file or the new one."""
        persist_weights(self.learned, path, key=_HEADER_KEY, metadata_json=self.metadata.model_dump_json())

    def serving_module(self) -> nn.Module:
        """Module from raw uint8 frames [N, H, W, 3] to `output_names`."""
        return ServingDetector(
            self.learned.network,
            self.learned.projections,
            self.metadata.network.candidates,
            (self.metadata.calibration_slope, self.metadata.calibration_offset),
        ).eval()

    def predict(self, images: Images, *, batch_size: int = 8) -> Detections:
        """Raw candidates of uint8 frames [N, H, W, 3]; N may be 0."""
        module = self.serving_module()
        with torch.inference_mode():
            # A frame of nothing in front tells the shapes even where there are no frames.
            batches = [module(torch.zeros((1, *self.frame_shape), dtype=torch.uint8))]
            batches += [module(part) for part in torch.split(torch.from_numpy(images), batch_size) if len(part)]
        return Detections(*(torch.cat(parts)[1:].numpy() for parts in zip(*batches, strict=True)))


def load_detector(path: Path) -> TrainedDetector:
    """Read what `TrainedDetector.persist` wrote. Nothing in the file is executed.

    Raises TrainingError when the file is missing, damaged, or holds another kind of model.
    """
    header, weights = read_weights(path, key=_HEADER_KEY, what="detector")
    try:
        metadata = DetectorMetadata.model_validate_json(header)
        learned = Learned(metadata.network, len(metadata.class_names))
        learned.load_state_dict(weights)
    except (ValueError, RuntimeError) as exc:
        raise TrainingError(f"{path.name} is not a readable detector: {exc}") from exc
    return TrainedDetector(learned.eval(), metadata)
