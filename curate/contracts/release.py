"""What a signed release is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curate.contracts.document import Document, UtcDatetime
from curate.contracts.ids import SafeName, Sha256


class Artifact(Document):
    """One signed file of a release; `target` is its name in the TUF repository."""

    target: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,200}$")
    sha256: Sha256
    size_bytes: int = Field(ge=1)


class ModelSpec(Document):
    """What a runtime must know to feed the model and read its answers."""

    kind: Literal["classification", "detection"]
    class_names: list[str] = Field(min_length=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: int = Field(default=3, ge=1)
    embedding_dim: int = Field(ge=1)
    score_threshold: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Detection: boxes are shown from this score on; None leaves it to the reader."""


class ReleaseManifest(Document):
    """The target `<release_id>.manifest.json`: names every other file of the release.

    `number` grows by one with each release; devices refuse a lower one than they have accepted
    unless their assignment allows the downgrade.
    """

    schema_version: Literal[1] = 1
    release_id: SafeName
    number: int = Field(ge=1)
    created_at: UtcDatetime
    model: ModelSpec
    variants: dict[Literal["int8", "float"], Artifact] = Field(min_length=1)
    golden: Artifact
    dataset_version: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Signature(Document):
    """A signature by the key with that id."""

    keyid: str
    sig: str


class Envelope(Document):
    """A DSSE envelope: the signature covers the payload's type and raw bytes, checked before parsing."""

    payload_type: str
    payload: str
    """The payload's bytes in base64."""
    signatures: list[Signature] = Field(min_length=1)
