"""The machine under the agent: processor, memory, temperature, clock, disk. Linux tells them in files.

What is measured and what is thought of it are apart: `judge_*` are pure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_agent.clock import is_kept_in_time
from edge_agent.doctor.findings import Finding, fail, ok, warn
from edge_agent.machine import read_size_bytes, read_temperatures_c

MIB: Final = 1024 * 1024
GOOD_MEMORY_BYTES: Final = 256 * MIB
SLOW_FSYNCS_PER_S: Final = 20.0
HOT_C: Final = 80.0
VERY_HOT_C: Final = 95.0
MAX_SKEW_S: Final = 15 * 60
"""S3 refuses signatures that are further off."""
NOTICEABLE_SKEW_S: Final = 5.0
_INT8_FLAGS: Final = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "asimddp": "ARM dot product"}
_FSYNC_PROBE_S: Final = 0.5
_FSYNC_PROBES: Final = 50


def examine_processor(root: Path = Path("/")) -> Iterator[Finding]:
    """Say which instructions for int8 there are, and whether heat slows the processor down."""
    yield judge_processor(_read(root / "proc/cpuinfo"))
    yield judge_temperature(read_temperatures_c(root), _count_throttles(root))


def judge_processor(cpuinfo: str) -> Finding:
    """Look for dot products of 8-bit numbers, without which int8 models gain little and may saturate."""
    flags = set(cpuinfo.split())
    found = [name for flag, name in _INT8_FLAGS.items() if flag in flags]
    if found:
        return ok("processor", f"{os.cpu_count()} cores, int8 by {', '.join(found)}")
    return warn(
        "processor",
        f"{os.cpu_count()} cores without dot products for int8 (VNNI or ARM dotprod)",
        "int8 may be no faster than float here: compare `inference.variant` int8 and float with `gleaner-agent bench`.",
    )


def judge_temperature(temperatures_c: list[float], throttles: int) -> Finding:
    """Judge the hottest sensor, and how often the processor was slowed down since it started."""
    if not temperatures_c:
        return ok("temperature", "this machine has no sensor that says it")
    hottest = max(temperatures_c)
    text = f"{hottest:.0f} degrees Celsius, slowed down {throttles} times since the machine started"
    advice = "Cool the device: shade, a larger heat sink, a lower camera.fps."
    if hottest >= VERY_HOT_C:
        return fail("temperature", text, advice)
    return warn("temperature", text, advice) if hottest >= HOT_C or throttles else ok("temperature", text)


def examine_memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Say how much memory is free."""
    meminfo = root / "proc/meminfo"
    available_bytes = read_size_bytes(meminfo, "MemAvailable")
    if available_bytes is not None:
        yield judge_memory(available_bytes, read_size_bytes(meminfo, "MemTotal") or 0)


def judge_memory(available_bytes: int, total_bytes: int) -> Finding:
    """Judge the memory that is free."""
    text = f"{available_bytes // MIB} MiB of {total_bytes // MIB} MiB are free"
    if available_bytes >= GOOD_MEMORY_BYTES:
        return ok("memory", text)
    return warn("memory", text, "Lower ring.max_bytes and camera.max_queued_frames, or stop other programs.")


def examine_time_service() -> Iterator[Finding]:
    """Say whether the kernel believes that its clock is kept in time."""
    is_kept = is_kept_in_time()
    if is_kept is None:
        return
    yield (
        ok("time service", "the clock is synchronised")
        if is_kept
        else warn(
            "time service",
            "nothing keeps the clock of this machine in time",
            "Install a time service such as chrony or systemd-timesyncd. Without one the agent learns from the bucket, "
            "and until then keeps nothing where privacy.windows says when it may.",
        )
    )


def judge_skew(skew_s: float) -> Finding:
    """Judge how far this machine's clock is ahead of the bucket's (negative: behind)."""
    where = "ahead of" if skew_s > 0 else "behind"
    text = f"{abs(skew_s):.0f} s {where} the bucket's"
    if abs(skew_s) < NOTICEABLE_SKEW_S:
        return ok("clock", "agrees with the bucket's")
    advice = "Set the clock, and give the device a time service."
    if abs(skew_s) < MAX_SKEW_S:
        return warn("clock", text, advice)
    return warn("clock", f"{text}: captures are signed with the bucket's time and flagged", advice)


def examine_disk(folder: Path, *, needed_bytes: int) -> Iterator[Finding]:
    """Say whether the state folder can be written, has room, and how fast it makes things durable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield judge_fsync_rate(measure_fsync_rate(folder))
    except OSError as exc:
        yield fail(
            "disk",
            f"{folder} cannot be written: {exc}",
            "The agent's user has to own state_dir, on a file system that is mounted for writing. "
            "A card that turned read-only by itself is dying: replace it.",
        )
        return
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield judge_room(shutil.disk_usage(folder).free + held, needed_bytes, folder)


def judge_room(free_bytes: int, needed_bytes: int, folder: Path) -> Finding:
    """Judge the room for what the agent may keep; what it holds already counts as free."""
    text = f"{free_bytes // MIB} MiB for the agent under {folder}, {needed_bytes // MIB} MiB allowed by the settings"
    if free_bytes >= needed_bytes:
        return ok("disk room", text)
    return warn("disk room", text, "Free space or lower spool.max_bytes; a full disk drops captures, and counts them.")


def judge_fsync_rate(per_s: float) -> Finding:
    """Judge how many small files a second become durable."""
    text = f"{per_s:.0f} durable writes a second"
    if per_s >= SLOW_FSYNCS_PER_S:
        return ok("disk speed", text)
    return warn("disk speed", text, "A slow or worn card: captures above this rate are dropped (`backlog`).")


def measure_fsync_rate(folder: Path) -> float:
    """Write and sync 4 KiB again and again for about half a second; return how often a second.

    Raises:
        OSError: the disk refused.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        started_s = time.monotonic()
        count = 0
        while count < _FSYNC_PROBES and time.monotonic() - started_s < _FSYNC_PROBE_S:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            count += 1
        return count / max(1e-6, time.monotonic() - started_s)


def _count_throttles(root: Path) -> int:
    pattern = "cpu[0-9]*/thermal_throttle/core_throttle_count"
    texts = [_read(path).strip() for path in (root / "sys/devices/system/cpu").glob(pattern)]
    return sum(int(text) for text in texts if text.isdigit())


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
