"""The model to measure with: a release in the agent's slots, or any file that takes and gives what a release does."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from curate.contracts.release import Artifact, ModelSpec, ReleaseManifest
from curate.errors import ConfigError, SelfCheckError
from edge_agent.bench.bare import open_session
from edge_agent.cameras.base import Pixels
from edge_agent.memory import return_free_memory
from edge_agent.models.inference import LoadedModel, load_model
from edge_agent.models.slots import Slots

# ONNX Runtime's native errors have no base of their own short of Exception.
_UNUSABLE: Final[tuple[type[Exception], ...]] = (
    SelfCheckError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
_OPEN_SIZE: Final = 224
"""Edge of the pictures for a model that takes any size."""


def find_slot_model(state_dir: Path) -> tuple[Path, LoadedModel]:
    """Return the committed release of a device.

    Raises:
        ConfigError: there is none.
    """
    slots = Slots(state_dir / "slots")
    name = slots.committed()
    if name is None:
        raise ConfigError(f"no model is installed under {state_dir}", hint="Pass --model FILE to measure with another.")
    content = slots.load(name)
    return content.model, load_model(content.model, content.manifest)


def load_file(path: Path) -> LoadedModel:
    """Load a model file that carries no manifest; what it takes and gives is read from the file.

    Raises:
        ConfigError: it is not a model that the agent could run.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        spec = _read_spec(open_session(path))
        return_free_memory()  # a device opens one session, and its memory is measured
        artifact = Artifact(target=path.name, sha256=digest, size_bytes=path.stat().st_size)
        manifest = ReleaseManifest(
            release_id="bench",
            number=1,
            created_at=datetime.now(UTC),
            model=spec,
            variants={"int8": artifact},
            golden=artifact,
        )
        return load_model(path, manifest)
    except OSError as exc:
        raise ConfigError(f"cannot read the model {path}: {exc.strerror}") from exc
    except _UNUSABLE as exc:
        raise ConfigError(f"{path} is no model that the agent could run: {exc}") from exc


def make_pictures(height: int, width: int, count: int, seed: int = 0) -> list[Pixels]:
    """Return RGB pictures uint8 [height, width, 3] that differ: soft gradients with some grain, as JPEG likes them."""
    rng = np.random.default_rng(seed)
    ramp_y, ramp_x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    pictures = []
    for _ in range(count):
        a, b, c = rng.uniform(-1, 1, (3, 3))
        picture = 128 + 60 * (ramp_y[..., None] * a + ramp_x[..., None] * b + c) + rng.normal(0, 4, (*ramp_x.shape, 3))
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
    return pictures


def _read_spec(session: ort.InferenceSession) -> ModelSpec:
    (given,) = session.get_inputs()
    outputs = {item.name: item.shape for item in session.get_outputs()}
    height, width = (n if isinstance(n, int) else _OPEN_SIZE for n in given.shape[1:3])
    kind = "detection" if "boxes" in outputs else "classification"
    classes = int(outputs["probabilities"][-1])
    return ModelSpec.model_validate(
        {
            "kind": kind,
            "class_names": [f"class-{number}" for number in range(classes)],
            "height": height,
            "width": width,
            "embedding_dim": int(outputs["embedding"][-1]),
        }
    )
