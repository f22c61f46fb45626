"""How the agent is installed: the unit, the image and the wheel say what is there."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edge_agent.doctor.agent import UNIT

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "configs" / "systemd" / UNIT
DOCKERFILE = ROOT / "configs" / "docker" / "Dockerfile"


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", "\n".join(x for x in DOCKERFILE.read_text().splitlines() if not x.startswith("#")))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def test_the_unit_is_watched_and_has_no_rights() -> None:
    """systemd waits for the agent's word, ends it when it hangs, starts it again, and gives it only its state."""
    found = directives(SERVICE.read_text())
    expected = {
        "Type": "notify",
        "Restart": "always",
        "User": "gleaner-agent",
        "ProtectSystem": "strict",
        "StateDirectory": "gleaner-agent",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "SystemCallFilter": "@system-service",
    }
    assert {key: found[key] for key in expected} == {key: [value] for key, value in expected.items()}
    assert int(found["WatchdogSec"][0]) >= 30
    assert "AF_UNIX" in found["RestrictAddressFamilies"][0]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_itself_finds_no_fault(tmp_path: Path) -> None:
    """systemd-analyze knows every directive of the unit and calls its exposure low."""
    unit = tmp_path / UNIT
    unit.write_text(SERVICE.read_text().replace("/opt/gleaner/bin/gleaner-agent", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60, check=False
    )
    # The user it names need not exist on the machine that tests.
    unknown = [line for line in verified.stderr.splitlines() if UNIT in line and "gleaner-agent: No such" not in line]
    assert unknown == []
    exposure = ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", str(unit)]
    assert subprocess.run(exposure, capture_output=True, timeout=60, check=False).returncode == 0


def test_the_image_copies_what_is_there() -> None:
    """Every path that the Dockerfile copies from the repository exists, and the command it runs is one of ours."""
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from=" not in rest
        for source in shlex.split(rest)[:-1]
    ]
    assert len(copied) >= 6
    assert [source for source in copied if not (ROOT / source).exists()] == []
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,) = [rest for name, rest in instructions() if name == "ENTRYPOINT"]
    assert Path(entry.strip('[]"')).name in scripts


def test_the_image_runs_without_rights() -> None:
    """It runs as a numbered user that is not root, and states that its root may be read-only."""
    (user,) = [rest for name, rest in instructions() if name == "USER"]
    assert all(int(number) > 1000 for number in user.split(":"))
    assert "--read-only" in DOCKERFILE.read_text()
    volumes = [rest for name, rest in instructions() if name == "VOLUME"]
    assert volumes == ["/var/lib/gleaner-agent"]


def test_the_image_has_only_what_a_camera_needs() -> None:
    """Nothing but the agent's requirements and extras is installed, all at pinned versions."""
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert any("--requirement requirements/agent.txt" in rest for rest in installs)
    assert any("--constraint requirements/app.txt" in rest and "[agent" in rest for rest in installs)
    assert not any(word in rest for rest in installs for word in ("cloud", "sandbox", "dev"))


# -- the tests that need nothing but the agent ----------------------------------------------------------------------

AGENT_ONLY = [ROOT / line for line in (ROOT / "tests" / "agent_only.txt").read_text().split()]
OURS = ("edge_agent", "curate.answers", "curate.contracts", "curate.errors", "curate.release", "curate.storage")
NOT_OURS = {"curate.storage.s3"}
"""What needs boto3, which only the cloud has."""
TOOLS = {"hypothesis", "httpx", "prometheus_client", "pytest"}
BUILT_FROM = {"cv2", "google", "grpc", "numpy", "onnxruntime", "paho", "PIL", "pydantic"} | {
    "securesystemslib",
    "starlette",
    "tuf",
    "urllib3",
    "yaml",
}
AGENTS_OWN = ("test_agent_", "test_camera_", "test_interface_", "test_answers_")


def imports(path: Path, seen: set[Path]) -> set[str]:
    """Return the modules that a test file needs as soon as it is imported, through our fakes as well."""
    if path in seen:
        return set()
    seen.add(path)
    found: set[str] = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            found.add(statement.module)
    fakes = {f"tests.fakes.{alias}" for alias in _names_from(path, "tests.fakes")} | {
        name for name in found if name.startswith("tests.")
    }
    for name in fakes:
        other = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        found |= imports(other, seen) if other.exists() else set()
    return found


def _names_from(path: Path, module: str) -> set[str]:
    statements = [s for s in ast.parse(path.read_text()).body if isinstance(s, ast.ImportFrom) and s.module == module]
    return {alias.name for statement in statements for alias in statement.names}


def foreign(path: Path) -> set[str]:
    """Return what a test file needs that a device does not have."""
    needed = imports(path, set())
    known = TOOLS | BUILT_FROM | {"tests"} | set(sys.stdlib_module_names)
    return {
        name
        for name in needed
        if name in NOT_OURS or (name.split(".")[0] not in known and not name.startswith(OURS) and name != "curate")
    }


@pytest.mark.parametrize("path", AGENT_ONLY, ids=lambda path: path.name)
def test_the_agent_s_tests_need_no_cloud(path: Path) -> None:
    """Every test that `make test-agent` runs exists, and imports nothing that only the cloud installs."""
    assert foreign(path) == set()


def test_no_test_of_the_agent_is_forgotten() -> None:
    """Each of the agent's unit tests that could run on a device is in the list."""
    own = [path for path in (ROOT / "tests" / "unit").glob("test_*.py") if path.name.startswith(AGENTS_OWN)]
    assert sorted(path.name for path in own if not foreign(path) and path not in AGENT_ONLY) == []
