"""The check of a release in a process of its own: `python -m edge_agent.models.smoke`, a request on standard input, a
result on standard output.

What a model can do to a process, crash, hang or eat its memory, it does here and not where frames are answered. The
limits are set after our own code is loaded and before the model is touched. The network is not walled off: that needs
rights an agent does not have.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from curate.contracts.release import ReleaseManifest
from curate.errors import SelfCheckError
from edge_agent.machine import peak_resident_bytes, resident_bytes, usable_cpus, virtual_bytes
from edge_agent.models.inference import LoadedModel, load_model
from edge_agent.models.providers import ProviderName
from edge_agent.models.self_check import Golden, load_golden, verify_model
from edge_agent.models.tuning import tune_threads

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
_MAX_FILES: Final = 256
_NICENESS: Final = 10
_MIB: Final = 1024 * 1024


class RunSettings(BaseModel):
    """How models run here, and within which bounds they are checked."""

    model_config = ConfigDict(frozen=True)

    threads: int | Literal["auto"] = 1
    providers: tuple[ProviderName, ...] = ("cpu",)
    max_latency_s: float = 5.0
    max_memory_bytes: int = 512 * _MIB
    """What the model may take beyond the agent itself."""
    smoke_timeout_s: float = 120.0

    @property
    def untuned_threads(self) -> int:
        """Threads before any were tried out."""
        return 1 if self.threads == "auto" else self.threads


class SmokeRequest(BaseModel):
    """What to check, and within which bounds."""

    model_config = ConfigDict(frozen=True)

    manifest: ReleaseManifest
    model: Path
    golden: Path
    settings: RunSettings = RunSettings()


class SmokeResult(BaseModel):
    """What the model has shown on this device."""

    model_config = ConfigDict(frozen=True)

    ok: bool
    reason: str | None = None
    may_pass: bool = False
    """Whether the failure may be this moment's and not the model's."""
    p50_s: float = Field(default=0.0, ge=0.0)
    peak_bytes: int = Field(default=0, ge=0)
    """What loading and answering took at most, beyond what the process held before."""
    threads: int = Field(default=1, ge=1)
    providers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def examine(request: SmokeRequest) -> SmokeResult:
    """Check the model here and now, in this process and without limits on it."""
    try:
        return _examine(request)
    except SelfCheckError as exc:
        return SmokeResult(ok=False, reason=str(exc), may_pass=exc.retryable)
    except MemoryError:
        return SmokeResult(ok=False, reason="the model takes more memory than it may")


def _examine(request: SmokeRequest) -> SmokeResult:
    before_bytes = resident_bytes()
    golden = load_golden(request.golden, request.manifest.model)
    settings = request.settings
    model = _load(request, settings.untuned_threads)
    verify_model(model, golden, max_latency_s=math.inf)
    peak_bytes = max(0, peak_resident_bytes() - before_bytes)
    if peak_bytes > settings.max_memory_bytes:
        raise SelfCheckError(
            f"the model takes {peak_bytes // _MIB} MiB here, more than {settings.max_memory_bytes // _MIB} MiB"
        )
    tuned = settings.threads == "auto"
    threads, p50_s = _tune(request, golden) if tuned else (settings.untuned_threads, model.p50_s or 0.0)
    if p50_s > settings.max_latency_s:
        raise SelfCheckError(
            f"an answer takes {p50_s:.2f} s here, more than {settings.max_latency_s:.2f} s", retryable=True
        )
    return SmokeResult(
        ok=True, p50_s=p50_s, peak_bytes=peak_bytes, threads=threads, providers=model.providers, notes=model.notes
    )


def _tune(request: SmokeRequest, golden: Golden) -> tuple[int, float]:
    return tune_threads(lambda threads: _Answering(_load(request, threads), golden), cpus=usable_cpus())


class _Answering:
    """Answers the golden inputs in turn."""

    def __init__(self, model: LoadedModel, golden: Golden) -> None:
        self._model = model
        self._golden = golden
        self._at = 0

    def __call__(self) -> object:
        self._at = (self._at + 1) % len(self._golden.images)
        return self._model.infer(self._golden.images[self._at])


def _load(request: SmokeRequest, threads: int) -> LoadedModel:
    return load_model(request.model, request.manifest, threads=threads, providers=request.settings.providers)


def main() -> int:
    """Check what standard input asks for, within its bounds; 0 when a result was written, whatever it says."""
    request = SmokeRequest.model_validate_json(sys.stdin.buffer.read(MAX_REQUEST_BYTES))
    answer_to = _keep_output_clean()
    _limit_this_process(request.settings)
    result = examine(request)
    os.write(answer_to, result.model_dump_json().encode())
    return 0


def _keep_output_clean() -> int:
    """Give standard output to nobody, so that no library spoils the result by printing; return where that goes."""
    answer_to = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return answer_to


def _limit_this_process(settings: RunSettings) -> None:
    """Bound memory, time and files; every bound the system knows."""
    seconds = math.ceil(settings.smoke_timeout_s)
    threads = usable_cpus() if settings.threads == "auto" else settings.threads
    stacks = 16 * _MIB * (threads + 2)
    if set(settings.providers) == {"cpu"}:  # accelerators map far more than they use
        _limit(resource.RLIMIT_AS, virtual_bytes() + 2 * settings.max_memory_bytes + stacks)
    _limit(resource.RLIMIT_CPU, seconds * max(1, threads))
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_FILES)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)  # should nobody be left who waits for us
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):  # the first to go when the device runs out of memory
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit(kind: int, amount: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower bound is set already
        resource.setrlimit(kind, (amount, amount))


if __name__ == "__main__":
    sys.exit(main())
