"""The pinned requirements: complete, exact, and the same versions on the camera as in the cloud."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_REPOSITORY = Path(__file__).resolve().parents[2]
_FOLDER = _REPOSITORY / "requirements"


def _requirements(file_name: str) -> list[Requirement]:
    lines = (_FOLDER / file_name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _pins(file_name: str) -> dict[str, str]:
    return {canonicalize_name(item.name): str(item.specifier) for item in _requirements(file_name)}


def _with_all_below(requirement: Requirement, seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """Yield the names of what a requirement brings on this platform, itself first."""
    node = (canonicalize_name(requirement.name), frozenset(requirement.extras))
    if node in seen:
        return
    seen.add(node)
    yield node[0]
    for text in distribution(requirement.name).requires or ():
        child = Requirement(text)
        extras = requirement.extras or {""}
        if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
            yield from _with_all_below(child, seen)


@pytest.mark.parametrize("name", ["app", "agent", "label-studio"])
def test_every_requirement_is_pinned_once_from_any_index(name: str) -> None:
    """Each line is one exact public version: no range, no option, no address, no local build."""
    requirements = _requirements(f"{name}.txt")
    assert len(_pins(f"{name}.txt")) == len(requirements) > 0
    for item in requirements:
        (pin,) = item.specifier
        assert pin.operator == "=="
        assert "+" not in pin.version
        assert item.url is None


@pytest.mark.parametrize("name", ["app", "agent", "label-studio"])
def test_what_was_asked_for_is_pinned(name: str) -> None:
    """Whatever an .in file asks for is in the .txt file, within the asked range."""
    pins = _pins(f"{name}.txt")
    for asked in _requirements(f"{name}.in"):
        assert asked.specifier.contains(pins[canonicalize_name(asked.name)].removeprefix("=="))


def test_the_camera_gets_the_versions_of_the_cloud_and_all_it_needs() -> None:
    """agent.txt is exactly what agent.in brings, at the versions that app.txt pins."""
    agent, app, seen = _pins("agent.txt"), _pins("app.txt"), set[tuple[str, frozenset[str]]]()
    needed = {name for asked in _requirements("agent.in") for name in _with_all_below(asked, seen)}

    assert set(agent) == needed
    assert agent == {name: app[name] for name in agent}


@pytest.mark.parametrize(("extra", "file_name"), [("agent", "agent.txt"), ("cloud", "app.txt"), ("dev", "app.txt")])
def test_the_pins_satisfy_the_project(extra: str, file_name: str) -> None:
    """Every dependency that pyproject.toml names for a part is pinned in that part's file, within its range."""
    project = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = _pins(file_name)
    declared = map(Requirement, [*project["dependencies"], *project["optional-dependencies"][extra]])
    for item in declared:
        if canonicalize_name(item.name) != project["name"]:
            assert item.specifier.contains(pins[canonicalize_name(item.name)].removeprefix("=="))
