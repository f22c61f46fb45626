"""The local stack of real services: an S3 server, a Prefect server and Label Studio, all on loopback.

Everything lives under one root folder, so any later command, also after a crash, finds and stops what runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from curate.contracts.ids import SAFE_NAME
from curate.errors import AccessDeniedError
from curate.storage.s3 import S3BlobStore, ensure_bucket
from flows.sandbox.ports import find_free_ports, is_port_free
from flows.sandbox.processes import (
    StackError,
    kill_process,
    list_processes,
    load_log_tail,
    load_process,
    log_path,
    running_names,
    signal_process,
    spawn,
    stop_process,
    stop_processes,
)
from flows.sandbox.stack_services import (
    Service,
    describe_service,
    persist_s3_config,
    prepare_service,
    remove_leftovers,
)
from flows.sandbox.stack_state import (
    PORTS,
    S3,
    SERVICES,
    Stack,
    complete_secrets,
    load_stack_file,
    persist_stack,
    plan_ports,
)

DEFAULT_ROOT = Path(".gleaner")

_LOCK_TIMEOUT_S = 30.0
_POLL_S = 0.1
_RELOAD_TIMEOUT_S = 15.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceStatus:
    """How one service, or another process of the stack, does now."""

    name: str
    state: Literal["ready", "not ready", "stopped"]
    pid: int | None
    address: str | None
    log: Path


@dataclass(frozen=True)
class _Request:
    root: Path
    bucket: str
    devices: tuple[str, ...]
    services: tuple[str, ...]
    ports: Mapping[str, int]


def start_stack(
    root: Path = DEFAULT_ROOT,
    devices: Sequence[str] = (),
    *,
    ports: Mapping[str, int] | None = None,
    services: Sequence[str] = SERVICES,
    bucket: str = "gleaner",
) -> Stack:
    """Start what does not run yet and return when all of it works.

    Data, keys, devices and ports of an earlier start under the same root are kept; `devices` adds to them, also
    while the stack runs. `ports` fixes ports by the names in `stack_state.PORTS`. If one service fails, those
    that this call started are stopped again. Raises StackError with the end of the service's log.
    """
    root = root.resolve()
    request = _Request(root, bucket, tuple(devices), tuple(services), dict(ports or {}))
    _verify_request(request)
    with _locked(root):
        known = load_stack_file(root)
        stack = _plan_stack(known, request)
        admitted = known.devices if known is not None else ()
        # A device counts once the server knows it: whatever breaks before, the next start does it again.
        persist_stack(stack.model_copy(update={"devices": admitted}))
        started = _start_services(stack, services)
        if stack.devices != admitted and S3 not in started and load_process(root, S3) is not None:
            _admit_devices(stack)
        persist_stack(stack)
    return stack


def stop_stack(root: Path = DEFAULT_ROOT) -> tuple[str, ...]:
    """Stop everything that runs under the root, services last; returns the names of what ran. Data stays."""
    root = root.resolve()
    if not root.exists():
        return ()
    with _locked(root):
        names = {*running_names(root), *(process.name for process in list_processes(root))}
        stopped = stop_processes(root, names - set(SERVICES))
        stopped += stop_processes(root, SERVICES)
        # What the first of them started while they were being stopped.
        stopped += stop_processes(root, running_names(root))
        _tidy(root)
    return stopped


def load_stack(root: Path = DEFAULT_ROOT) -> Stack:
    """Return the stack under the root, running or not. Raises StackError when there is none."""
    stack = load_stack_file(root.resolve())
    if stack is None:
        raise StackError(f"there is no stack under {root}", hint="start one with 'gleaner up'")
    return stack


def stack_status(root: Path = DEFAULT_ROOT) -> list[ServiceStatus]:
    """Return the state of every service, then of every other process started under the root and not stopped since."""
    root = root.resolve()
    stack = load_stack_file(root)
    services = stack.services if stack is not None else ()
    status = [_service_status(stack, name) for name in services if stack is not None]
    running = running_names(root)
    others = {*running, *(process.name for process in list_processes(root))} - set(services)
    return status + [_process_status(root, name, name in running) for name in sorted(others)]


def restart_service(root: Path, name: str) -> Stack:
    """Stop one service if it runs, start it on the same data and port, and return when it works."""
    stack = load_stack(root)
    _verify_known("service", (name,), stack.services)
    with _locked(stack.root):
        stop_process(stack.root, name)
        remove_leftovers(stack, name)
        _start_services(stack, (name,))
    return stack


def kill_service(root: Path, name: str) -> bool:
    """SIGKILL a service, or any process of the stack, with all its children; False when it did not run."""
    return kill_process(root, name)


def _verify_request(request: _Request) -> None:
    for device in request.devices:
        if not re.fullmatch(SAFE_NAME, device):
            raise StackError(f"{device!r} cannot name a device", hint="use letters, digits, '_' and '-'")
    _verify_known("service", request.services, SERVICES)
    _verify_known("port", request.ports, [port for names in PORTS.values() for port in names])


def _verify_known(kind: str, names: Iterable[str], known: Sequence[str]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise StackError(f"no {kind} is called {', '.join(unknown)}", hint=f"known: {', '.join(known)}")


def _plan_stack(known: Stack | None, request: _Request) -> Stack:
    if known is not None and known.bucket != request.bucket:
        raise StackError(
            f"the bucket under {known.root} is {known.bucket}", hint=f"for {request.bucket} use another root"
        )
    devices = tuple(dict.fromkeys((*(known.devices if known is not None else ()), *request.devices)))
    services = {*request.services, *(known.services if known is not None else ())}
    return Stack(
        root=request.root,
        bucket=request.bucket,
        devices=devices,
        services=tuple(name for name in SERVICES if name in services),
        ports=_choose_ports(request, known.ports if known is not None else {}),
        secrets=complete_secrets(known.secrets if known is not None else None, devices),
    )


def _choose_ports(request: _Request, known: Mapping[str, int]) -> dict[str, int]:
    running = {service for service in SERVICES if load_process(request.root, service) is not None}
    settled = plan_ports(known, request.ports, running=running, is_free=is_port_free)
    missing = [name for names in PORTS.values() for name in names if name not in settled]
    if moved := [name for name in missing if name in known]:
        _logger.warning("earlier ports are taken by other programs, choosing new ones: %s", ", ".join(moved))
    fresh = [port for port in find_free_ports(len(missing) + len(settled)) if port not in settled.values()]
    return settled | dict(zip(missing, fresh, strict=False))


def _start_services(stack: Stack, names: Sequence[str]) -> tuple[str, ...]:
    """Start all at once and wait for all; returns those started here, which any failure stops again."""
    services = [describe_service(stack, name) for name in names]
    started: list[str] = []
    try:
        for service in services:
            if load_process(stack.root, service.name) is None:
                stop_process(stack.root, service.name)  # children that outlived a killed parent hold its port
                prepare_service(stack, service)
                started.append(service.name)
                spawn(
                    stack.root,
                    service.name,
                    service.argv,
                    env=service.env,
                    cwd=service.folder,
                    grace_s=service.grace_s,
                )
        _wait_until_ready(stack, services)
    except BaseException:  # an interrupt, too, must not leave half a stack
        stop_processes(stack.root, started)
        raise
    return tuple(started)


def _wait_until_ready(stack: Stack, services: Iterable[Service]) -> None:
    started_s = time.monotonic()
    waiting = list(services)
    while waiting:
        for service in tuple(waiting):
            if service.is_ready():
                waiting.remove(service)
                if service.name == S3:
                    ensure_bucket(stack.s3_settings())
                _logger.info("%s is ready after %.1f s", service.name, time.monotonic() - started_s)
            elif load_process(stack.root, service.name) is None:
                raise _failure(stack, service, "ended while it was starting")
            elif time.monotonic() - started_s > service.start_timeout_s:
                raise _failure(stack, service, f"does not answer after {service.start_timeout_s:.0f} s")
        time.sleep(_POLL_S)


def _failure(stack: Stack, service: Service, what: str) -> StackError:
    tail = load_log_tail(stack.root, service.name) or "(it wrote nothing)"
    log = log_path(stack.root, service.name)
    return StackError(f"{service.name} {what}. The end of {log}:\n{tail}", hint=service.hint)


def _admit_devices(stack: Stack) -> None:
    """Make a running S3 server read the identities again, and wait until it knows the newest device.

    It merges the file into what it knows: identities are added, but removed only by a restart.
    """
    persist_s3_config(stack)
    signal_process(stack.root, S3, signal.SIGHUP)
    newest = S3BlobStore(stack.s3_settings(stack.device_credentials(stack.devices[-1])))
    deadline_s = time.monotonic() + _RELOAD_TIMEOUT_S
    while not _is_admitted(newest):
        if time.monotonic() > deadline_s:
            raise StackError("the S3 server does not take new devices", hint="restart it: 'gleaner down', 'gleaner up'")
        time.sleep(_POLL_S)


def _is_admitted(store: S3BlobStore) -> bool:
    try:
        store.size("tuf/metadata/root.json")
    except AccessDeniedError:
        return False
    return True


def _service_status(stack: Stack, name: str) -> ServiceStatus:
    process = load_process(stack.root, name)
    if process is None:
        return ServiceStatus(name, "stopped", None, stack.address(name), log_path(stack.root, name))
    ready = describe_service(stack, name).is_ready()
    return ServiceStatus(name, "ready" if ready else "not ready", process.pid, stack.address(name), process.log)


def _process_status(root: Path, name: str, any_runs: bool) -> ServiceStatus:
    process = load_process(root, name)
    if process is not None:
        return ServiceStatus(name, "ready", process.pid, None, process.log)
    # Children that outlived it are not what was started, but `down` still has to stop them.
    return ServiceStatus(name, "not ready" if any_runs else "stopped", None, None, log_path(root, name))


def _tidy(root: Path) -> None:
    with contextlib.suppress(StackError):  # a torn stack.json must not keep anything running
        if (stack := load_stack_file(root)) is not None:
            remove_leftovers(stack, S3)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Let one command at a time start or stop things; the system drops the lock of a killed one."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as file:
        deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() > deadline_s:
                    raise StackError(
                        f"another command is starting or stopping the stack under {root}",
                        hint="wait for it, or end it",
                        retryable=True,
                    ) from exc
                time.sleep(_POLL_S)
        yield
