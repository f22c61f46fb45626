"""What every simulator process shares: a JSON configuration in argv, and stopping by itself."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from curate.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="SimulatorConfig")


class SimulatorConfig(BaseModel):
    """Base of the simulators' configurations; written by the demo driver, read once at start."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def load_simulator_config(argv: list[str], model: type[ConfigT]) -> ConfigT:
    """Read the configuration file named by the only argument.

    Raises:
        ConfigError: no such file, or it does not fit the model.
    """
    if len(argv) != 1:
        raise ConfigError("expected one argument: the path of a JSON configuration")
    try:
        return model.model_validate_json(Path(argv[0]).read_bytes())
    except (OSError, ValidationError) as exc:
        raise ConfigError(f"cannot use {argv[0]}: {exc}") from exc


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set. Call from the main thread."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping
