"""Trained weights on disk: one safetensors file, written atomically, nothing in it executed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from curate.errors import TrainingError


def persist_weights(network: nn.Module, path: Path, *, key: str, metadata_json: str) -> None:
    """Write weights and, under `key` in the header, metadata: a crash leaves the old file or the new one."""
    weights = {name: value.detach().contiguous().cpu() for name, value in network.state_dict().items()}
    payload = save(weights, metadata={key: metadata_json})
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_beside(path) as temporary:
        with temporary.open("wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)


def read_weights(path: Path, *, key: str, what: str) -> tuple[str, dict[str, Tensor]]:
    """Return the metadata under `key` and the weights that `persist_weights` wrote.

    Raises TrainingError when the file is missing, damaged, or has no such key; `what` names the kind of model.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            header = (stored.metadata() or {}).get(key)
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as exc:
        raise TrainingError(f"{path.name} is not a readable {what}: {exc}") from exc
    if header is None:
        raise TrainingError(f"{path.name} holds weights, but not of a Gleaner {what}")
    return header, weights


@contextlib.contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
