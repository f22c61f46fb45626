"""Who may do what in the bucket, as AWS policy documents: the same text serves on any S3 that knows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from curate.contracts.paths import CAPTURES, INBOX, reported_key

ADMIN = "admin"
LABEL_STUDIO = "label-studio"

Statement = dict[str, Any]


def device_identity(device_id: str) -> str:
    """Return the name of a device's identity at the S3 server."""
    return f"device-{device_id}"


def device_policy(bucket: str, device_id: str) -> dict[str, Any]:
    """A camera adds its captures, records and heartbeat, and reads releases and its own twin: no list, no delete."""
    writes = (f"{CAPTURES}{device_id}/*", f"{INBOX}{device_id}/*", reported_key(device_id))
    reads = ("tuf/*", f"twin/{device_id}/*")
    return _policy(_allow("s3:PutObject", bucket, writes), _allow("s3:GetObject", bucket, reads))


def label_studio_policy(bucket: str) -> dict[str, Any]:
    """Label Studio shows captures to people and, when a storage is added, looks whether the prefix holds any."""
    listing = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": [_arn(bucket)],
        "Condition": {"StringLike": {"s3:prefix": [f"{CAPTURES}*"]}},
    }
    return _policy(_allow("s3:GetObject", bucket, (f"{CAPTURES}*",)), listing)


def admin_policy(bucket: str) -> dict[str, Any]:
    """The cloud side may do everything in this bucket and nothing in another."""
    return _policy({"Effect": "Allow", "Action": ["s3:*"], "Resource": [_arn(bucket), _arn(f"{bucket}/*")]})


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


def _policy(*statements: Statement) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(action: str, bucket: str, patterns: Iterable[str]) -> Statement:
    return {"Effect": "Allow", "Action": [action], "Resource": [_arn(f"{bucket}/{pattern}") for pattern in patterns]}


def _arn(resource: str) -> str:
    return f"arn:aws:s3:::{resource}"
