"""What a camera has to load."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = [
    "botocore",
    "cv2",
    "grpc",
    "paho",
    "google.protobuf",
    "torch",
    "pandas",
    "sklearn",
    "prefect",
    "sqlalchemy",
    "label_studio_sdk",
    "onnx",
    "matplotlib",
]
OURS = ("curate.answers", "curate.contracts", "curate.storage", "curate.errors", "edge_agent")


def test_the_agent_loads_nothing_heavy() -> None:
    """A fresh process that imports the whole agent loads none of the cloud's libraries and only its own packages."""
    # securesystemslib looks for boto3, to sign with keys that Amazon holds; what tests run in has it, a device has not.
    without = "import json, sys; sys.modules['boto3'] = None; "
    code = without + "import edge_agent.cli, edge_agent.service; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = json.loads(done.stdout)
    assert [name for name in HEAVY if name in loaded] == []
    ours = [name for name in loaded if name.split(".")[0] in {"curate", "edge_agent", "flows"}]
    assert [name for name in ours if name != "curate" and not name.startswith(OURS)] == []
