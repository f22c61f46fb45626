"""Who may do what in the bucket, as AWS policy documents: the same text serves on any S3 that knows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from curate.contracts.paths import CAPTURES, INBOX, reported_key

Statement = dict[str, Any]


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


def _policy(*statements: Statement) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(action: str, bucket: str, patterns: Iterable[str]) -> Statement:
    return {"Effect": "Allow", "Action": [action], "Resource": [_arn(f"{bucket}/{pattern}") for pattern in patterns]}


def _arn(resource: str) -> str:
    return f"arn:aws:s3:::{resource}"
