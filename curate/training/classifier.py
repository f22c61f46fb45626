"""A trained classifier as a value: what it predicts, what it shows to export, how it is kept on disk."""

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
from curate.training.architectures import ConvNet, ServingModule
from curate.training.data import Images
from curate.training.recipe import NetworkShape
from curate.training.trained import Described
from curate.training.weights import persist_weights, read_weights

_HEADER_KEY = "gleaner.classifier"


class ClassifierMetadata(BaseModel):
    """All about a classifier but its weights; travels as JSON in the safetensors header."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    class_names: tuple[str, ...] = Field(min_length=2)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    network: NetworkShape
    temperature: float = Field(default=1.0, gt=0)
    seed: int = 0
    label_count: int = Field(default=0, ge=0)
    validation: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class TrainedClassifier(Described):
    """A network in evaluation mode with its metadata. Treat both as immutable.

    It is a `TrainedModel` (curate/training/tasks.py): another kind of model joins by offering the same.
    """

    kind: ClassVar[str] = "classification"
    output_names: ClassVar[tuple[str, ...]] = ("probabilities", "embedding")

    network: ConvNet
    metadata: ClassifierMetadata

    def persist(self, path: Path) -> None:
        """Write it for `load_classifier`."""
        persist_classifier(self, path)

    def serving_module(self) -> nn.Module:
        """Module from raw uint8 frames [N, H, W, 3] to `output_names`."""
        return ServingModule(self.network, self.metadata.temperature).eval()

    def predict(self, images: Images, *, batch_size: int = 256) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities [N, K] and embeddings [N, D] of uint8 frames [N, H, W, 3]; N may be 0."""
        module = self.serving_module()
        with torch.inference_mode():
            batches = (
                [module(batch) for batch in torch.split(torch.from_numpy(images), batch_size)] if len(images) else []
            )
        if not batches:
            return np.zeros((0, len(self.class_names)), np.float32), np.zeros((0, self.embedding_dim), np.float32)
        probabilities, embeddings = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
        return probabilities, embeddings


def persist_classifier(model: TrainedClassifier, path: Path) -> None:
    """Write the classifier as one safetensors file, atomically: a crash leaves the old file or the new one."""
    persist_weights(model.network, path, key=_HEADER_KEY, metadata_json=model.metadata.model_dump_json())


def load_classifier(path: Path) -> TrainedClassifier:
    """Read what `persist_classifier` wrote. Nothing in the file is executed.

    Raises TrainingError when the file is missing, damaged, or holds another kind of model.
    """
    header, weights = read_weights(path, key=_HEADER_KEY, what="classifier")
    try:
        metadata = ClassifierMetadata.model_validate_json(header)
        network = ConvNet(metadata.network, len(metadata.class_names))
        network.load_state_dict(weights)
    except (ValueError, RuntimeError) as exc:
        raise TrainingError(f"{path.name} is not a readable classifier: {exc}") from exc
    return TrainedClassifier(network.eval(), metadata)
