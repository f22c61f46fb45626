"""Identifiers that cross the wire. All are safe inside an object key: no separators, no dots that climb."""

from __future__ import annotations

from typing import Annotated, NewType

from pydantic import StringConstraints

DeviceId = NewType("DeviceId", str)
CameraId = NewType("CameraId", str)
BootId = NewType("BootId", str)
CaptureId = NewType("CaptureId", str)
PredictionId = NewType("PredictionId", str)
FeedbackId = NewType("FeedbackId", str)
ReleaseId = NewType("ReleaseId", str)

SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$"
"""Names that may become one component of an object key or a file name."""

SafeName = Annotated[str, StringConstraints(pattern=SAFE_NAME)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def batch_id(device_id: DeviceId, boot_id: BootId, sequence: int) -> str:
    """Return the fleet-wide name of a batch, stable across retries."""
    return f"{device_id}/{boot_id}-{sequence:08d}"
