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
from PIL import Image

from curate.catalog.labels import load_label_spec
from curate.catalog.models import SampleStatus
from curate.contracts.paths import reported_key
from curate.contracts.telemetry import ReportedState
from curate.errors import Error
from curate.release.repository import init_repository
from curate.settings import CONFIG_VARIABLE
from flows._wiring import Services, services
from flows.sandbox.annotators import AnnotatorsConfig
from flows.sandbox.chaos import Chaos
from flows.sandbox.fashion_mnist import CLASS_NAMES, FashionMnist
from flows.sandbox.fleet import AgentSite, write_agent_config, write_simulator_config
from flows.sandbox.link import LinkConfig, set_link
from flows.sandbox.ports import find_free_ports
from flows.sandbox.prefect_runs import FlowRuns
from flows.sandbox.processes import stop_process
from flows.sandbox.script import DemoScript, Timeline
from flows.sandbox.stack import start_stack, stop_stack
from flows.sandbox.stack_config import label_studio_config
from flows.sandbox.stack_state import SERVICES, Stack
from flows.sandbox.supervisor import Program, Supervisor
from flows.sandbox.users import UsersConfig
from flows.sandbox.world import seed_samples
from flows.sandbox.world_schedule import WorldConfig
from flows.sandbox.world_writer import WriterConfig, schedule_dusk

log = logging.getLogger(__name__)

CAMERAS = ("cam-1", "cam-2", "cam-3")
OFFLINE_CAMERA = "cam-2"


class DemoRun:
    """One run of the demo under `root`. `turn` plays the script; the report is written from what it leaves behind."""

    def __init__(self, root: Path, script: DemoScript, data: FashionMnist) -> None:
        self.root = root.resolve()
        self.script = script
        self.world = WorldConfig(seed=script.seed)
        self.timeline = Timeline(self.root / "timeline.json")
        self._data = data

    @property
    def journal_dir(self) -> Path:
        """Where the simulated people note what they saw."""
        return self.root / "journal"

    def turn(self) -> Stack:
        """Start everything, turn the wheel, drain the field; leaves the services up for the report."""
        self.timeline.note("demo_started", seed=self.script.seed)
        stack = start_stack(self.root, CAMERAS)
        wired = self._configure(stack)
        self._runs = FlowRuns(stack.prefect_api_url)
        self.timeline.note("stack_ready")
        with Supervisor(self.root, SERVICES, lambda name: self.timeline.note("restarted", name=name)) as supervisor:
            supervisor.add(self._worker(stack))
            self._first_release()
            sites = self._open_field(stack, supervisor)
            with Chaos(self.root, self.script, self.timeline.note):
                for number in range(1, self.script.rounds + 1):
                    self._window(number, wired)
                    self._round(number)
                self._last_window(wired)
            self._close_field(supervisor)
            self._drain(wired, sites)
            supervisor.remove("worker")
            stop_process(self.root, "worker")
        self.timeline.note("field_drained")
        return stack

    def _configure(self, stack: Stack) -> Services:
        """Write the cloud's configuration and start the signed repository."""
        config_file = self.root / "curate.yaml"
        config_file.write_text(yaml.safe_dump(cloud_config(stack, self.script), sort_keys=False))
        os.environ.update({CONFIG_VARIABLE: str(config_file), **stack.prefect_env()})
        services.cache_clear()
        wired = services()
        root_bytes = init_repository(wired.store, wired.settings.key_dir, datetime.now(UTC))
        (self.root / "root.json").write_bytes(root_bytes)
        for device in CAMERAS:
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
        write_seed_folder(folder, self.world, self.script, self._data)
        self._runs.wait_for_deployment("import-labels", timeout_s=90)
        self._runs.run_to_end("import-labels", {"folder": str(folder)}, timeout_s=120)
        self._round(0)

    def _open_field(self, stack: Stack, supervisor: Supervisor) -> dict[str, AgentSite]:
        """Start the world, the links, the agents and the people."""
        api = find_free_ports(len(CAMERAS) + 1)
        link = LinkConfig(listen_port=api[-1], target_port=stack.ports["s3"], control_file=self.root / "link.control")
        endpoints = dict.fromkeys(CAMERAS, stack.s3_endpoint) | {OFFLINE_CAMERA: f"http://127.0.0.1:{link.listen_port}"}
        sites = {
            camera: AgentSite(camera, self.root / "cameras" / camera, port, endpoints[camera])
            for camera, port in zip(CAMERAS, api, strict=False)
        }
        for site in sites.values():
            write_agent_config(
                site,
                bucket=stack.bucket,
                credentials_file=stack.device_credentials(site.device_id),
                root_file=self.root / "root.json",
            )
        self._writer = WriterConfig(
            world=self.world,
            folders={camera: site.frames_dir for camera, site in sites.items()},
            fps=self.script.fps,
            control_file=self.root / "world.json",
            dataset_cache=self.root.parent / "cache",
        )
        self._simulate(supervisor, "link", "flows.sandbox.link", link)
        self._simulate(supervisor, "world", "flows.sandbox.world_writer", self._writer)
        for site in sites.values():
            supervisor.add(Program(f"agent-{site.device_id}", site.argv()))
        users = UsersConfig(
            world=self.world,
            agents={camera: site.api_address for camera, site in sites.items()},
            class_names=CLASS_NAMES,
            journal_dir=self.journal_dir,
        )
        self._simulate(supervisor, "users", "flows.sandbox.users", users)
        self._simulate(supervisor, "annotators", "flows.sandbox.annotators", self._annotators(stack))
        self.timeline.note("field_open")
        return sites

    def _simulate(self, supervisor: Supervisor, name: str, module: str, config: Any) -> None:
        path = write_simulator_config(self.root / "simulators" / f"{name}.json", config)
        supervisor.add(Program(name, [sys.executable, "-m", module, str(path)]))

    def _annotators(self, stack: Stack) -> AnnotatorsConfig:
        return AnnotatorsConfig(
            world=self.world,
            url=stack.label_studio_url,
            token=stack.secrets.label_studio_token,
            class_names=CLASS_NAMES,
        )

    def _window(self, number: int, wired: Services) -> None:
        """Let the cameras look for a while. The link is cut in the middle part of the run, dusk falls half-way."""
        self.timeline.note("window_opened", number=number)
        control = self.root / "link.control"
        if number == 2:
            frame = schedule_dusk(self._writer, self.world.drift_camera)
            self.timeline.note("drift", camera=self.world.drift_camera, frame=frame)
        half = self.script.window_s / 2
        time.sleep(half)
        if number == 1:
            set_link(control, up=False)
            self.timeline.note("link_down", camera=OFFLINE_CAMERA)
        elif number == 2:
            set_link(control, up=True)
            self.timeline.note("link_up", camera=OFFLINE_CAMERA)
        time.sleep(half)
        _wait_until(lambda: self._pool_size(wired) >= self.script.min_pool, timeout_s=240, what="enough captures")

    def _pool_size(self, wired: Services) -> int:
        return len(wired.catalog.samples(status=SampleStatus.POOL))

    def _round(self, number: int) -> None:
        self.timeline.note("round_opened", number=number)
        self._runs.run_to_end("curation-round", {"round_number": number}, timeout_s=420)
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
        states = [read_reported(wired, camera) for camera in CAMERAS]
        return [state.release_id if state else None for state in states]

    def _close_field(self, supervisor: Supervisor) -> None:
        """The world ends first, then the people; agents stay to drain their spools."""
        for name in ("world", "users", "annotators"):
            supervisor.remove(name)
            stop_process(self.root, name)
        self.timeline.note("world_ended")

    def _drain(self, wired: Services, sites: dict[str, AgentSite]) -> None:
        """Ingest until every spool is empty and every device has said so."""

        def drained() -> bool:
            self._runs.run_to_end("ingest-captures", timeout_s=120)
            states = [read_reported(wired, camera) for camera in sites]
            return all(s is not None and s.counters.pending + s.counters.feedback_pending == 0 for s in states)

        _wait_until(drained, timeout_s=240, what="the spools to drain")
        self._runs.run_to_end("collect-annotations", timeout_s=120)
        self._runs.run_to_end("supervise-rollout", timeout_s=120)


def cloud_config(stack: Stack, script: DemoScript) -> dict[str, Any]:
    """The demo's `curate.yaml`: the product's settings, with the demo's clock (a second stands for a minute)."""
    root = stack.root
    return {
        "catalog_url": f"sqlite:///{root / 'catalog.db'}",
        "cache_dir": str(root / "model-cache"),
        "key_dir": str(root / "keys"),
        "labels_file": str(LABELS_FILE),
        "bucket": {
            "bucket": stack.bucket,
            "endpoint_url": stack.s3_endpoint,
            "credentials_file": str(stack.admin_credentials),
        },
        "label_studio": label_studio_config(stack),
        "round": {"budget": script.budget, "seed": script.seed, "wait_for_labels_s": 240},
        "schedule": {"ingest_s": 30, "collect_s": 300, "supervise_s": 120},
        "training": {"threads": 1},  # agents and services share the two cores
        "split": {"block_s": 1.0},
        "selection": {"scene_gap_s": 1.2},
        "capture_policy": {"version": "demo", "random_probability": 0.04, "uncertain_budget_fraction": 0.05},
    }


LABELS_FILE = Path(__file__).parents[2] / "configs" / "labels.yaml"


def write_seed_folder(folder: Path, world: WorldConfig, script: DemoScript, data: FashionMnist) -> None:
    """Write the first labelled pictures as a user would bring them: `<class>/<number>.png`."""
    names = load_label_spec(LABELS_FILE).class_names
    seed = seed_samples(world, script.seed_labels, script.seed, data)
    for number, (image, label) in enumerate(zip(seed.images, seed.labels.tolist(), strict=True)):
        target = folder / names[label] / f"{number:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target)


def read_reported(wired: Services, device_id: str) -> ReportedState | None:
    """The device's newest heartbeat, None while there is none."""
    try:
        return ReportedState.from_bytes(wired.store.get(reported_key(device_id)))
    except Error:
        return None


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
