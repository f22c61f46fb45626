"""The check of a release in a process of its own: whatever the model does there, the agent gets a result."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curate.contracts.release import ReleaseManifest
from curate.release.manifest import build_manifest
from edge_agent.machine import available_memory_bytes, describe_processor, resident_bytes, virtual_bytes
from edge_agent.models.smoke import RunSettings, SmokeRequest
from edge_agent.models.smoke_process import run_smoke
from tests.fakes.releases import NOW, SIZE, draft, golden_bytes, release_files
from tests.fakes.treacherous_models import treacherous_model

MIB = 1024 * 1024


def _request(folder: Path, model: bytes, golden: bytes | None = None, **settings: object) -> SmokeRequest:
    files = {"int8": model, "golden": golden or golden_bytes()}
    (folder / "model.onnx").write_bytes(files["int8"])
    (folder / "golden.npz").write_bytes(files["golden"])
    manifest: ReleaseManifest = build_manifest(draft("r-1"), files, number=1, created_at=NOW)
    return SmokeRequest(
        manifest=manifest,
        model=folder / "model.onnx",
        golden=folder / "golden.npz",
        settings=RunSettings.model_validate({"smoke_timeout_s": 60.0, **settings}),
    )


def test_a_good_model_passes_and_shows_what_it_takes(tmp_path: Path) -> None:
    """Time, memory, threads and providers are measured, also when the threads are to be tuned."""
    result = run_smoke(_request(tmp_path, release_files()["int8"], threads="auto"))
    assert result.ok, result.reason
    assert 0 < result.p50_s < 1
    assert MIB < result.peak_bytes < 512 * MIB
    assert result.threads == 1  # for so small a model another thread is not worth it
    assert result.providers == ("cpu",)


def test_a_model_outside_its_budgets_is_refused(tmp_path: Path) -> None:
    """Too slow may pass by itself, too large does not; both say by how much."""
    slow = run_smoke(_request(tmp_path, release_files()["int8"], max_latency_s=1e-9))
    assert (slow.ok, slow.may_pass) == (False, True)
    assert "an answer takes" in str(slow.reason)
    large = run_smoke(_request(tmp_path, release_files()["int8"], max_memory_bytes=MIB))
    assert (large.ok, large.may_pass) == (False, False)
    assert "memory" in str(large.reason) or "MiB here" in str(large.reason) or "allocat" in str(large.reason)


def test_a_model_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """A golden input over which the model turns in circles ends with the time, not with the agent."""
    model = treacherous_model(SIZE, "hang").SerializeToString()
    images = bright_golden()
    started_s = time.monotonic()
    result = run_smoke(_request(tmp_path, model, images, smoke_timeout_s=4.0))
    assert (result.ok, result.may_pass) == (False, True)
    assert "longer than 4 s" in str(result.reason) or "SIGALRM" in str(result.reason) or "SIGXCPU" in str(result.reason)
    assert time.monotonic() - started_s < 30


def bright_golden() -> bytes:
    """Golden inputs that are all bright."""
    import numpy as np

    from tests.fakes.releases import answer

    images = np.full((1, SIZE, SIZE, 3), 255, np.uint8)
    probabilities, embedding = answer(images)
    return golden_bytes(images=images, probabilities=probabilities, embedding=embedding)


@pytest.mark.parametrize(
    ("program", "reason", "may_pass"),
    [
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV", False),
        ("import os; os.abort()", "SIGABRT", False),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL", True),
        ("raise SystemExit(3)", "the code 3", False),
        ("print('fine')", "without a result", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 3)", "ended by signal", False),
        ("", "without a result", False),
        ("import sys; sys.stdout.write('x' * 10**7)", "said more than a result", False),
        ("import sys; sys.stdin.close(); import time; time.sleep(600)", "longer than", True),
        (
            "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])",
            "longer",
            True,
        ),
    ],
    ids=[
        "segfault",
        "abort",
        "out of memory",
        "error",
        "noise",
        "real time",
        "silence",
        "flood",
        "hang",
        "a child that stays",
    ],
)
def test_whatever_the_process_does_is_a_refusal(tmp_path: Path, program: str, reason: str, may_pass: bool) -> None:
    """A crash, a hang, a flood or garbage is a result with a reason, in time, and leaves no process behind."""
    request = _request(tmp_path, release_files()["int8"], smoke_timeout_s=3.0)
    result = run_smoke(request, command=(sys.executable, "-c", program))
    assert (result.ok, result.may_pass) == (False, may_pass)
    assert reason in str(result.reason)


def test_the_process_sees_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in the agent's environment are not in that of the check."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    program = "import os, sys; sys.exit(7 if 'AWS_SECRET_ACCESS_KEY' in os.environ or len(os.environ) > 8 else 5)"
    result = run_smoke(_request(tmp_path, release_files()["int8"]), command=(sys.executable, "-c", program))
    assert "the code 5" in str(result.reason)


def test_a_program_that_is_not_there_is_a_refusal_that_may_pass(tmp_path: Path) -> None:
    """A process that cannot be started, as when memory is short, is tried again."""
    result = run_smoke(_request(tmp_path, release_files()["int8"]), command=(str(tmp_path / "absent"),))
    assert (result.ok, result.may_pass) == (False, True)


@pytest.mark.parametrize("measure", [resident_bytes, virtual_bytes, available_memory_bytes])
def test_the_kernel_tells_how_much_memory_there_is(measure: Callable[[], int | None]) -> None:
    """On Linux every measure is known and positive."""
    amount = measure()
    assert amount is not None
    assert amount > MIB


def test_the_processor_is_described() -> None:
    """A proof names the machine it was made on."""
    assert os.uname().machine in describe_processor()
