"""The local S3 server's identities: the product's bucket policies, one identity for each role and device."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from curate.storage.access import admin_policy, device_policy, label_studio_policy

ADMIN = "admin"
LABEL_STUDIO = "label-studio"


def device_identity(device_id: str) -> str:
    """Return the name of a device's identity at the S3 server."""
    return f"device-{device_id}"


def s3_config(bucket: str, devices: Iterable[str], keys: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return SeaweedFS's identity file: one identity with one policy each.

    `keys` maps an identity to its `access_key` and `secret_key`; KeyError when one has none.
    """
    policies = {ADMIN: admin_policy(bucket), LABEL_STUDIO: label_studio_policy(bucket)}
    policies.update({device_identity(device): device_policy(bucket, device) for device in devices})
    return {
        "identities": [_identity(name, keys[name]) for name in policies],
        "policies": [{"name": name, "content": json.dumps(policy)} for name, policy in policies.items()],
    }


def _identity(name: str, key: Mapping[str, str]) -> dict[str, Any]:
    credentials = {"accessKey": key["access_key"], "secretKey": key["secret_key"]}
    return {"name": name, "credentials": [credentials], "actions": [], "policyNames": [name]}
