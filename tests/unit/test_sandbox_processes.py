"""Processes of the local stack: whoever asks finds them all, and never signals a stranger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.sandbox.processes import (
    StackError,
    kill_process,
    list_processes,
    load_log_tail,
    load_process,
    running_names,
    spawn,
    stop_process,
    stop_processes,
)

_SLEEP = ("sleep", "60")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    stop_processes(tmp_path, running_names(tmp_path))


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen within a minute"
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _written_pid(path: Path) -> int:
    _wait_for(lambda: path.exists() and path.read_text().strip().isdigit())
    return int(path.read_text())


def test_a_spawned_process_is_found_again_by_name_and_its_output_is_kept(root: Path) -> None:
    """Any later command finds a process by name, and reads in its log what it wrote."""
    process = spawn(root, "echo", ["sh", "-c", "echo $GREETING; exec sleep 60"], env={"GREETING": "hello"})

    assert load_process(root, "echo") == process
    assert process.is_running()
    assert running_names(root) == ("echo",)
    _wait_for(lambda: load_log_tail(root, "echo") == "hello")


def test_stopping_ends_children_that_left_the_process_group(root: Path) -> None:
    """A child in a session of its own is stopped with its parent: it carries the marks of the stack."""
    pid_file = root / "pid"
    spawn(root, "parent", ["sh", "-c", f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 60' & exec sleep 60"])
    child = _written_pid(pid_file)

    assert stop_process(root, "parent")
    assert not _is_alive(child)
    assert running_names(root) == ()
    assert list_processes(root) == ()


def test_children_of_a_dead_parent_are_still_found_and_stopped(root: Path) -> None:
    """A parent that was killed alone leaves orphans; a stop by its name ends them."""
    pid_file = root / "pid"
    parent = spawn(root, "parent", ["sh", "-c", f"setsid sleep 60 & echo $! > {pid_file}; exec sleep 60"])
    child = _written_pid(pid_file)
    os.kill(parent.pid, 9)
    _wait_for(lambda: load_process(root, "parent") is None)

    assert running_names(root) == ("parent",)
    assert stop_process(root, "parent")
    assert not _is_alive(child)


def test_kill_ends_a_process_and_its_children_at_once(root: Path) -> None:
    """A kill reaches the whole tree without asking, and keeps the record of what was there."""
    pid_file = root / "pid"
    script = f"trap '' TERM; sleep 60 & echo $! > {pid_file}; wait"
    parent = spawn(root, "parent", ["sh", "-c", script])
    child = _written_pid(pid_file)

    assert kill_process(root, "parent")
    assert not _is_alive(child)
    assert not parent.is_running()
    assert load_process(root, "parent") is None
    assert not kill_process(root, "parent")


def test_a_process_that_ignores_the_request_is_killed_after_its_grace(root: Path) -> None:
    """SIGTERM is a request; after the grace the process ends all the same."""
    spawn(root, "deaf", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"], grace_s=0.3)
    _wait_for(lambda: load_log_tail(root, "deaf") == "ready")

    started_s = time.monotonic()
    assert stop_process(root, "deaf")
    assert time.monotonic() - started_s >= 0.3
    assert running_names(root) == ()


def test_a_recycled_process_id_is_never_signalled(root: Path) -> None:
    """A record whose process id now belongs to a stranger leads nowhere: the stranger keeps running."""
    stranger = subprocess.Popen(_SLEEP, start_new_session=True)
    try:
        process = spawn(root, "ours", _SLEEP)
        kill_process(root, "ours")
        record = root / "run" / "ours.json"
        values = json.loads(record.read_text())
        earlier_s = values["create_time_s"] - 60
        record.write_text(json.dumps({**values, "pid": stranger.pid, "create_time_s": earlier_s}))

        assert load_process(root, "ours") is None
        assert not stop_process(root, "ours")
        assert not kill_process(root, "ours")
        assert stranger.poll() is None
        assert not process.is_running()
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("damage", [lambda record: record.unlink(), lambda record: record.write_text('{"name": "o')])
def test_a_process_with_a_lost_or_torn_record_is_still_stopped(root: Path, damage: Callable[[Path], object]) -> None:
    """The marks alone lead to a process whose record was never written, or only half."""
    process = spawn(root, "ours", _SLEEP)
    damage(root / "run" / "ours.json")

    assert running_names(root) == ("ours",)
    assert stop_processes(root, running_names(root)) == ("ours",)
    assert not process.is_running()


def test_processes_outlive_a_killed_starter_and_are_stopped_by_another(root: Path) -> None:
    """What a killed command started runs on, and the next command finds and stops it."""
    script = (
        "import sys, time; from pathlib import Path; from flows.sandbox.processes import spawn;"
        "print(spawn(Path(sys.argv[1]), 'ours', ['sleep', '60']).pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()

    assert _is_alive(pid)
    assert stop_process(root, "ours")
    assert not _is_alive(pid)


def test_two_stacks_do_not_see_each_other(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Stopping everything of one root leaves the processes of another alone, whatever their names."""
    other = tmp_path_factory.mktemp("other")
    spawn(root, "same", _SLEEP)
    theirs = spawn(other, "same", _SLEEP)
    try:
        assert stop_processes(root, running_names(root)) == ("same",)
        assert theirs.is_running()
    finally:
        stop_process(other, "same")


def test_a_name_that_runs_is_not_started_twice(root: Path) -> None:
    """Starting a running process again is refused, and the first keeps running; after a stop it is allowed."""
    first = spawn(root, "ours", _SLEEP)
    with pytest.raises(StackError, match="runs already"):
        spawn(root, "ours", _SLEEP)
    assert first.is_running()

    stop_process(root, "ours")
    assert spawn(root, "ours", _SLEEP).is_running()


def test_what_cannot_start_is_refused_with_a_hint(root: Path) -> None:
    """A missing program and an unusable name are errors with a next step, and leave nothing behind."""
    with pytest.raises(StackError, match="cannot start") as missing:
        spawn(root, "ours", ["no-such-program-here"])
    with pytest.raises(StackError, match="cannot name"):
        spawn(root, "../ours", _SLEEP)

    assert missing.value.hint is not None
    assert running_names(root) == ()


def test_a_process_that_ends_at_once_counts_as_not_running(root: Path) -> None:
    """A process that ended is not running, even before anyone waited for it."""
    process = spawn(root, "short", ["true"])

    _wait_for(lambda: not process.is_running())
    assert load_process(root, "short") is None
    assert spawn(root, "short", _SLEEP).is_running()


def test_settings_of_the_person_do_not_leak_into_the_stack(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's settings for the same tools, and a proxy for the outside world, do not reach stack processes."""
    monkeypatch.setenv("PREFECT_API_URL", "https://elsewhere.example.com/api")
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("NO_PROXY", "internal.example.com")
    spawn(root, "env", ["env"])

    _wait_for(lambda: load_process(root, "env") is None)
    lines = (root / "logs" / "env.log").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("PREFECT_", "AWS_"))]
    assert "NO_PROXY=internal.example.com,127.0.0.1,localhost" in lines
