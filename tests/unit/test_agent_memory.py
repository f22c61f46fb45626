"""Memory is given back when the work that needed it is done."""

from __future__ import annotations

import platform

import pytest

from edge_agent.machine import resident_bytes
from edge_agent.memory import limit_arenas, return_free_memory

MIB = 1024 * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by themselves")
def test_what_is_free_goes_back_to_the_system() -> None:
    """Freed blocks below one that stays are kept by the C library until it is told to return them."""
    limit_arenas()
    blocks = [bytearray(60_000) for _ in range(1000)]
    for block in blocks:
        block[::4096] = bytes(len(block[::4096])).replace(b"\0", b"x")
    del blocks[:-1]
    before = resident_bytes()
    return_free_memory()
    assert before - resident_bytes() > 30 * MIB
