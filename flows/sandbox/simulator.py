"""What every simulator process shares: a JSON configuration in argv, and stopping by itself."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from curate.errors import ConfigError

ControlT = TypeVar("ControlT", bound=BaseModel)
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


def load_control_file(path: Path, model: type[ControlT]) -> ControlT:
    """Read what the driver decided while a world runs; a file that does not exist yet decides nothing.

    Raises:
        ConfigError: it cannot be read, or does not fit the model.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return model()
    except (OSError, ValidationError) as exc:
        raise ConfigError(f"the world's control file {path} cannot be used: {exc}") from exc


def persist_control_file(path: Path, control: BaseModel) -> None:
    """Write the control file in one step, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(control.model_dump_json(indent=2) + "\n")
    fresh.replace(path)


def change_control_file(path: Path, model: type[ControlT], **changes: Any) -> None:
    """Decide something anew and leave the rest of the control file as it is.

    Raises:
        ConfigError: what is there cannot be read, or does not fit the model.
    """
    persist_control_file(path, load_control_file(path, model).model_copy(update=changes))


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set. Call from the main thread."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping
