"""The bucket's layout: the one place that knows which key holds what, and who writes it."""

from __future__ import annotations

import re

from curate.contracts.ids import BootId, DeviceId

INBOX = "inbox/"
CAPTURES = "captures/"
QUARANTINE = "quarantine/"
TUF_METADATA = "tuf/metadata/"
TUF_TARGETS = "tuf/targets/"

_INBOX_KEY = re.compile(r"^inbox/(?P<device>[A-Za-z0-9_-]+)/(?P<boot>[A-Za-z0-9_-]+)-(?P<sequence>\d+)\.json$")


def capture_key(device_id: DeviceId | str, sha256: str) -> str:
    """Key of one immutable image; written by that device."""
    return f"{CAPTURES}{device_id}/{sha256}.jpg"


def inbox_key(device_id: DeviceId | str, boot_id: BootId | str, sequence: int) -> str:
    """Key of one batch's commit record; written last by that device, removed by ingest."""
    return f"{INBOX}{device_id}/{boot_id}-{sequence:08d}.json"


def parse_inbox_key(key: str) -> tuple[DeviceId, BootId, int] | None:
    """Return (device, boot, sequence) of an inbox key, or None when it has another shape."""
    match = _INBOX_KEY.match(key)
    if match is None:
        return None
    return DeviceId(match["device"]), BootId(match["boot"]), int(match["sequence"])


def quarantine_key(inbox: str) -> str:
    """Where ingest puts a batch record it could not take."""
    return QUARANTINE + inbox


def reported_key(device_id: DeviceId | str) -> str:
    """Heartbeat; written by that device."""
    return f"twin/{device_id}/reported.json"


def desired_key(device_id: DeviceId | str) -> str:
    """Signed assignment; written by the cloud."""
    return f"twin/{device_id}/desired.json"


def ack_key(device_id: DeviceId | str) -> str:
    """Acknowledgement; written by the cloud."""
    return f"twin/{device_id}/ack.json"
