"""Keeps the agent's loops running: one that ends by itself begins anew, since nobody else would notice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

RESTART_S: Final = 1.0


def keep_running(
    name: str,
    run: Callable[[threading.Event], None],
    stop: threading.Event,
    *,
    count_error: Callable[[str], None] = lambda _name: None,
    restart_s: float = RESTART_S,
) -> None:
    """Run a loop until told to stop. It ends only then; if it does before, for whatever reason, that is told, counted
    and the loop begins anew after a while."""
    while True:
        try:
            run(stop)
        # Whatever ended the loop: without it the agent would go on maimed, and nobody would know.
        except BaseException as exc:
            log.exception("the %s loop died", name)
            count_error(type(exc).__name__)
        if stop.wait(restart_s):
            return
        log.error("the %s loop begins anew", name)
