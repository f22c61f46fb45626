"""How fast a thousand are chosen out of a million, and in how much memory: self-made captures, one timed selection.

The captures are camera-like: scenes of ten classes, each filmed as a burst of noisy frames; some bursts are still, some
move. A scene's prediction is shared by its frames but for a little noise.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate.selection.base import CandidatePool, LabelledSet, Progress, Selection, SelectionPolicy
from curate.selection.batch import select_batch

CLASSES = 10
WRITE_ROWS = 65_536
ROWS_PER_DEVICE = 20_000
SCENE_SECONDS = 60.0
FRAME_SECONDS = 0.5
GEMM_ROWS = 8192
ASSIGN_STAGE = "assign to cells"


@dataclass(frozen=True)
class StageTime:
    """Seconds by the clock on the wall, and by the processor over all threads: they differ on a busy machine."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class SelectionBench:
    """What one timed selection cost.

    `stages` are in the order they ran; `peak_bytes` is the largest resident
    set of the whole process, captures included. `gemm_flops` a processor second is
    what the bare product of rows and centroids reaches in this process, `assign_flops` what the assignment with
    everything around that product does.
    """

    rows: int
    dim: int
    budget: int
    picks: int
    sights: int
    cells: int
    total: StageTime
    peak_bytes: int
    stages: dict[str, StageTime]
    gemm_flops: float | None
    assign_flops: float | None

    @property
    def gemm_share(self) -> float | None:
        """The assignment's speed as a share of the bare product's: 1 is the limit."""
        if self.gemm_flops is None or self.assign_flops is None:
            return None
        return self.assign_flops / self.gemm_flops


def run_selection_bench(
    folder: Path, rows: int, dim: int, budget: int, *, copies: float, labels: int, seed: int, progress: Progress
) -> SelectionBench:
    """Write `rows` captures below `folder`, choose `budget` of them beside `labels` labels, and say what that cost.

    Raises:
        SelectionError: the budget or the number of rows cannot be selected from.
    """
    progress("write captures")
    pool = write_pool(folder / "embeddings.f16", rows, dim, copies=copies, seed=seed)
    labelled = _label(pool, min(labels, rows), seed)
    clock = _StageClock(progress)
    selection = select_batch(pool, labelled, SelectionPolicy(), budget, seed, progress=clock.enter)
    clock.leave()
    peak_bytes = peak_memory_bytes()
    progress("bare matrix product")
    gemm, assign = _matrix_speed(selection, dim, clock.stages)
    return SelectionBench(
        rows=rows,
        dim=dim,
        budget=budget,
        picks=len(selection.items),
        sights=selection.distinct_sights,
        cells=1 if selection.cells is None else len(selection.cells.centroids),
        total=StageTime(
            sum(stage.wall_s for stage in clock.stages.values()), sum(stage.cpu_s for stage in clock.stages.values())
        ),
        peak_bytes=peak_bytes,
        stages=clock.stages,
        gemm_flops=gemm,
        assign_flops=assign,
    )


def write_pool(path: Path, rows: int, dim: int, *, copies: float, seed: int) -> CandidatePool:
    """Make a pool of `rows` captures, bursts of `copies` frames on average; embeddings float16, memory-mapped."""
    rng = np.random.default_rng(seed)
    scene = _scenes(rows, copies, rng)
    count = int(scene[-1]) + 1
    frame = np.arange(rows) - np.searchsorted(scene, np.arange(count))[scene]
    classes = rng.integers(0, CLASSES, count)
    device = rng.integers(0, max(2, rows // ROWS_PER_DEVICE), count)
    embeddings = _write_embeddings(path, scene, classes, dim, rng)
    names = np.array([f"camera-{number:03d}" for number in range(device.max() + 1)], object)
    bursts = np.array([f"burst-{number:07d}" for number in range(count)], object)
    # an odd multiplier scatters the ids like digests do, and keeps them distinct
    scattered = (np.arange(rows, dtype=np.uint64) * np.uint64(0x9E3779B1)) % np.uint64(2**32)
    devices = tuple(names[device[scene]].tolist())
    return CandidatePool(
        ids=tuple(f"{number:08x}" for number in scattered.tolist()),
        embeddings=embeddings,
        probabilities=_predict(scene, classes, rng),
        devices=devices,
        cameras=devices,
        groups=tuple(bursts[scene].tolist()),
        random_probability=np.where(rng.random(rows) < 0.1, 0.05, np.nan),
        feedback=np.where(rng.random(rows) < 0.01, 0.5, 0.0),
        captured_s=scene * SCENE_SECONDS + frame * FRAME_SECONDS,
    )


def _label(pool: CandidatePool, count: int, seed: int) -> LabelledSet:
    """Return labels that look like some of the captures, three in ten held out."""
    rng = np.random.default_rng([seed, count])
    rows = np.sort(rng.permutation(len(pool))[:count])
    looks = pool.embeddings[rows].astype(np.float32)
    looks += 0.5 * _directions(rng, count, looks.shape[1])
    names = tuple(f"label-{number}" for number in range(count))
    return LabelledSet(names, looks, names, held_out=rng.random(count) < 0.3)


def peak_memory_bytes() -> int:
    """Return the largest resident set that this process has had."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _scenes(rows: int, copies: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the scene of each row, ascending, int64 [N]: bursts of geometric length."""
    starts = rng.random(rows) < 1.0 / copies
    starts[0] = False
    return np.cumsum(starts)


def _write_embeddings(
    path: Path, scene: NDArray[np.int64], classes: NDArray[np.int64], dim: int, rng: np.random.Generator
) -> NDArray[np.float16]:
    """Write class + scene + frame noise, each row of length 1, and return the map of the file."""
    rows = len(scene)
    centres = _directions(rng, CLASSES, dim)
    stir = rng.uniform(0.05, 0.5, len(classes)).astype(np.float32)
    out = np.memmap(path, np.float16, "w+", shape=(rows, dim))
    for start in range(0, rows, WRITE_ROWS):
        block = slice(start, min(start + WRITE_ROWS, rows))
        first, last = int(scene[block][0]), int(scene[block][-1])
        # a burst across two blocks gets the same scene in both
        looks = np.concatenate(
            [_directions(np.random.default_rng([first, dim]), 1, dim), _directions(rng, last - first, dim)]
        )
        if last > first:
            looks[-1] = _directions(np.random.default_rng([last, dim]), 1, dim)[0]
        here = scene[block]
        made = centres[classes[here]] + looks[here - first]
        made += stir[here, None] * _directions(rng, len(here), dim)
        out[block] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return out


def _directions(rng: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    drawn = rng.standard_normal((count, dim), np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def _predict(scene: NDArray[np.int64], classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return probabilities float32 [N, 10] of a model that is mostly right and sometimes unsure."""
    logits = rng.standard_normal((len(classes), CLASSES), np.float32)
    logits[np.arange(len(classes)), classes] += rng.uniform(0.0, 6.0, len(classes)).astype(np.float32)
    seen = np.exp(logits[scene] + 0.1 * rng.standard_normal((len(scene), CLASSES), np.float32))
    return np.asarray(seen / seen.sum(axis=1, keepdims=True), np.float32)


def _matrix_speed(selection: Selection, dim: int, stages: dict[str, StageTime]) -> tuple[float | None, float | None]:
    """Return the operations a processor second of the bare product and of the assignment; None for one cell."""
    if selection.cells is None:
        return None, None
    centroids = selection.cells.centroids
    block = _directions(np.random.default_rng(0), GEMM_ROWS, dim)
    bare_s = _best_of(5, lambda: block @ centroids.T)
    operations = 2.0 * dim * len(centroids)
    return operations * GEMM_ROWS / bare_s, operations * len(selection.cells.seen) / stages[ASSIGN_STAGE].cpu_s


def _best_of(times: int, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(times):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


class _StageClock:
    """Times stages as they are announced; a stage that comes back is added up."""

    def __init__(self, tell: Progress) -> None:
        self.stages: dict[str, StageTime] = {}
        self._tell = tell
        self._open: str | None = None
        self._since = (0.0, 0.0)

    def enter(self, stage: str) -> None:
        """Close the open stage and begin another."""
        self.leave()
        self._tell(stage)
        self._open, self._since = stage, (time.perf_counter(), time.process_time())

    def leave(self) -> None:
        """Close the open stage."""
        if self._open is not None:
            before = self.stages.get(self._open, StageTime(0.0, 0.0))
            wall_s = time.perf_counter() - self._since[0]
            cpu_s = time.process_time() - self._since[1]
            self.stages[self._open] = StageTime(before.wall_s + wall_s, before.cpu_s + cpu_s)
        self._open = None
