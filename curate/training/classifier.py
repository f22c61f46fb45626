"""A trained classifier as a value: what it predicts, what it shows to export, how it is kept on disk."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from curate.errors import TrainingError
from curate.training.architectures import ConvNet, ServingModule
from curate.training.data import Images
from curate.training.recipe import NetworkShape

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
class TrainedClassifier:
    """A network in evaluation mode with its metadata. Treat both as immutable.

    Its `kind`, `class_names`, `frame_shape`, `output_names` and `serving_module` are all that export asks of a
    model, so another kind of model joins by offering the same five.
    """

    kind: ClassVar[str] = "classification"
    output_names: ClassVar[tuple[str, ...]] = ("probabilities", "embedding")

    network: ConvNet
    metadata: ClassifierMetadata

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the probabilities."""
        return self.metadata.class_names

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one input frame."""
        return (self.metadata.height, self.metadata.width, 3)

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
            dimensions = self.metadata.network.embedding_dim
            return np.zeros((0, len(self.class_names)), np.float32), np.zeros((0, dimensions), np.float32)
        probabilities, embeddings = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
        return probabilities, embeddings


def persist_classifier(model: TrainedClassifier, path: Path) -> None:
    """Write the classifier as one safetensors file, atomically: a crash leaves the old file or the new one."""
    weights = {name: value.detach().contiguous().cpu() for name, value in model.network.state_dict().items()}
    payload = save(weights, metadata={_HEADER_KEY: model.metadata.model_dump_json()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_beside(path) as temporary:
        with temporary.open("wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)


def load_classifier(path: Path) -> TrainedClassifier:
    """Read what `persist_classifier` wrote. Nothing in the file is executed.

    Raises TrainingError when the file is missing, damaged, or holds another kind of model.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            header = (stored.metadata() or {}).get(_HEADER_KEY)
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
        if header is None:
            raise TrainingError(f"{path.name} holds weights, but not of a Gleaner classifier")
        metadata = ClassifierMetadata.model_validate(json.loads(header))
        network = ConvNet(metadata.network, len(metadata.class_names))
        network.load_state_dict(weights)
    except (OSError, SafetensorError, ValidationError, ValueError, RuntimeError) as exc:
        raise TrainingError(f"{path.name} is not a readable classifier: {exc}") from exc
    return TrainedClassifier(network.eval(), metadata)


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
