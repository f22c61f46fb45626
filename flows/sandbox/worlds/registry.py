"""The worlds that the demo can play. A third one is one more line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from curate.errors import ConfigError
from flows.sandbox.script import DemoScript
from flows.sandbox.worlds.base import DemoWorld


@dataclass(frozen=True)
class WorldEntry:
    """How long a world's demo is by default, and how to open it."""

    script: DemoScript
    load: Callable[[DemoScript, Path], DemoWorld]
    """From the script and a folder for what has to be fetched."""


def _load_fashion(script: DemoScript, cache: Path) -> DemoWorld:
    from flows.sandbox.worlds.fashion import FashionWorld  # noqa: PLC0415 (a world loads when it is played)

    return FashionWorld.load(script, cache)


def _load_plaza(script: DemoScript, cache: Path) -> DemoWorld:
    from flows.sandbox.worlds.plaza import PlazaWorld  # noqa: PLC0415

    return PlazaWorld.load(script, cache)


WORLDS: Mapping[str, WorldEntry] = {
    "fashion": WorldEntry(DemoScript(world="fashion"), _load_fashion),
    "plaza": WorldEntry(
        DemoScript(world="plaza", seed_labels=100, budget=30, fps=10.0, round_frame_step=3, window_s=50.0), _load_plaza
    ),
}


def find_world(name: str) -> WorldEntry:
    """Return a world by name.

    Raises:
        ConfigError: there is no such world.
    """
    if name not in WORLDS:
        raise ConfigError(f"there is no world called {name}", hint=f"there are {', '.join(WORLDS)}")
    return WORLDS[name]
