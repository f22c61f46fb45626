"""The whole agent in a process of its own, to measure beside the bare loop on the same pictures.

    python -m edge_agent.bench.agent_process MODEL FOLDER FPS WARMUP_S SECONDS BUCKET     prints one JSON line

BUCKET is `folder`, or `s3` for one that does not answer: its client is then in memory as on a device.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from edge_agent.bench.model import load_file
from edge_agent.config.agent import AgentConfig
from edge_agent.machine import peak_resident_bytes
from edge_agent.service import Service


def main(model: str, folder: str, fps: str, warmup_s: str, seconds: str, bucket: str) -> None:
    """Run the agent on the folder's pictures; tell what it cost."""
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as home:
        service = Service(_make_config(Path(home), Path(folder), float(fps), bucket))
        service.live.replace(load_file(Path(model)))
        service.start()
        try:
            time.sleep(float(warmup_s))
            before, cpu_s, wall_s = _frames(service), time.process_time(), time.monotonic()
            time.sleep(float(seconds))
            cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
            frames = _frames(service) - before
        finally:
            service.stop()
    peak_bytes = peak_resident_bytes()
    print(json.dumps({"frames": frames, "cpu_share": cpu_s / wall_s, "peak_bytes": peak_bytes}))


def _frames(service: Service) -> int:
    return int(service.status()["counters"]["frames_inferred"])


def _make_config(home: Path, pictures: Path, fps: float, bucket: str) -> AgentConfig:
    (home / "root.json").write_bytes(_make_root())
    (home / "bucket").mkdir()
    buckets: dict[str, dict[str, Any]] = {
        "folder": {"kind": "folder", "path": home / "bucket"},
        "s3": {
            "kind": "s3",
            "bucket": "bench",
            "endpoint_url": "http://127.0.0.1:9",
            "credentials_file": home / "keys.json",
        },
    }
    (home / "keys.json").write_text(json.dumps({"access_key": "bench", "secret_key": "bench"}))
    return AgentConfig.model_validate(
        {
            "device_id": "bench",
            "state_dir": home / "state",
            "camera": {"camera_id": "bench", "path": pictures, "follow": False, "fps": fps},
            "bucket": buckets[bucket],
            "trust": {"root_file": home / "root.json"},
            "api": {"port": 0},
        }
    )


def _make_root() -> bytes:
    """Return a root of trust that nobody will ever sign a release for."""
    signer = CryptoSigner.generate_ed25519()
    root = Root(version=1, expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=1))
    for role in root.roles:
        root.add_key(signer.public_key, role)
    metadata = Metadata(root)
    metadata.sign(signer)
    return metadata.to_bytes()


if __name__ == "__main__":
    main(*sys.argv[1:])
