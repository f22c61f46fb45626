"""The doctor at a real S3 server with per-device rights."""

from __future__ import annotations

import json
from pathlib import Path

from curate.contracts.paths import CAPTURES
from curate.storage.s3 import S3BlobStore
from edge_agent.config.sections import BucketConfig
from edge_agent.doctor.bucket import STRANGER, examine_bucket, examine_clock
from edge_agent.doctor.findings import Level
from tests.conftest import DEVICE_BUCKET, S3Server


def test_rights_and_clock_are_told(s3_server: S3Server, tmp_path: Path) -> None:
    """With keys of its own a device may write its captures and nobody else's; with another's it may not write its own;
    with an administrator's it is told that they may do too much. The clock agrees with the server's."""

    def levels(key: str, device_id: str) -> dict[str, Level]:
        (tmp_path / f"{key}.json").write_text(json.dumps({"access_key": key, "secret_key": f"{key}-secret"}))
        config = BucketConfig(
            kind="s3",
            bucket=DEVICE_BUCKET,
            endpoint_url=s3_server.endpoint_url,
            credentials_file=tmp_path / f"{key}.json",
        )
        findings = [*examine_bucket(config, device_id), *examine_clock(config)]
        return {finding.name: finding.level for finding in findings}

    own = levels("cam-1", "cam-1")
    assert {name: own[name] for name in ("bucket", "own prefix", "other devices", "conditional writes", "clock")} == {
        "bucket": Level.OK,
        "own prefix": Level.OK,
        "other devices": Level.OK,
        "conditional writes": Level.OK,
        "clock": Level.OK,
    }
    assert levels("cam-2", "cam-1")["bucket"] is Level.FAIL
    admin = levels("admin", "cam-1")
    assert (admin["own prefix"], admin["other devices"]) == (Level.OK, Level.WARN)
    store = S3BlobStore(s3_server.settings(DEVICE_BUCKET))
    for device_id in ("cam-1", STRANGER):
        for info in store.list(f"{CAPTURES}{device_id}/"):
            store.delete(info.key)
