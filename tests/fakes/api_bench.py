"""The interfaces of an agent, over the capture side of `agent_bench`: what they ask is there, without threads."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from edge_agent.capture.explain import explain_prediction
from edge_agent.capture.frame_finder import FrameFinder
from edge_agent.interfaces.agent_view import AgentView, assess_health
from edge_agent.interfaces.api import ApiOptions, create_app
from edge_agent.interfaces.api_server import ApiServer
from edge_agent.interfaces.captures import CaptureTracker
from edge_agent.interfaces.inference_service import InferenceService
from edge_agent.interfaces.posted_work import PostedWork
from edge_agent.latency import LatencyHistogram
from edge_agent.spool.index import CapturePlace
from edge_agent.switches import Switches
from tests.fakes.agent_bench import Bench, MemorySpool

OPTIONS = ApiOptions(host="127.0.0.1", max_body_bytes=1000, max_posted_bytes=100_000)
MAX_POSTED_PIXELS = 10_000


@dataclass
class _Places:
    """Says of what a memory spool took that it waits, unless told otherwise."""

    spool: MemorySpool
    told: dict[str, CapturePlace] = field(default_factory=dict)

    def capture_place(self, prediction_id: str) -> CapturePlace | None:
        return self.told.get(prediction_id) or (CapturePlace.WAITING if self.spool.is_captured(prediction_id) else None)


class ApiBench:
    """What a service wires, for a bench whose clock stands still."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench = bench
        self.folder = folder
        self.latencies = LatencyHistogram()
        self.places = _Places(bench.spool)
        self.last_frame_age_s: float | None = 0.1
        self.view = AgentView(
            device_id="cam-1",
            boot_id="boot",
            camera_ids=("front",),
            status=self.status,
            counters=bench.ledger.snapshot,
            latencies=self.latencies.snapshot,
            predictions=bench.predictions,
            intake=bench.intake,
            frames=FrameFinder(bench.ring, bench.keeper, bench.spool),
            explain=explain_prediction,
            captures=CaptureTracker(bench.keeper, self.places, bench.predictions),
            switches=Switches(folder / "switches.json"),
            health=lambda: assess_health(
                self.status(), bench.predictions, running_s=100.0, max_silence_s=60.0, monotonic=lambda: 10.0
            ),
        )
        self.service = InferenceService(bench.live, agent_version="1.2.3", max_pixels=MAX_POSTED_PIXELS)
        self.work = PostedWork(max_waiting=1)

    def status(self) -> Mapping[str, Any]:
        """What the service tells, as far as the interfaces ask."""
        model = self.bench.live.current()
        return {
            "device_id": "cam-1",
            "agent_version": "1.2.3",
            "counters": self.bench.ledger.snapshot().model_dump(mode="json"),
            "release_id": model.release_id if model else None,
            "release": {"release_id": model.release_id, "number": model.number} if model else None,
            "errors": {"BadOutputError": 2},
            "cameras": [{"camera_id": "front", "state": "live", "fps": 5.0, "last_frame_age_s": self.last_frame_age_s}],
        }

    @contextmanager
    def serve(
        self,
        options: ApiOptions = OPTIONS,
        *,
        headers: Mapping[str, str] | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> Iterator[httpx.Client]:
        """A client of a real server on a free port."""
        cert, key = tls or (None, None)
        server = ApiServer(
            create_app(self.view, self.service, self.work, replace(options, secure=tls is not None)),
            host="127.0.0.1",
            port=0,
            address_file=self.folder / "api.json",
            instance=options.instance,
            tls_cert=cert,
            tls_key=key,
        )
        server.start()
        url = f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
        try:
            with httpx.Client(
                base_url=url,
                trust_env=False,
                timeout=10.0,
                headers=headers,
                verify=ssl.create_default_context(cafile=cert),
            ) as made:
                yield made
        finally:
            self.work.stop()
            server.stop(5.0)
