"""Runs what strangers post, one at a time and after the camera's own frames."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

from edge_agent.interfaces.refusals import BusyError

_T = TypeVar("_T")

NICENESS: Final = 10
"""Linux gives a thread this nice about a tenth of a processor that another one wants (sched(7): weight 110 to 1024)."""


class PostedWork:
    """One worker of low priority behind a short line. Thread-safe.

    A place in the line is taken before a body is read, so that waiting requests bound the memory they hold.
    """

    def __init__(self, max_waiting: int) -> None:
        """`max_waiting` requests may wait beside the one that is answered; further ones are refused at once."""
        self._places = threading.BoundedSemaphore(1 + max_waiting)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="posted", initializer=_step_back)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the line.

        Raises:
            BusyError: all are taken.
        """
        if not self._places.acquire(blocking=False):
            raise BusyError("too many posted requests wait already; the camera comes first", hint="Try again soon.")
        try:
            yield
        finally:
            self._places.release()

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        """Run the work when its turn comes; the caller holds a place.

        Raises:
            BusyError: the agent stops.
        """
        try:
            return self._worker.submit(work)
        except RuntimeError as exc:
            raise BusyError("the agent stops") from exc

    def stop(self) -> None:
        """Take no more work and forget what waits."""
        self._worker.shutdown(wait=False, cancel_futures=True)


def _step_back() -> None:
    """Lower this thread's priority: ONNX Runtime with one thread runs on the thread that calls it."""
    thread_id = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread_id, min(19, os.getpriority(os.PRIO_PROCESS, thread_id) + NICENESS))
    except (OSError, AttributeError):  # not Linux, or not allowed: then it is only one at a time
        return
