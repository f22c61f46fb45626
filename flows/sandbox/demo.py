"""The demo: real services, real agents, simulated cameras and people; the loop turns, then the books are closed."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from curate.catalog.models import SampleStatus
from curate.contracts.paths import CAPTURES, INBOX, reported_key
from curate.contracts.telemetry import ReportedState
from curate.errors import Error
from curate.release.repository import init_repository
from curate.settings import CONFIG_VARIABLE
from flows._wiring import Services, services
from flows.sandbox.chaos import Chaos
from flows.sandbox.fleet import AgentSite, write_agent_config, write_simulator_config
from flows.sandbox.link import LinkConfig, set_link
from flows.sandbox.ports import find_free_ports
from flows.sandbox.prefect_runs import FlowRuns
from flows.sandbox.processes import stop_process
from flows.sandbox.script import DemoScript, Timeline
from flows.sandbox.simulator import SimulatorConfig
from flows.sandbox.stack import start_stack, stop_stack
from flows.sandbox.stack_config import label_studio_config
from flows.sandbox.stack_state import SERVICES, Stack
from flows.sandbox.supervisor import Program, Supervisor
from flows.sandbox.worlds.base import DemoWorld, Field

log = logging.getLogger(__name__)


class DemoRun:
    """One run of the demo under `root`. `turn` plays the script; the report is written from what it leaves behind."""

    def __init__(self, root: Path, script: DemoScript, world: DemoWorld) -> None:
        self.root = root.resolve()
        self.script = script
        self.world = world
        self.timeline = Timeline(self.root / "timeline.json")

    def turn(self) -> Stack:
        """Start everything, turn the wheel, drain the field; leaves the services up for the report."""
        self.timeline.note("demo_started", seed=self.script.seed)
        stack = start_stack(self.root, self.world.cameras)
        wired = self._configure(stack)
        self._runs = FlowRuns(stack.prefect_api_url)
        self.timeline.note("stack_ready")
        with Supervisor(self.root, SERVICES, lambda name: self.timeline.note("restarted", name=name)) as supervisor:
            supervisor.add(self._worker(stack))
            self._first_release()
            self._field = self._open_field(stack, supervisor)
            with Chaos(self.root, self.script, self.timeline.note):
                for number in range(1, self.script.rounds + 1):
                    self._window(number, wired)
                    self.world.take_every(self._field, self.script.round_frame_step)
                    self._round(number)
                    self.world.take_every(self._field, 1)
                self._last_window(wired)
            self._close_field(supervisor)
            self._drain(wired)
            supervisor.remove("worker")
            stop_process(self.root, "worker")
        self.timeline.note("field_drained")
        return stack

    def _configure(self, stack: Stack) -> Services:
        """Write the cloud's configuration and start the signed repository."""
        config_file = self.root / "curate.yaml"
        config_file.write_text(yaml.safe_dump(cloud_config(stack, self.script, self.world), sort_keys=False))
        os.environ.update({CONFIG_VARIABLE: str(config_file), **stack.prefect_env()})
        services.cache_clear()
        wired = services()
        root_bytes = init_repository(wired.store, wired.settings.key_dir, datetime.now(UTC))
        (self.root / "root.json").write_bytes(root_bytes)
        for device in self.world.cameras:
            wired.catalog.register_device(device, datetime.now(UTC))
        return wired

    def _worker(self, stack: Stack) -> Program:
        env = {CONFIG_VARIABLE: os.environ[CONFIG_VARIABLE], **stack.prefect_env()}
        return Program(
            "worker", [sys.executable, "-m", "flows.worker"], env=env, before_restart=self._runs.crash_orphans
        )

    def _first_release(self) -> None:
        """Import the first labels and turn round 0: train, compress, release."""
        folder = self.root / "seed"
        self.world.write_first_labels(folder)
        self._runs.wait_for_deployment("import-labels", timeout_s=90)
        self._runs.run_to_end("import-labels", {"folder": str(folder)}, timeout_s=120)
        self._round(0)
        if services().catalog.released_model() is None:
            raise Error("the first model was refused, so the field has nothing to run", hint="see round 0 in Prefect")

    def _open_field(self, stack: Stack, supervisor: Supervisor) -> Field:
        """Start the world, the links, the agents and the people."""
        cameras, offline = self.world.cameras, self.world.offline_camera
        *api, link_port, camera_port = find_free_ports(len(cameras) + 2)
        link = LinkConfig(listen_port=link_port, target_port=stack.ports["s3"], control_file=self.root / "link.control")
        endpoints = dict.fromkeys(cameras, stack.s3_endpoint) | {offline: f"http://127.0.0.1:{link.listen_port}"}
        sites = {
            camera: AgentSite(camera, self.root / "cameras" / camera, port, endpoints[camera])
            for camera, port in zip(cameras, api, strict=True)
        }
        field = Field(
            root=self.root,
            sites=sites,
            camera_port=camera_port,
            fps=self.script.fps,
            label_studio_url=stack.label_studio_url,
            label_studio_token=stack.secrets.label_studio_token,
        )
        for site in sites.values():
            write_agent_config(
                site,
                bucket=stack.bucket,
                credentials_file=stack.device_credentials(site.device_id),
                root_file=self.root / "root.json",
                sections=self.world.agent_config(site, field),
            )
        cast = {simulator.name: simulator for simulator in self.world.cast(field)}
        self._simulate(supervisor, "link", "flows.sandbox.link", link)
        self._simulate(supervisor, "world", cast["world"].module, cast["world"].config)
        for site in sites.values():
            supervisor.add(Program(f"agent-{site.device_id}", site.argv()))
        for name in ("users", "annotators"):
            self._simulate(supervisor, name, cast[name].module, cast[name].config)
        self.timeline.note("field_open")
        return field

    def _simulate(self, supervisor: Supervisor, name: str, module: str, config: SimulatorConfig) -> None:
        path = write_simulator_config(self.root / "simulators" / f"{name}.json", config)
        supervisor.add(Program(name, [sys.executable, "-m", module, str(path)]))

    def _window(self, number: int, wired: Services) -> None:
        """Let the cameras look for a while. The link is cut in the middle part of the run, dusk falls half-way."""
        self.timeline.note("window_opened", number=number)
        control = self.root / "link.control"
        if number == 2:
            self.timeline.note("drift", camera=self.world.drift_camera, **self.world.let_dusk_fall(self._field))
        half = self.script.window_s / 2
        time.sleep(half)
        if number == 1:
            set_link(control, up=False)
            self.timeline.note("link_down", camera=self.world.offline_camera)
        elif number == 2:
            set_link(control, up=True)
            self.timeline.note("link_up", camera=self.world.offline_camera)
        time.sleep(half)
        _wait_until(lambda: _count_waiting(wired) >= self.script.min_pool, timeout_s=240, what="enough captures")

    def _round(self, number: int) -> None:
        self.timeline.note("round_opened", number=number)
        self._runs.run_to_end("curation-round", {"round_number": number}, timeout_s=600)
        model = next((m for m in services().catalog.models() if m.round_number == number), None)
        if model is None:
            raise Error(f"round {number} ended without a model", hint="see the run in the Prefect UI")
        promoted = model.release_id is not None
        why = "; ".join((model.gate or {}).get("reasons", []))
        outcome = f"{model.release_id} is released ({why})" if promoted else f"the candidate is refused ({why})"
        self.timeline.note("round_closed", number=number, release=model.release_id, gate=model.gate, outcome=outcome)

    def _last_window(self, wired: Services) -> None:
        """Wait until every agent runs the newest release, then let it be seen at work."""
        incumbent = wired.catalog.released_model()
        newest = incumbent.release_id if incumbent else None
        set_link(self.root / "link.control", up=True)
        _wait_until(
            lambda: set(self._running_releases(wired)) == {newest}, timeout_s=120, what=f"all agents on {newest}"
        )
        self.timeline.note("all_updated", release=newest)
        time.sleep(self.script.window_s / 6)

    def _running_releases(self, wired: Services) -> list[str | None]:
        states = [read_reported(wired, camera) for camera in self.world.cameras]
        return [state.release_id if state else None for state in states]

    def _close_field(self, supervisor: Supervisor) -> None:
        """The world ends first, then the people; agents stay to drain their spools."""
        for name in ("world", "users", "annotators"):
            supervisor.remove(name)
            stop_process(self.root, name)
        self.timeline.note("world_ended")

    def _drain(self, wired: Services) -> None:
        """Ingest what still arrives, until every spool is empty and every device has said so."""

        def drained() -> bool:
            if next(iter(wired.store.list(INBOX)), None) is not None:
                self._runs.run_to_end("ingest-captures", timeout_s=120)
            states = [read_reported(wired, camera) for camera in self.world.cameras]
            return all(s is not None and s.counters.pending + s.counters.feedback_pending == 0 for s in states)

        _wait_until(drained, timeout_s=240, what="the spools to drain")
        self._runs.run_to_end("collect-annotations", timeout_s=120)


def cloud_config(stack: Stack, script: DemoScript, world: DemoWorld) -> dict[str, Any]:
    """The demo's `curate.yaml`: the product's settings, with the demo's clock (a second stands for a minute)."""
    root = stack.root
    return {
        "catalog_url": f"sqlite:///{root / 'catalog.db'}",
        "cache_dir": str(root / "model-cache"),
        "key_dir": str(root / "keys"),
        "bucket": {
            "bucket": stack.bucket,
            "endpoint_url": stack.s3_endpoint,
            "credentials_file": str(stack.admin_credentials),
        },
        "label_studio": label_studio_config(stack),
        "round": {"budget": script.budget, "seed": script.seed, "wait_for_labels_s": 240},
        "schedule": {"ingest_s": 120, "collect_s": 300, "supervise_s": 120},
        **world.cloud_config(),
    }


def read_reported(wired: Services, device_id: str) -> ReportedState | None:
    """The device's newest heartbeat, None while there is none."""
    try:
        return ReportedState.from_bytes(wired.store.get(reported_key(device_id)))
    except Error:
        return None


def _count_waiting(wired: Services) -> int:
    """Captures in the bucket that no round has asked about yet: before it chooses, a round ingests what is new."""
    uploaded = sum(1 for _ in wired.store.list(CAPTURES))
    return uploaded - sum(sample.status is not SampleStatus.POOL for sample in wired.catalog.samples())


def _wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Error(f"waited {timeout_s:.0f} s for {what}", hint="see the logs folder")
        time.sleep(1.0)


def clear_demo(root: Path) -> None:
    """Stop and forget an earlier demo. The dataset cache beside it stays."""
    stop_stack(root)
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
