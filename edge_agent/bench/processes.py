"""What the whole agent costs beside a bare loop, in separate processes: processor time and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from curate.errors import AgentError
from edge_agent.bench.report import Bar, Figure, Section, spread_of
from edge_agent.cameras.base import Pixels, encode_jpeg

CPU_BAR: Final = Bar(1.05)
MEMORY_BAR: Final = Bar(1.5)
FPS: Final = 5.0
WARMUP_S: Final = 3.0
_ENOUGH_FRAMES: Final = 0.9
_MIB: Final = 1024 * 1024
_AS_ON_A_DEVICE: Final = (
    "import runpy, sys; sys.modules['boto3'] = None; runpy.run_module(sys.argv.pop(1), run_name='__main__')"
)
"""No device has boto3, but python-tuf's library of signatures loads it where the cloud's side is installed as well."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process cost."""

    frames: int
    cpu_share: float
    """Processor time over wall time."""
    peak_bytes: int
    """Peak resident memory, from the process's start."""


def measure_processes(
    model: Path, pictures: list[Pixels], folder: Path, *, seconds: float, repeats: int, tell: Callable[[str], None]
) -> Section:
    """Return processor time and peak memory of the agent as multiples of the bare loop's.

    Args:
        model: the model's file.
        pictures: what the camera shows, over and over.
        folder: an empty folder for them.
        seconds: of one run, after a warm-up.
        repeats: bare and agent take turns this many times.
        tell: is told what runs.

    Raises:
        AgentError: a process failed, or did not keep up with the camera.
    """
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        (folder / f"{index:04d}.jpg").write_bytes(encode_jpeg(picture, quality=90))
    bare, agent, linked = [], [], []
    common = [str(model), str(folder), str(FPS), str(WARMUP_S), str(seconds)]
    for number in range(repeats):
        tell(f"processes: {number + 1} of {repeats}")
        bare.append(_run("edge_agent.bench.bare", common))
        agent.append(_run("edge_agent.bench.agent_process", [*common, "folder"]))
        linked.append(_run("edge_agent.bench.agent_process", [*common, "s3"]))
    _verify_kept_up([*bare, *agent, *linked], seconds)
    return summarise(bare, agent, linked, seconds)


def summarise(bare: list[Cost], agent: list[Cost], linked: list[Cost], seconds: float) -> Section:
    """Return the figures of all repeats; `linked` are agents with an S3 client. Pure."""
    bare_cpu, agent_cpu = (median(cost.cpu_share for cost in costs) for costs in (bare, agent))
    bare_bytes, agent_bytes = (median(cost.peak_bytes for cost in costs) for costs in (bare, linked))
    cpu_detail = (
        f"{agent_cpu:.2%} beside {bare_cpu:.2%} of one core at {FPS:g} frames a second, medians of {len(bare)} x "
        f"{seconds:g} s; both decode the same JPEGs"
    )
    memory_detail = f"{agent_bytes / _MIB:.0f} MiB with its S3 client beside {bare_bytes / _MIB:.0f} MiB"
    cpu_spread = spread_of([cost.cpu_share for cost in bare])
    memory_spread = spread_of([float(cost.peak_bytes) for cost in bare])
    return Section(
        "processes",
        (
            Figure("processor time / bare loop", agent_cpu / bare_cpu, "", CPU_BAR, cpu_detail, cpu_spread),
            Figure("peak memory / bare loop", agent_bytes / bare_bytes, "", MEMORY_BAR, memory_detail, memory_spread),
        ),
    )


def _run(module: str, arguments: list[str]) -> Cost:
    command = [sys.executable, "-c", _AS_ON_A_DEVICE, module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise AgentError(f"{module} failed: {done.stderr.strip()[-500:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _verify_kept_up(costs: list[Cost], seconds: float) -> None:
    fewest = min(cost.frames for cost in costs)
    if fewest < _ENOUGH_FRAMES * FPS * seconds:
        raise AgentError(
            f"only {fewest} frames in {seconds:g} s: this machine does not keep up with {FPS:g} a second",
            hint="Measure with nothing else running.",
        )
