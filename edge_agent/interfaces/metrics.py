"""What Prometheus reads: the agent's counters in the text exposition format, version 0.0.4.

Labels are cameras, arms and reasons, which are few and known; nothing that a client sends becomes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

from curate.contracts.telemetry import DeviceCounters
from edge_agent.interfaces.health import Health
from edge_agent.latency import BOUNDS_S, Latencies

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_COUNTERS: Final = (
    ("frames_seen", "Frames that the cameras gave."),
    ("frames_inferred", "Frames that the model answered."),
    ("bytes_seen", "Encoded size of every frame that the model answered."),
    ("selected", "Frames that an arm wanted."),
    ("spooled", "Captures that reached the spool."),
    ("evicted", "Spooled captures that were given up."),
    ("acknowledged", "Captures that the cloud has durably taken."),
    ("uploaded", "Captures whose batch record the bucket has taken."),
    ("bytes_uploaded", "Bytes sent to the bucket, retries included."),
    ("feedback_spooled", "Verdicts that reached the spool."),
    ("feedback_acknowledged", "Verdicts that the cloud has durably taken."),
)
_GAUGES: Final = (
    ("pending", "Captures waiting in the spool."),
    ("feedback_pending", "Verdicts waiting in the spool."),
)


@dataclass(frozen=True, slots=True)
class MetricsFacts:
    """Everything that is told, read at one moment."""

    counters: DeviceCounters
    latencies: Latencies
    health: Health
    status: Mapping[str, Any]
    """What `GET /v1/status` answers."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Counters of other interfaces, by the end of their names."""
    temperature_c: float | None = None


def render_metrics(facts: MetricsFacts) -> str:
    """Return the page."""
    page = _Page()
    values = facts.counters.model_dump()
    for name, text in _COUNTERS:
        page.add(f"{name}_total", "counter", text, [({}, values[name])])
    for name, text in _GAUGES:
        page.add(name, "gauge", text, [({}, values[name])])
    page.add("frames_skipped_total", "counter", "Frames not inferred.", _by("reason", facts.counters.frames_skipped))
    page.add("captured_total", "counter", "Spooled captures by arm.", _by("arm", facts.counters.captured))
    page.add("dropped_total", "counter", "Wanted captures never spooled.", _by("reason", facts.counters.dropped))
    for name, value in facts.extra.items():
        page.add(f"{name}_total", "counter", name.replace("_", " ").capitalize() + ".", [({}, value)])
    _add_state(page, facts)
    page.add_histogram("inference_seconds", "Time of one inference of a camera's frame.", facts.latencies)
    return page.text()


def _add_state(page: _Page, facts: MetricsFacts) -> None:
    status = facts.status
    for name, text, value in _state_gauges(facts):
        page.add(name, "gauge", text, [] if value is None else [({}, float(value))])
    for name, count in status.get("scene_gate", {}).items():
        page.add(f"scene_gate_{name}_total", "counter", f"Scene gate: frames, {name}.", [({}, count)])
    page.add("errors_total", "counter", "Errors since the start.", _by("kind", status.get("errors", {})))
    cameras = [camera for camera in status.get("cameras", []) if camera.get("fps") is not None]
    page.add("camera_fps", "gauge", "Frames a second.", [({"camera": c["camera_id"]}, c["fps"]) for c in cameras])


def _state_gauges(facts: MetricsFacts) -> list[tuple[str, str, float | None]]:
    """Return name, meaning and value; None where nothing is known."""
    status = facts.status

    def part(section: str, name: str) -> float | None:
        return (status.get(section) or {}).get(name)

    return [
        ("healthy", "1 while every camera is answered.", facts.health.is_healthy),
        ("link_up", "1 while the bucket answers.", part("link", "up")),
        ("last_upload_age_seconds", "Time since a batch reached the bucket.", part("link", "last_upload_age_s")),
        ("release_number", "Number of the release that answers.", part("release", "number")),
        ("quarantined", "Files set aside as unreadable.", status.get("quarantined")),
        ("spool_max_bytes", "Room of the spool.", part("spool", "max_bytes")),
        ("ring_bytes", "Memory of recent frames.", part("ring", "used_bytes")),
        ("queued", "Captures on their way to the disk.", part("queue", "captures")),
        ("temperature_celsius", "The warmest zone of the board.", facts.temperature_c),
    ]


def _by(label: str, values: Mapping[str, float]) -> list[tuple[dict[str, str], float]]:
    return [({label: key}, value) for key, value in sorted(values.items())]


class _Page:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        self._head(name, kind, text)
        self._lines += [f"gleaner_{name}{_labels(labels)} {value}" for labels, value in samples]

    def add_histogram(self, name: str, text: str, latencies: Latencies) -> None:
        self._head(name, "histogram", text)
        bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
        totals = list(accumulate(latencies.counts))
        self._lines += [
            f'gleaner_{name}_bucket{{le="{bound}"}} {total}' for bound, total in zip(bounds, totals, strict=True)
        ]
        self._lines += [f"gleaner_{name}_sum {latencies.sum_s}", f"gleaner_{name}_count {totals[-1]}"]

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def _head(self, name: str, kind: str, text: str) -> None:
        self._lines += [f"# HELP gleaner_{name} {text}", f"# TYPE gleaner_{name} {kind}"]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
