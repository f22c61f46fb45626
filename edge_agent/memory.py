"""Memory that the C library keeps for later, given back to a small device.

glibc gives each thread an arena of its own and returns what is freed only from an arena's end. Other C libraries do
neither; there nothing happens here.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8
"""From malloc.h."""
_ARENAS: Final = 2
"""The interpreter's lock lets one thread work at a time, and beside it the model."""


def limit_arenas() -> None:
    """Let threads that are started from now on share what is free. Call it early, once."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def return_free_memory() -> None:
    """Give back what is free, which takes a few milliseconds: after work that needed much for a moment."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "malloc_trim") else None
