"""Sits beside a model on trial and tells the watch of every answer. Called from whichever threads ask the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from curate.answers.base import AnswerKind, BadOutputError, Floats, Outputs
from curate.contracts.release import ModelSpec
from edge_agent.cameras.base import Pixels
from edge_agent.models.trial_watch import Judgement, Seen, TrialWatch

_THUMB_SIDE = 8
_CLEAR_DIFFERENCE = 8.0
"""Mean difference of two thumbnails, in grey levels, above which two frames are not the same scene with noise."""


class TrialProbe:
    """Thread-safe. An answer counts when it is finite and of its kind; the frame is answered all the same."""

    def __init__(
        self, watch: TrialWatch, kind: AnswerKind, spec: ModelSpec, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._watch = watch
        self._kind = kind
        self._spec = spec
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._waiting: dict[int, float] = {}
        self._thumb: NDArray[np.int16] | None = None
        self._outputs: Outputs | None = None

    def begin(self) -> int:
        """A frame is given to the model; returns a ticket."""
        with self._lock:
            ticket = max(self._waiting, default=0) + 1
            self._waiting[ticket] = self._monotonic()
            return ticket

    def answer(self, ticket: int, image: Pixels, outputs: dict[str, Floats]) -> None:
        """The model answered."""
        answered_s = self._monotonic()
        problem = None
        try:
            self._kind.verify_outputs(outputs, self._spec)
        except BadOutputError as exc:
            problem = str(exc)
        thumb = _thumbnail(image)
        with self._lock:
            input_moved = _differs(thumb, self._thumb)
            output_moved = self._outputs is None or not _equal(outputs, self._outputs)
            self._thumb = thumb if input_moved else self._thumb
            self._outputs = outputs
            self._close(ticket, answered_s, problem, input_moved=input_moved, output_moved=output_moved)

    def fail(self, ticket: int, problem: str) -> None:
        """The runtime failed on the frame."""
        with self._lock:
            self._close(ticket, self._monotonic(), problem)

    def judge(self) -> Judgement:
        """Judge the release as of now."""
        now_s = self._monotonic()
        with self._lock:
            return self._watch.judge(now_s, waiting_since_s=min(self._waiting.values(), default=None))

    def note_incumbent(self, p50_s: float) -> None:
        """Take note of what the incumbent takes now."""
        with self._lock:
            self._watch.note_incumbent(p50_s)

    @property
    def answers(self) -> int:
        """Frames answered so far."""
        return self._watch.answers

    def _close(
        self,
        ticket: int,
        answered_s: float,
        problem: str | None,
        *,
        input_moved: bool = False,
        output_moved: bool = True,
    ) -> None:
        self._watch.note(Seen(answered_s - self._waiting.pop(ticket), problem, input_moved, output_moved))


def _thumbnail(image: Pixels) -> NDArray[np.int16]:
    """Return every n-th pixel, int16 [at most 8 or so, …, 3]: cheap, and enough to tell scenes apart."""
    height, width = image.shape[:2]
    return image[:: max(1, height // _THUMB_SIDE), :: max(1, width // _THUMB_SIDE)].astype(np.int16)


def _differs(thumb: NDArray[np.int16], before: NDArray[np.int16] | None) -> bool:
    if before is None or thumb.shape != before.shape:
        return True
    return float(np.abs(thumb - before).mean()) > _CLEAR_DIFFERENCE


def _equal(left: Outputs, right: Outputs) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)
