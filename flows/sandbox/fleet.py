"""The demo's cast as processes: worlds, agents, links that can be cut, people, annotators; each with its own file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.sandbox.simulator import SimulatorConfig


@dataclass(frozen=True)
class AgentSite:
    """Where one simulated camera lives: its folder, its ports, its configuration file."""

    device_id: str
    folder: Path
    api_port: int
    bucket_endpoint: str
    """The agent's way to the bucket; for one camera a link that can be cut."""

    @property
    def config_file(self) -> Path:
        """The agent's real `agent.yaml`."""
        return self.folder / "agent.yaml"

    @property
    def frames_dir(self) -> Path:
        """Where the world writes this camera's frames."""
        return self.folder / "frames"

    @property
    def api_address(self) -> str:
        """Address of the agent's HTTP API."""
        return f"http://127.0.0.1:{self.api_port}"

    def argv(self) -> list[str]:
        """Command line of the agent's process."""
        return [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(self.config_file)]


def write_agent_config(
    site: AgentSite, *, bucket: str, credentials_file: Path, root_file: Path, sections: Mapping[str, Any]
) -> None:
    """Write the agent's configuration: what an installer would put on a real device.

    `sections` are the world's: `camera`, and what else goes with it.
    """
    site.folder.mkdir(parents=True, exist_ok=True)
    document = {
        "device_id": site.device_id,
        "state_dir": str(site.folder / "state"),
        "bucket": {
            "kind": "s3",
            "endpoint_url": site.bucket_endpoint,
            "bucket": bucket,
            "credentials_file": str(credentials_file),
            "connect_timeout_s": 3,
            "read_timeout_s": 10,
        },
        "trust": {"root_file": str(root_file)},
        "api": {"host": "127.0.0.1", "port": site.api_port},
        "spool": {"batch_max_captures": 64, "batch_max_age_s": 4},
        "sync": {"interval_s": 2, "heartbeat_interval_s": 4, "max_backoff_s": 8},
        # People say in minutes here what takes them days elsewhere.
        "feedback": {"user_per_minute": 1200, "user_burst": 600, "device_per_minute": 1200, "device_burst": 600},
        "update": {"interval_s": 3, "trial_s": 10, "trial_frames": 30},
        "log": {"file": str(site.folder / "agent.log.jsonl")},
        **sections,
    }
    site.config_file.write_text(yaml.safe_dump(document, sort_keys=False))


def write_simulator_config(path: Path, config: SimulatorConfig) -> Path:
    """Write a simulator's JSON configuration and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.model_dump_json(indent=1))
    return path
