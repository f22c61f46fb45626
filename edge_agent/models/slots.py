"""Two slots for releases, A and B, and a pointer to the committed one: `slots/{a,b}/` and `slots/committed`.

A slot counts only with its seal, written last; the seal carries the manifest, the manifest the digests of the
other files, and all of them are checked again at every load. The pointer moves in one rename. Beside the two there
may be a factory model in a folder that nobody writes to.
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
from edge_agent.durable import make_folder, persist_bytes, remove_files, seal, sync_folder, unseal
from edge_agent.errors import CorruptFileError
from edge_agent.models.update_machine import SlotName

Variant = Literal["int8", "float"]
FACTORY: Final = "factory"
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

    name: SlotName | Literal["factory"]
    manifest: ReleaseManifest
    variant: Variant
    model: Path
    golden: Path


class Slots:
    """The slots under one folder. Not thread-safe: the update loop owns them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def committed(self) -> SlotName | None:
        """Return the slot to start from, or None when nothing was ever committed or the pointer is damaged.

        Raises:
            AgentError: the disk refused to say.
        """
        try:
            header, _ = unseal(self._pointer().read_bytes())
            return _Pointer.model_validate_json(header).slot
        except (FileNotFoundError, CorruptFileError, ValidationError):
            return None
        except OSError as exc:
            raise AgentError(f"the committed slot cannot be told now: {exc}", retryable=True) from exc

    def idle(self) -> SlotName:
        """Return the slot that may be overwritten.

        Raises:
            AgentError: the disk refused to say which one may not.
        """
        return "b" if self.committed() == "a" else "a"

    def open(self, name: SlotName) -> None:
        """Break the slot's seal; files already there may still be of use.

        Raises:
            AgentError: the disk refused, or this is the slot to start from.
        """
        if name == self.committed():
            raise AgentError(f"slot {name} is the one to start from and is not overwritten")
        try:
            make_folder(self.folder(name))
            remove_files([self._seal(name), self.proof_path(name)])
            sync_folder(self._root)
        except OSError as exc:
            raise _refused(name, exc) from exc

    def folder(self, name: SlotName | Literal["factory"]) -> Path:
        """Where the slot's files lie."""
        return self._root / name

    def model_path(self, name: SlotName) -> Path:
        """Where the slot's model lies."""
        return self.folder(name) / "model.onnx"

    def golden_path(self, name: SlotName) -> Path:
        """Where the slot's golden inputs and answers lie."""
        return self.folder(name) / "golden.npz"

    def proof_path(self, name: SlotName | Literal["factory"]) -> Path:
        """Where lies what the model has shown on this device; the factory folder itself is never written to."""
        return self.folder(name) / "proof"

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
            AgentError: the disk refused to say; the slot may be as good as ever.
        """
        try:
            header, payload = unseal(self._seal(name).read_bytes())
            variant = _Seal.model_validate_json(header).variant
            manifest = ReleaseManifest.from_bytes(payload)
            verify_files(self.model_path(name), self.golden_path(name), manifest, variant)
        except FileNotFoundError as exc:
            raise CorruptFileError(f"slot {name} is empty or half-written") from exc
        except OSError as exc:
            raise AgentError(f"slot {name} cannot be read now: {exc}", retryable=True) from exc
        except (ContractError, ValidationError, KeyError) as exc:
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
            remove_files([path for path in self.folder(name).glob("*") if path.is_file()])
        except OSError as exc:
            raise _refused(name, exc) from exc

    def _pointer(self) -> Path:
        return self._root / "committed"

    def _seal(self, name: SlotName) -> Path:
        return self.folder(name) / "seal"


def verify_files(model: Path, golden: Path, manifest: ReleaseManifest, variant: Variant) -> None:
    """Accept a release's files on the disk.

    Raises:
        CorruptFileError: one is not what the manifest says.
        KeyError: the manifest has no such variant.
        OSError: one cannot be read.
    """
    _verify_file(model, manifest.variants[variant])
    _verify_file(golden, manifest.golden)


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


class FactoryModel:
    """The release the device was made with: `manifest.json`, `model.onnx` and `golden.npz` in one folder.

    It is what answers when neither slot can. Its manifest is trusted as the device's root of trust is: whoever set
    the device up put both there, and may pin its digest in the configuration.
    """

    def __init__(self, folder: Path | None, *, manifest_sha256: str | None, variant: Variant) -> None:
        """`folder` is None where there is no such model."""
        self._folder = folder
        self._manifest_sha256 = manifest_sha256
        self._variant: Variant = variant

    def load(self) -> SlotContent | None:
        """Read it, every digest verified; None where there is none. The variant falls back to one that is there.

        Raises:
            CorruptFileError: something is not what the manifest, or the configuration, says.
            AgentError: the disk refused to say.
        """
        if self._folder is None:
            return None
        model, golden = self._folder / "model.onnx", self._folder / "golden.npz"
        try:
            raw = (self._folder / "manifest.json").read_bytes()
            self._verify_manifest(raw)
            manifest = ReleaseManifest.from_bytes(raw)
            variant = self._variant if self._variant in manifest.variants else next(iter(manifest.variants))
            verify_files(model, golden, manifest, variant)
        except (FileNotFoundError, ContractError) as exc:
            raise CorruptFileError(f"the factory model cannot be read: {exc}") from exc
        except OSError as exc:
            raise AgentError(f"the factory model cannot be read now: {exc}", retryable=True) from exc
        return SlotContent(FACTORY, manifest, variant, model, golden)

    def _verify_manifest(self, raw: bytes) -> None:
        if self._manifest_sha256 not in (None, hashlib.sha256(raw).hexdigest()):
            raise CorruptFileError(
                "the factory model's manifest is not the one that models.factory_manifest_sha256 names"
            )
