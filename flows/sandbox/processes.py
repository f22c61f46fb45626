"""Processes of the local stack: started detached, found again by anyone, stopped with all their children.

Two traces lead to a process. `run/<name>.json` records its id with the moment it was created, so that a recycled
id is never signalled. And every process carries two environment variables that its children inherit: they lead
to children that left the process group, and to processes whose starter died before it wrote the record.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from curate.errors import Error

_STACK_MARK = "GLEANER_STACK"
_NAME_MARK = "GLEANER_PROCESS"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# A person's own settings for these tools must not leak into a stack that brings its own.
_FOREIGN_PREFIXES = ("PREFECT_", "LABEL_STUDIO_", "AWS_")
_KILL_TIMEOUT_S = 10.0
# Boot time, from which it is derived, wavers by a second; ids are not recycled that soon.
_CREATE_TIME_TOLERANCE_S = 2.0

# Our own children stay here until they end: a dropped handle could not be waited for, and they would stay zombies.
_children: list[subprocess.Popen[bytes]] = []


class StackError(Error):
    """The local stack, or a process of it, cannot be started, found or stopped."""


@dataclass(frozen=True)
class ManagedProcess:
    """One process that `spawn` started; `create_time_s` tells it from a later one with the same id."""

    name: str
    pid: int
    create_time_s: float
    log: Path
    grace_s: float

    def is_running(self) -> bool:
        """Return whether exactly this process still runs; a zombie does not."""
        return _find(self.pid, self.create_time_s) is not None


def spawn(
    root: Path,
    name: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    grace_s: float = 10.0,
) -> ManagedProcess:
    """Start a detached process in a session of its own; its output goes to `logs/<name>.log`.

    `env` is laid over the inherited environment. `grace_s` is how long a later stop waits before it kills.
    Raises StackError when a process of that name runs already or the program cannot be started.
    """
    root = root.resolve()
    if not _NAME.fullmatch(name):
        raise StackError(f"{name!r} cannot name a process", hint="use letters, digits, '_', '-' and '.'")
    if running := load_process(root, name):
        raise StackError(f"{name} runs already (process {running.pid})", hint="stop it first")
    log = log_path(root, name)
    for folder in (log.parent, _run_folder(root)):
        folder.mkdir(parents=True, exist_ok=True)
    child = _start(argv, {**_inherited(), **(env or {}), _STACK_MARK: str(root), _NAME_MARK: name}, cwd, log)
    process = ManagedProcess(name, child.pid, _create_time(child.pid), log, grace_s)
    _persist_record(root, process)
    return process


def load_process(root: Path, name: str) -> ManagedProcess | None:
    """Return the recorded process of that name if it still runs."""
    process = _load_record(_run_folder(root.resolve()) / f"{name}.json")
    return process if process is not None and process.is_running() else None


def list_processes(root: Path) -> tuple[ManagedProcess, ...]:
    """Return all recorded processes, running or not, by name."""
    records = (_load_record(path) for path in sorted(_run_folder(root.resolve()).glob("*.json")))
    return tuple(record for record in records if record is not None)


def signal_process(root: Path, name: str, number: signal.Signals) -> None:
    """Send one signal to the process itself, not to its children. Raises StackError when it does not run."""
    process = load_process(root, name)
    if process is None:
        raise StackError(f"{name} does not run")
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def stop_process(root: Path, name: str) -> bool:
    """Ask the process and all below it to end, then kill what is left; False when nothing ran."""
    return bool(_stop(root.resolve(), [name]))


def stop_processes(root: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Stop several at once; returns the names of those that ran."""
    return _stop(root.resolve(), sorted(set(names)))


def kill_process(root: Path, name: str) -> bool:
    """SIGKILL the process and all below it at once, as a crash would; False when nothing ran. The record stays."""
    root = root.resolve()
    ran = bool(_members(root, name))
    _kill_all(root, [name])
    return ran


def running_names(root: Path) -> tuple[str, ...]:
    """Return every name under which something of this stack still runs, recorded or not, children included."""
    root = root.resolve()
    names = {record.name for record in list_processes(root) if _members(root, record.name)}
    names.update(name for _, name in _marked(root))
    return tuple(sorted(names))


def log_path(root: Path, name: str) -> Path:
    """Where the output of a process goes."""
    return root / "logs" / f"{name}.log"


def load_log_tail(root: Path, name: str, *, max_lines: int = 20, max_bytes: int = 16_384) -> str:
    """Return the last lines a process wrote; empty when it wrote none."""
    path = log_path(root, name)
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - max_bytes))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-max_lines:])


def _start(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, log: Path) -> subprocess.Popen[bytes]:
    _reap()
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as exc:
        raise StackError(f"cannot start {argv[0]}: {exc}", hint="is it installed? run 'make install'") from exc
    _children.append(child)
    return child


def _reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]


def _inherited() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_PREFIXES)}
    # The stack lives on loopback; a proxy set for the outside world cannot reach it.
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, (env.get(name), "127.0.0.1", "localhost")))
    env["PYTHONUNBUFFERED"] = "1"
    return env


def _stop(root: Path, names: Sequence[str]) -> tuple[str, ...]:
    grace_s = {record.name: record.grace_s for record in list_processes(root)}
    members = {name: found for name in names if (found := _members(root, name))}
    for process in (process for found in members.values() for process in found):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    asked_s = time.monotonic()
    for name in sorted(members, key=lambda name: grace_s.get(name, 0.0)):
        psutil.wait_procs(members[name], timeout=max(0.0, asked_s + grace_s.get(name, 0.0) - time.monotonic()))
        _kill_all(root, [name])
    for name in names:
        (_run_folder(root) / f"{name}.json").unlink(missing_ok=True)
    _reap()
    return tuple(members)


def _kill_all(root: Path, names: Sequence[str]) -> None:
    """Kill until nothing is found: a process may fork between the look and the blow."""
    deadline_s = time.monotonic() + _KILL_TIMEOUT_S
    while found := [process for name in names for process in _members(root, name)]:
        if time.monotonic() > deadline_s:
            pids = ", ".join(str(process.pid) for process in found)
            raise StackError(f"{', '.join(names)}: cannot end process {pids}", hint="end it by hand, then try again")
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1.0)
    _reap()


def _members(root: Path, name: str) -> list[psutil.Process]:
    """Return the live processes behind a name: the recorded one, its group, its children, and all that are marked."""
    found = {process for process, marked_name in _marked(root) if marked_name == name}
    record = _load_record(_run_folder(root) / f"{name}.json")
    leader = _find(record.pid, record.create_time_s) if record is not None else None
    if leader is not None:
        found.add(leader)
        with contextlib.suppress(psutil.Error):
            found.update(process for process in leader.children(recursive=True) if _is_alive(process))
        found.update(_group(leader.pid))
    return [process for process in found if process.pid != os.getpid()]


def _marked(root: Path) -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        try:
            env = process.environ()
        except (psutil.Error, OSError):  # another user's process, or one that just ended
            continue
        if env.get(_STACK_MARK) == str(root) and _is_alive(process) and process.pid != os.getpid():
            yield process, env.get(_NAME_MARK, "")


def _group(group_id: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getpgid(process.pid) == group_id and _is_alive(process):
                yield process


def _find(pid: int, create_time_s: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - create_time_s) < _CREATE_TIME_TOLERANCE_S
    except psutil.Error:
        return None
    return process if same and _is_alive(process) else None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _create_time(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # it ended at once; whoever waits for it will read why in its log
        return 0.0


def _run_folder(root: Path) -> Path:
    return root / "run"


def _persist_record(root: Path, process: ManagedProcess) -> None:
    path = _run_folder(root) / f"{process.name}.json"
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({**asdict(process), "log": str(process.log)}), encoding="utf-8")
    draft.replace(path)


def _load_record(path: Path) -> ManagedProcess | None:
    """Return None for a missing or torn record: the marks find the process all the same."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return ManagedProcess(
            str(values["name"]),
            int(values["pid"]),
            float(values["create_time_s"]),
            Path(values["log"]),
            float(values["grace_s"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
