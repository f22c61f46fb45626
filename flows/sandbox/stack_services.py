"""How each real service of the local stack is started, and how to see that it is ready."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flows.sandbox.ports import LOOPBACK
from flows.sandbox.processes import StackError
from flows.sandbox.stack_access import s3_config
from flows.sandbox.stack_state import LABEL_STUDIO_SERVER, PORTS, PREFECT, S3, Stack, data_path, persist_text

_PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Probe:
    """A GET request that answers 200, with `contains` in its body, once the service works."""

    port: int
    path: str
    contains: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def passes(self) -> bool:
        """Ask once."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=_PROBE_TIMEOUT_S)
        try:
            connection.request("GET", self.path, headers=dict(self.headers))
            response = connection.getresponse()
            return response.status == 200 and self.contains.encode() in response.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class Service:
    """One service as a command, with what tells that it is up."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    folder: Path
    probes: tuple[Probe, ...]
    start_timeout_s: float
    grace_s: float
    hint: str

    def is_ready(self) -> bool:
        """Return whether every probe passes now."""
        return all(probe.passes() for probe in self.probes)


def describe_service(stack: Stack, name: str) -> Service:
    """Return how one service is started and probed. Raises StackError when it is not installed."""
    return _DESCRIBE[name](stack, data_path(stack.root, name))


def prepare_service(stack: Stack, service: Service) -> None:
    """Write what the service reads when it starts."""
    service.folder.mkdir(parents=True, exist_ok=True)
    if service.name == S3:
        persist_s3_config(stack)
    if service.name == LABEL_STUDIO_SERVER:
        _copy_migrated_database(service)


def persist_s3_config(stack: Stack) -> Path:
    """Write the identities that the S3 server knows; returns the file."""
    path = _s3_config_path(stack)
    keys = {name: key.model_dump() for name, key in stack.secrets.s3.items()}
    persist_text(path, json.dumps(s3_config(stack.bucket, stack.devices, keys), indent=2), mode=0o600)
    return path


def _s3_config_path(stack: Stack) -> Path:
    return stack.root / "data" / "s3-identities.json"


def remove_leftovers(stack: Stack, name: str) -> None:
    """Remove what a stopped service leaves outside the root: SeaweedFS puts its sockets into /tmp."""
    for port in (stack.ports[port] for port in PORTS[name] if name == S3):
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)


def _describe_s3(stack: Stack, folder: Path) -> Service:
    ports = stack.ports
    argv = [
        _program("weed"),
        "server",
        f"-dir={folder}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-master.port={ports['s3-master']}",
        f"-master.port.grpc={ports['s3-master-grpc']}",
        f"-volume.port={ports['s3-volume']}",
        f"-volume.port.grpc={ports['s3-volume-grpc']}",
        "-filer",
        f"-filer.port={ports['s3-filer']}",
        f"-filer.port.grpc={ports['s3-filer-grpc']}",
        "-s3",
        f"-s3.port={ports['s3']}",
        f"-s3.port.grpc={ports['s3-grpc']}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={_s3_config_path(stack)}",
        "-volume.max=64",
        "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false",
        # A lone master has nobody to agree with: resuming its election costs 9 to 18 s at every restart.
        "-master.resumeState=false",
        "-master.electionTimeout=1s",
    ]
    return Service(
        name=S3,
        argv=tuple(argv),
        env={},
        folder=folder,
        # The gateway answers before the store can take data; a file id is only assigned on a writable volume.
        probes=(Probe(ports["s3"], "/healthz"), Probe(ports["s3-master"], "/dir/assign", contains='"fid"')),
        start_timeout_s=60.0,
        # On SIGTERM it waits 15 s for streams that never close. All that it acknowledged is in the system's hands
        # by then, so killing it loses nothing.
        grace_s=0.5,
        hint="SeaweedFS needs a writable folder and free disk space",
    )


def _describe_prefect(stack: Stack, folder: Path) -> Service:
    port = stack.ports[PREFECT]
    env = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Else the pages look for the API on the default port.
        "PREFECT_SERVER_UI_API_URL": f"{stack.address(PREFECT)}/api",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_CLI_COLORS": "false",
        # On SQLite, marking a run as late waits for a lock that it holds itself: the whole server stands for 60 s.
        "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    }
    return Service(
        name=PREFECT,
        argv=(sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)),
        env=env,
        folder=folder,
        probes=(Probe(port, "/api/health"),),
        start_timeout_s=120.0,
        grace_s=10.0,
        hint="Prefect migrates its database at the first start; a broken one lies in data/prefect",
    )


def _describe_label_studio(stack: Stack, folder: Path) -> Service:
    port, known = stack.ports[LABEL_STUDIO_SERVER], stack.secrets
    program = _label_studio_program()
    env = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_USERNAME": known.label_studio_username,
        "LABEL_STUDIO_PASSWORD": known.label_studio_password,
        "LABEL_STUDIO_USER_TOKEN": known.label_studio_token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "SSRF_PROTECTION_ENABLED": "false",  # the bucket it shows images from is on loopback
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LOG_LEVEL": "WARNING",
    }
    token = {"Authorization": f"Token {known.label_studio_token}"}
    return Service(
        name=LABEL_STUDIO_SERVER,
        argv=(program, "start", "--no-browser", "--port", str(port), "--internal-host", LOOPBACK),
        env=env,
        folder=folder,
        probes=(Probe(port, "/health"), Probe(port, "/api/current-user/whoami", headers=token)),
        start_timeout_s=240.0,
        grace_s=5.0,
        hint="the first start migrates the database; if it was broken off, remove data/label-studio and start again",
    )


_DESCRIBE = {S3: _describe_s3, PREFECT: _describe_prefect, LABEL_STUDIO_SERVER: _describe_label_studio}


def _copy_migrated_database(service: Service) -> None:
    """Begin with the empty database that `make install` migrated: it saves half a minute of the first start."""
    template = Path(service.argv[0]).resolve().parent.parent / "template" / "label_studio.sqlite3"
    database = service.folder / "label_studio.sqlite3"
    if database.exists() or not template.exists():
        return
    draft = database.with_suffix(".draft")
    shutil.copyfile(template, draft)
    with contextlib.closing(sqlite3.connect(draft)) as connection:
        # Kept in the file: readers and the one writer then do not lock each other out.
        connection.execute("PRAGMA journal_mode=WAL")
    draft.replace(database)


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StackError(f"the program {name} is not installed", hint="run 'make install'")
    return found


def _label_studio_program() -> str:
    given = os.environ.get("GLEANER_LABEL_STUDIO_BIN")
    beside = Path(sys.prefix).parent / ".venv-label-studio" / "bin" / "label-studio"
    found = given or (str(beside) if beside.exists() else shutil.which("label-studio"))
    if found is None or not Path(found).exists():
        raise StackError(
            f"Label Studio is not installed at {found or beside}",
            hint="run 'make install', or name the program in GLEANER_LABEL_STUDIO_BIN",
        )
    return found
