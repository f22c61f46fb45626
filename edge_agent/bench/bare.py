"""The yardstick: a bare ONNX Runtime loop in a process of its own. It imports what such a loop needs, and nothing else.

python -m edge_agent.bench.bare MODEL FOLDER FPS WARMUP_S SECONDS     prints one JSON line
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from edge_agent.machine import peak_resident_bytes


def open_session(path: Path) -> ort.InferenceSession:
    """Return a session as the agent opens it: one thread, no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def main(model: str, folder: str, fps: str, warmup_s: str, seconds: str) -> None:
    """Read, decode and answer the folder's pictures at a fixed rate; tell what it cost."""
    session = open_session(Path(model))
    height, width = session.get_inputs()[0].shape[1:3]
    paths = sorted(Path(folder).iterdir())
    begin_s = time.monotonic()
    count, cpu_s, wall_s = 0, time.process_time(), time.monotonic()
    warm = False
    while (now_s := time.monotonic()) < begin_s + float(warmup_s) + float(seconds):
        if not warm and now_s >= begin_s + float(warmup_s):
            warm, count, cpu_s, wall_s = True, 0, time.process_time(), now_s
        with Image.open(io.BytesIO(paths[count % len(paths)].read_bytes())) as picture:
            image = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
        session.run(None, {"images": image[np.newaxis]})
        count += 1
        time.sleep(max(0.0, wall_s + count / float(fps) - time.monotonic()))
    print(
        json.dumps(
            {
                "frames": count,
                "cpu_share": (time.process_time() - cpu_s) / (time.monotonic() - wall_s),
                "peak_bytes": peak_resident_bytes(),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
