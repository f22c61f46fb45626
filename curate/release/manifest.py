"""What a release says about itself, built from its files (pure)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from curate.contracts.ids import SafeName
from curate.contracts.release import Artifact, ModelSpec, ReleaseManifest
from curate.contracts.signing import golden_target, model_target
from curate.errors import ReleaseError

GOLDEN = "golden"
VARIANTS = ("int8", "float")


class ReleaseDraft(BaseModel):
    """A release before it has a number and digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    release_id: SafeName
    model: ModelSpec
    dataset_version: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


def name_targets(release_id: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the release's files under their names in the repository.

    Args:
        release_id: the release.
        files: `golden`, `int8` and, if the release has one, `float`, each with its bytes.

    Raises:
        ReleaseError: a file is missing, unknown or empty.
    """
    missing = {GOLDEN, "int8"} - files.keys()
    unknown = files.keys() - {GOLDEN, *VARIANTS}
    empty = {name for name, data in files.items() if not data}
    if missing or unknown or empty:
        raise ReleaseError(
            f"release {release_id}: files missing {sorted(missing)}, unknown {sorted(unknown)}, empty {sorted(empty)}"
        )
    return {
        golden_target(release_id) if name == GOLDEN else model_target(release_id, name): data
        for name, data in files.items()
    }


def build_manifest(
    draft: ReleaseDraft, files: Mapping[str, bytes], *, number: int, created_at: datetime
) -> ReleaseManifest:
    """Describe the release's files with their digests and sizes.

    Raises:
        ReleaseError: a file is missing, unknown or empty.
    """
    artifacts = {target: _describe(target, data) for target, data in name_targets(draft.release_id, files).items()}
    return ReleaseManifest(
        release_id=draft.release_id,
        number=number,
        created_at=created_at,
        model=draft.model,
        variants={
            name: artifacts[model_target(draft.release_id, name)]
            for name in ("int8", "float")
            if model_target(draft.release_id, name) in artifacts
        },
        golden=artifacts[golden_target(draft.release_id)],
        dataset_version=draft.dataset_version,
        metrics=draft.metrics,
    )


def _describe(target: str, data: bytes) -> Artifact:
    return Artifact(target=target, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
