"""Two slots for releases, A and B, and a pointer to the committed one: `slots/{a,b}/` and `slots/committed`.

A slot counts only with its seal, written last; the seal carries the manifest, the manifest the digests of the
other files, and all of them are checked again at every load. The pointer moves in one rename.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from curate.contracts.release import Artifact, ReleaseManifest
from curate.errors import AgentError, ContractError
from edge_agent.durable import persist_bytes, remove_files, seal, sync_folder, unseal
from edge_agent.errors import CorruptFileError

SlotName = Literal["a", "b"]
Variant = Literal["int8", "float"]
SLOT_NAMES: Final[tuple[SlotName, SlotName]] = ("a", "b")


class _Pointer(BaseModel):
    model_config = ConfigDict(frozen=True)
    slot: SlotName


class _Seal(BaseModel):
    model_config = ConfigDict(frozen=True)
    variant: Variant


@dataclass(frozen=True)
class SlotContent:
    """One release on the disk."""

    name: SlotName
    manifest: ReleaseManifest
    variant: Variant
    model: Path
    golden: Path


class Slots:
    """The slots under one folder. Not thread-safe: the update loop owns them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def committed(self) -> SlotName | None:
        """Return the slot to start from, or None when nothing was ever committed or the pointer is unreadable."""
        try:
            header, _ = unseal(self._pointer().read_bytes())
            return _Pointer.model_validate_json(header).slot
        except (OSError, CorruptFileError, ValidationError):
            return None

    def idle(self) -> SlotName:
        """Return the slot that may be overwritten."""
        return "b" if self.committed() == "a" else "a"

    def open_idle(self) -> SlotName:
        """Break the idle slot's seal and return the slot; files already there may still be of use.

        Raises:
            AgentError: the disk refused.
        """
        name = self.idle()
        try:
            self.folder(name).mkdir(parents=True, exist_ok=True)
            remove_files([self._seal(name)])
            sync_folder(self._root)
        except OSError as exc:
            raise _refused(name, exc) from exc
        return name

    def folder(self, name: SlotName) -> Path:
        """Where the slot's files lie."""
        return self._root / name

    def model_path(self, name: SlotName) -> Path:
        """Where the slot's model lies."""
        return self.folder(name) / "model.onnx"

    def golden_path(self, name: SlotName) -> Path:
        """Where the slot's golden inputs and answers lie."""
        return self.folder(name) / "golden.npz"

    def close(self, name: SlotName, manifest: ReleaseManifest, variant: Variant) -> SlotContent:
        """Sync the slot's files, seal it and load it back.

        Raises:
            AgentError: the disk refused, or a file is not what the manifest says.
        """
        try:
            for path in (self.model_path(name), self.golden_path(name)):
                _sync_file(path)
            header = _Seal(variant=variant).model_dump_json().encode()
            persist_bytes(self._seal(name), seal(header, manifest.to_bytes()))
        except OSError as exc:
            raise _refused(name, exc) from exc
        return self.load(name)

    def load(self, name: SlotName) -> SlotContent:
        """Read a slot, every digest verified.

        Raises:
            CorruptFileError: there is no seal, or something is not what was sealed.
        """
        try:
            header, payload = unseal(self._seal(name).read_bytes())
            variant = _Seal.model_validate_json(header).variant
            manifest = ReleaseManifest.from_bytes(payload)
            model = manifest.variants[variant]
            _verify_file(self.model_path(name), model)
            _verify_file(self.golden_path(name), manifest.golden)
        except FileNotFoundError as exc:
            raise CorruptFileError(f"slot {name} is empty or half-written") from exc
        except (OSError, ContractError, ValidationError, KeyError) as exc:
            raise CorruptFileError(f"slot {name} cannot be read: {exc}") from exc
        return SlotContent(name, manifest, variant, self.model_path(name), self.golden_path(name))

    def commit(self, name: SlotName) -> None:
        """Make this slot the one to start from.

        Raises:
            AgentError: the disk refused.
        """
        try:
            persist_bytes(self._pointer(), seal(_Pointer(slot=name).model_dump_json().encode()))
        except OSError as exc:
            raise _refused(name, exc) from exc

    def discard(self, name: SlotName) -> None:
        """Empty a slot.

        Raises:
            AgentError: the disk refused.
        """
        try:
            remove_files([self._seal(name)])
            remove_files([self.model_path(name), self.golden_path(name)])
        except OSError as exc:
            raise _refused(name, exc) from exc

    def _pointer(self) -> Path:
        return self._root / "committed"

    def _seal(self, name: SlotName) -> Path:
        return self.folder(name) / "seal"


def _verify_file(path: Path, artifact: Artifact) -> None:
    if path.stat().st_size != artifact.size_bytes:
        raise CorruptFileError(f"{path.name} has another size than {artifact.target}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != artifact.sha256:
        raise CorruptFileError(f"{path.name} has another digest than {artifact.target}")


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _refused(name: SlotName, exc: OSError) -> AgentError:
    return AgentError(f"slot {name}: the disk refused: {exc}", retryable=True)
