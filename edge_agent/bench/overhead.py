"""What scoring, policy and bookkeeping add to one frame: the capture loop's own turn against the bare session's run.

Both answer the same pictures in the same process, turn by turn, so that what slows one down slows the other down, too.
The thread's processor time is counted, which with one thread is wall time on an idle machine. Picture decoding and the
disk are not in it: a bare loop has the first as well, and the second has a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import onnxruntime as ort

from edge_agent.bench.harness import make_loop
from edge_agent.bench.report import Bar, Figure, Section, spread_of
from edge_agent.cameras.base import Frame, Pixels, encode_jpeg
from edge_agent.models.inference import LoadedModel

SHARE_BAR: Final = Bar(0.03)
TIME_BAR: Final = Bar(0.2)
WARMUP_FRAMES: Final = 30


@dataclass(frozen=True, slots=True)
class Paired:
    """Seconds of each frame of one repeat, in order."""

    bare_s: tuple[float, ...]
    agent_s: tuple[float, ...]

    @property
    def overhead_s(self) -> float:
        """Median of what the agent took longer for the same picture at nearly the same time."""
        return median(agent - bare for bare, agent in zip(self.bare_s, self.agent_s, strict=True))

    @property
    def bare_median_s(self) -> float:
        """Median of the bare loop."""
        return median(self.bare_s)


def measure_overhead(
    model: LoadedModel,
    session: ort.InferenceSession,
    pictures: list[Pixels],
    folder: Path,
    *,
    frames: int,
    repeats: int,
) -> Section:
    """Return the overhead as a share of bare inference, and in milliseconds.

    Args:
        model: what the agent runs.
        session: the same model, opened bare; the agent's loop is given it, too, since two sessions of one file differ
            by as much as the bar.
        pictures: of the model's size.
        folder: an empty folder for what the agent writes.
        frames: of one repeat.
        repeats: the figures are medians over them.
    """
    shared = LoadedModel(session, model.manifest)
    pairs = [_measure(shared, session, pictures, folder / f"{number}", frames) for number in range(repeats)]
    return summarise(pairs, frames)


def summarise(pairs: list[Paired], frames: int) -> Section:
    """Return the figures of all repeats. Pure."""
    bare_s = median(pair.bare_median_s for pair in pairs)
    overhead_s = median(pair.overhead_s for pair in pairs)
    spread = spread_of([pair.bare_median_s for pair in pairs])
    shown = f"{overhead_s * 1e3:.3f} ms beside {bare_s * 1e3:.2f} ms"
    detail = f"{shown}, medians of {len(pairs)} x {frames} frames, interleaved"
    return Section(
        "overhead",
        (
            Figure("scoring, policy, bookkeeping / inference", overhead_s / bare_s, "", SHARE_BAR, detail, spread),
            Figure("scoring, policy, bookkeeping a frame", overhead_s * 1e3, "ms", TIME_BAR, detail, spread),
        ),
    )


def _measure(
    model: LoadedModel, session: ort.InferenceSession, pictures: list[Pixels], folder: Path, frames: int
) -> Paired:
    loop = make_loop(model, folder)
    bare_s: list[float] = []
    agent_s: list[float] = []
    for frame in _frames(pictures, frames + WARMUP_FRAMES):
        # Who goes first changes, so that neither always finds the caches warm.
        for who in (0, 1) if frame.index % 2 else (1, 0):
            (agent_s if who else bare_s).append(loop.time_turn(frame) if who else _time_run(session, frame.image))
    return Paired(tuple(bare_s[WARMUP_FRAMES:]), tuple(agent_s[WARMUP_FRAMES:]))


def _time_run(session: ort.InferenceSession, image: Pixels) -> float:
    started_s = time.thread_time()
    session.run(None, {"images": image[np.newaxis]})
    return time.thread_time() - started_s


def _frames(pictures: list[Pixels], count: int) -> Iterator[Frame]:
    encoded = [encode_jpeg(picture, quality=90) for picture in pictures]
    for index in range(count):
        at = index % len(pictures)
        yield Frame("bench", index, pictures[at], datetime.now(UTC), time.monotonic(), encoded[at])
