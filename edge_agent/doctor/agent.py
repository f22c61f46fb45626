"""The agent's own parts: trust, model, port, switches, and the service manager."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from curate.errors import AgentError, Error
from edge_agent.config.agent import AgentConfig
from edge_agent.doctor.findings import Finding, fail, ok, warn
from edge_agent.errors import CorruptFileError
from edge_agent.models.inference import load_model
from edge_agent.models.self_check import load_golden, verify_model
from edge_agent.models.slots import Slots
from edge_agent.switches import Switches

UNIT: Final = "gleaner-agent.service"
_MAX_ROOT_BYTES: Final = 1024 * 1024
_TIMEOUT_S: Final = 5.0


def examine_trust(root_file: Path, now: datetime) -> Iterator[Finding]:
    """Look whether the root of trust is there, and one, and has not run out."""
    advice = "Copy the root.json that starting the release repository returned to trust.root_file."
    try:
        with root_file.open("rb") as file:
            signed = json.loads(file.read(_MAX_ROOT_BYTES))["signed"]
        expires = datetime.fromisoformat(str(signed["expires"]).replace("Z", "+00:00")).astimezone(UTC)
    except OSError as exc:
        yield fail("trust", f"{root_file} cannot be read: {exc.strerror}", advice)
    except (ValueError, KeyError, TypeError) as exc:
        yield fail("trust", f"{root_file} is no TUF root: {exc}", advice)
    else:
        if signed.get("_type") != "root":
            yield fail("trust", f"{root_file} is signed metadata of another kind than a root", advice)
            return
        text = f"root version {signed.get('version')}, good until {expires:%Y-%m-%d}"
        # Run out, it is still the start of the walk to the bucket's newest root.
        yield (
            ok("trust", text)
            if expires > now
            else warn("trust", f"{text}, which has passed", "Fine while the bucket has a newer root; renew it there.")
        )


def examine_model(config: AgentConfig) -> Iterator[Finding]:
    """Load the committed model as a start would, and let it answer its golden inputs on this processor."""
    slots = Slots(config.state_dir / "slots")
    try:
        name = slots.committed()
    except AgentError as exc:
        yield fail("model", str(exc), "Check the disk.")
        return
    if name is None:
        yield warn("model", "none is installed yet", "The running agent fetches what the cloud assigns.")
        return
    try:
        content = slots.load(name)
        model = load_model(content.model, content.manifest, providers=config.inference.providers)
        golden = load_golden(content.golden, content.manifest.model)
        verify_model(model, golden)
    except CorruptFileError as exc:
        yield fail(
            "model", f"slot {name} is damaged: {exc}", "The agent falls back and fetches it anew; check the disk."
        )
    except Error as exc:
        hint = "Assign another release; see `updates` in `gleaner-agent status`."
        yield fail("model", str(exc), "Check the disk." if exc.retryable else hint)
    else:
        count = len(golden.images)
        yield ok(
            "model", f"release {model.release_id} answers its {count} golden inputs as it should on this processor"
        )


def examine_port(host: str, port: int) -> Iterator[Finding]:
    """See whether the API's port is free; only sensible while no agent runs."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as exc:
        yield fail(
            "port", f"cannot listen on {host}:{port}: {exc.strerror}", f"`ss -ltnp | grep {port}` tells who does."
        )
    else:
        yield ok("port", f"{host}:{port} is free")


def examine_switches(state_dir: Path) -> Iterator[Finding]:
    """Tell when nothing is kept because somebody said so."""
    if not Switches(state_dir / "switches.json").state().capture_allowed:
        yield warn(
            "switch", "capture is off: nothing is kept", "`gleaner-agent switch capture on` when it may be kept."
        )


def examine_service_manager() -> Iterator[Finding]:
    """See whether systemd starts the agent anew when it dies or hangs."""
    if not Path("/run/systemd/system").is_dir() or (systemctl := shutil.which("systemctl")) is None:
        yield warn("service", "no systemd here to start the agent again", "See that something else does.")
        return
    command = [systemctl, "show", UNIT, "--property=LoadState,WatchdogUSec,Restart"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    yield judge_unit(dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line))


def judge_unit(properties: dict[str, str]) -> Finding:
    """Judge what systemd says of the agent's unit."""
    advice = "Install configs/systemd/gleaner-agent.service, then `systemctl daemon-reload`."
    if properties.get("LoadState") != "loaded":
        return warn("service", f"{UNIT} is not installed", advice)
    if properties.get("WatchdogUSec") in {None, "", "0", "infinity"} or properties.get("Restart") in {None, "no"}:
        return warn("service", f"{UNIT} does not watch the agent, or does not start it again", advice)
    return ok("service", f"{UNIT} watches the agent ({properties['WatchdogUSec']}) and starts it again")
