"""What the local stack remembers between two commands: addresses in `stack.json`, secrets in `secrets.json`."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curate.storage.s3_settings import S3Settings
from flows.sandbox.ports import LOOPBACK
from flows.sandbox.processes import StackError
from flows.sandbox.stack_access import ADMIN, LABEL_STUDIO, device_identity

S3, PREFECT, LABEL_STUDIO_SERVER = "s3", "prefect", "label-studio"
SERVICES = (S3, PREFECT, LABEL_STUDIO_SERVER)
PORTS = {
    S3: (
        "s3",
        "s3-grpc",
        "s3-master",
        "s3-master-grpc",
        "s3-volume",
        "s3-volume-grpc",
        "s3-filer",
        "s3-filer-grpc",
    ),
    PREFECT: ("prefect",),
    LABEL_STUDIO_SERVER: ("label-studio",),
}
"""The ports each service listens on; the one it is known by has the service's name."""


class StackState(BaseModel):
    """The content of `stack.json`: nothing secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bucket: str
    devices: tuple[str, ...]
    services: tuple[str, ...]
    ports: dict[str, int]


class S3Key(BaseModel):
    """One pair of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    access_key: str
    secret_key: str = Field(repr=False)


class StackSecrets(BaseModel):
    """The content of `secrets.json`. Generated once: services keep what they were first started with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    s3: dict[str, S3Key]
    label_studio_username: str
    label_studio_password: str = Field(repr=False)
    label_studio_token: str = Field(repr=False)


class Stack(BaseModel):
    """Addresses and credentials of a local stack, started or not."""

    model_config = ConfigDict(frozen=True)

    root: Path
    bucket: str
    devices: tuple[str, ...]
    services: tuple[str, ...]
    ports: dict[str, int]
    secrets: StackSecrets = Field(repr=False)

    @property
    def s3_endpoint(self) -> str:
        """Address of the S3 server."""
        return self.address(S3)

    @property
    def prefect_ui_url(self) -> str:
        """Address of Prefect's pages."""
        return self.address(PREFECT)

    @property
    def prefect_api_url(self) -> str:
        """Address of Prefect's API."""
        return f"{self.address(PREFECT)}/api"

    @property
    def label_studio_url(self) -> str:
        """Address of Label Studio, pages and API."""
        return self.address(LABEL_STUDIO_SERVER)

    @property
    def admin_credentials(self) -> Path:
        """File with the keys that may do everything in the bucket."""
        return credentials_path(self.root, ADMIN)

    @property
    def label_studio_credentials(self) -> Path:
        """File with the keys that Label Studio uses to show captures."""
        return credentials_path(self.root, LABEL_STUDIO)

    def device_credentials(self, device_id: str) -> Path:
        """Return the file with one device's keys. Raises StackError for a device the stack does not know."""
        if device_id not in self.devices:
            raise StackError(f"the stack knows no device {device_id}", hint="give it when the stack is started")
        return credentials_path(self.root, device_identity(device_id))

    def s3_settings(self, credentials: Path | None = None) -> S3Settings:
        """Return how to reach the bucket, with the admin's keys unless others are given."""
        return S3Settings(
            bucket=self.bucket,
            endpoint_url=self.s3_endpoint,
            credentials_file=credentials or self.admin_credentials,
        )

    def prefect_env(self) -> dict[str, str]:
        """Return the environment of a process that runs flows against this stack's Prefect server."""
        return {
            "PREFECT_HOME": str(data_path(self.root, PREFECT)),
            "PREFECT_API_URL": self.prefect_api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # How often the worker looks for runs that are due. A minute of the demo is an hour.
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "DO_NOT_TRACK": "1",
        }

    def address(self, service: str) -> str:
        """Return the address a service is known by."""
        return f"http://{LOOPBACK}:{self.ports[service]}"


def data_path(root: Path, service: str) -> Path:
    """Where a service keeps its data."""
    return root / "data" / service


def credentials_path(root: Path, identity: str) -> Path:
    """Where the keys of one S3 identity lie, readable by this user only."""
    return root / "credentials" / f"{identity}.json"


def load_stack_file(root: Path) -> Stack | None:
    """Return the stack described under the root, or None when there is none. Raises StackError when unreadable."""
    if not (root / "stack.json").exists():
        return None
    try:
        state = StackState.model_validate_json((root / "stack.json").read_bytes())
        known = StackSecrets.model_validate_json((root / "secrets.json").read_bytes())
    except (OSError, ValidationError) as exc:
        # The parser's message may quote the file, and one of them holds secrets.
        raise StackError(
            f"cannot read the stack under {root}: {type(exc).__name__}",
            hint=f"'gleaner down' stops what runs; then remove {root} to start afresh",
        ) from None
    return Stack(root=root, secrets=known, **state.model_dump())


def persist_stack(stack: Stack) -> None:
    """Write `stack.json`, `secrets.json` and one credentials file an identity; each whole or not at all."""
    # Secrets first: a stack.json promises that they exist.
    persist_text(stack.root / "secrets.json", stack.secrets.model_dump_json(indent=2), mode=0o600)
    for identity, key in stack.secrets.s3.items():
        persist_text(credentials_path(stack.root, identity), key.model_dump_json(), mode=0o600)
    state = stack.model_dump(include=set(StackState.model_fields), mode="json")
    persist_text(stack.root / "stack.json", json.dumps(state, indent=2), mode=0o644)


def complete_secrets(known: StackSecrets | None, devices: Iterable[str]) -> StackSecrets:
    """Return the known secrets with new ones for whoever has none."""
    identities = (ADMIN, LABEL_STUDIO, *(device_identity(device) for device in devices))
    keys = dict(known.s3) if known is not None else {}
    keys.update({name: _new_key() for name in identities if name not in keys})
    if known is not None:
        return known.model_copy(update={"s3": keys})
    return StackSecrets(
        s3=keys,
        label_studio_username="gleaner@example.com",
        label_studio_password=secrets.token_urlsafe(16),
        label_studio_token=secrets.token_hex(20),
    )


def plan_ports(
    known: Mapping[str, int],
    given: Mapping[str, int],
    *,
    running: Collection[str],
    is_free: Callable[[int], bool],
) -> dict[str, int]:
    """Return the ports that are settled; those that are left out may be any free ones.

    Running services keep theirs, and so do stopped ones while nobody else took it: others wrote the address down.
    Raises StackError when a given port cannot be had.
    """
    settled: dict[str, int] = {}
    for service, names in PORTS.items():
        for name in names:
            wanted = given.get(name, known.get(name))
            if wanted is None:
                continue
            if service in running and name in known:
                if wanted != known[name]:
                    raise StackError(f"{service} runs on port {known[name]}, not {wanted}", hint="stop it first")
                settled[name] = wanted
            elif is_free(wanted) and wanted not in settled.values():
                settled[name] = wanted
            elif name in given:
                raise StackError(f"port {wanted} for {name} is taken", hint="give another, or let one be chosen")
    return settled


def persist_text(path: Path, text: str, *, mode: int) -> None:
    """Write a small file whole or not at all, never readable by more than `mode` allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _new_key() -> S3Key:
    return S3Key(access_key=secrets.token_hex(10).upper(), secret_key=secrets.token_urlsafe(30))
