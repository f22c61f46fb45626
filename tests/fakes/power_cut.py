"""A power cut at a chosen system call, for code whose writes all pass through `os`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_MEMORY_DISK = Path("/dev/shm")


def fast_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder where an fsync costs little; the operations are the same."""
    return tempfile.TemporaryDirectory(prefix="gleaner-", dir=_MEMORY_DISK if _MEMORY_DISK.is_dir() else None)


class PowerCutError(BaseException):
    """Nothing in the product catches this: the disk stays as it is at that moment."""


@contextlib.contextmanager
def power_cut_before(system_call: int) -> Iterator[list[str]]:
    """Stop the program just before the n-th fsync, rename or removal of the body, and swallow the stop.

    Yields a list that names the call at which the power went, once it has. What the program had in
    memory must be abandoned afterwards, as a power cut would.
    """
    left = system_call
    cut: list[str] = []

    def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                cut.append(name)
                raise PowerCutError
            return call(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(PowerCutError):
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, guarded(name, getattr(os, name)))
        yield cut
