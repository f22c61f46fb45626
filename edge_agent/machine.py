"""What this machine is, how warm, and how much memory it has left, as the kernel tells. Linux; elsewhere nothing is
known."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_STATUS: Final = Path("/proc/self/status")
_CGROUP: Final = Path("/sys/fs/cgroup")
_PLAUSIBLE_C: Final = (-60.0, 200.0)
"""Sensors that are not connected tell something else."""


def describe_processor() -> str:
    """Return architecture, processor and count: what a model's check on this device is worth for."""
    return f"{platform.machine()} {processor_name()} x{usable_cpus()}"


def usable_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_bytes() -> int | None:
    """Return how much more memory this process may take without others having to give some back; None when unknown."""
    known = [amount for amount in (read_size_bytes(_MEMINFO, "MemAvailable"), _cgroup_left()) if amount is not None]
    return min(known, default=None)


def resident_bytes() -> int:
    """Return the memory this process holds now; 0 when unknown."""
    return read_size_bytes(_STATUS, "VmRSS") or 0


def peak_resident_bytes() -> int:
    """Return the most memory this process ever held; 0 when unknown.

    Not `ru_maxrss`: that starts with what the parent held when it forked, however small the child is.
    """
    return read_size_bytes(_STATUS, "VmHWM") or 0


def virtual_bytes() -> int:
    """Return the address space this process uses now; 0 when unknown."""
    return read_size_bytes(_STATUS, "VmSize") or 0


def processor_name() -> str:
    """Return the processor's own name; `unknown` where the kernel does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return named.get("model name") or named.get("Model") or named.get("CPU part") or "unknown"


def read_size_bytes(path: Path, name: str) -> int | None:
    """Return a line of a file like `/proc/meminfo`, which tells kibibytes; None where there is none."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def read_temperatures_c(root: Path = Path("/")) -> list[float]:
    """Return what the thermal zones tell, in degrees Celsius."""
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        try:
            found.append(int(path.read_text()) / 1000.0)
        except (OSError, ValueError):
            continue
    coldest, hottest = _PLAUSIBLE_C
    return [temperature_c for temperature_c in found if coldest < temperature_c < hottest]


def _cgroup_left() -> int | None:
    """Return what the container's own bound leaves; page cache counts as used, which errs on the safe side."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
