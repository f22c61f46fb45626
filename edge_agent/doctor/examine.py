"""The whole examination: every part in turn, one failing part never hiding the next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from curate.errors import Error
from edge_agent.agent_client import AgentClient
from edge_agent.config.agent import AgentConfig
from edge_agent.doctor.agent import (
    examine_model,
    examine_port,
    examine_service_manager,
    examine_switches,
    examine_trust,
)
from edge_agent.doctor.bucket import examine_bucket, examine_clock
from edge_agent.doctor.camera import examine_camera, judge_running_camera
from edge_agent.doctor.findings import Finding, fail, ok
from edge_agent.doctor.machine import examine_disk, examine_memory, examine_processor, examine_time_service

log = logging.getLogger(__name__)

Examination: TypeAlias = Callable[[], Iterator[Finding]]
_TELL_US: Final = "This should not happen; tell us."


def examine(config: AgentConfig) -> Iterator[Finding]:
    """Examine a device; findings come as they are found. Does not disturb a running agent."""
    running = _ask_running(config)
    yield ok("configuration", f"valid, device {config.device_id}, state in {config.state_dir}")
    state = "runs" if running is not None else "does not run"
    yield ok("agent", f"{state} on this machine now")
    for name, examination in _examinations(config, running).items():
        yield from _guarded(name, examination)


def _examinations(config: AgentConfig, running: dict[str, Any] | None) -> dict[str, Examination]:
    found: dict[str, Examination] = {}
    if running is None:
        found |= {f"camera {camera.camera_id}": _bind(examine_camera, camera) for camera in config.all_cameras}
        found["port"] = lambda: examine_port(config.api.host, config.api.port)
    else:
        found["cameras"] = lambda: map(judge_running_camera, running.get("cameras", []))
    needed_bytes = config.spool.max_bytes + config.spool.min_free_bytes
    return found | {
        "trust": lambda: examine_trust(config.trust.root_file, datetime.now(UTC)),
        "model": lambda: examine_model(config),
        "switches": lambda: examine_switches(config.state_dir),
        "bucket": lambda: examine_bucket(config.bucket, config.device_id),
        "clock": lambda: examine_clock(config.bucket),
        "time service": examine_time_service,
        "disk": lambda: examine_disk(config.state_dir, needed_bytes=needed_bytes),
        "memory": examine_memory,
        "processor": examine_processor,
        "service": examine_service_manager,
    }


def _bind(examination: Callable[..., Iterator[Finding]], *arguments: Any) -> Examination:
    return lambda: examination(*arguments)


def _guarded(name: str, examination: Examination) -> Iterator[Finding]:
    try:
        yield from examination()
    # A doctor that faints at the first wound helps nobody.
    except Exception as exc:
        log.debug("examination failed", exc_info=True)
        advice = (exc.hint if isinstance(exc, Error) else None) or _TELL_US
        yield fail(name, f"could not be examined: {type(exc).__name__}: {exc}", advice)


def _ask_running(config: AgentConfig) -> dict[str, Any] | None:
    """Return the status of the agent that runs with this configuration, or None."""
    try:
        status: dict[str, Any] = AgentClient(config).get("/v1/status")
    except Error:
        return None
    return status
