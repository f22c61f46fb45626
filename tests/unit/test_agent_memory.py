"""Memory is given back when the work that needed it is done."""

from __future__ import annotations

import platform

import pytest

from curate.storage.s3_models import OPERATIONS, make_lean_loader
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


def test_the_client_knows_what_the_store_asks_and_nothing_else() -> None:
    """Of S3's description the manuals and other operations are gone; every shape that is left to use is there."""
    service = make_lean_loader().load_service_model("s3", "service-2")
    assert set(service["operations"]) == OPERATIONS
    shapes = service["shapes"]
    used = {part["shape"] for name in shapes for part in shapes[name].get("members", {}).values()}
    assert used <= set(shapes)
    assert not any(shape.get("documentation") for shape in shapes.values())


def test_other_services_keep_what_they_need() -> None:
    """A role's credentials come from STS: its description is whole, and its endpoints are known."""
    loader = make_lean_loader()
    assert "AssumeRoleWithWebIdentity" in loader.load_service_model("sts", "service-2")["operations"]
    aws = loader.load_data("endpoints")["partitions"][0]
    assert set(aws["services"]) == {"s3", "sts"}
