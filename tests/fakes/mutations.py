"""Seeded damage for documents and files: what a bad disk, a bad link or a bad person may make of good bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

EVIL_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64,
    10**400,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "\x00",
    "\ud800",
    "../../etc/passwd",
    "A" * 70_000,
    "9999-12-31T23:59:59.999999-23:59",
    "0001-01-01T00:00:00+23:59",
    "\u202e\u0661",
    [],
    {},
    [[]] * 50,
    {"kind": "classification"},
    [{}] * 3,
)


def damage_bytes(raw: bytes, rng: random.Random, *, most: int = 8) -> bytes:
    """Return the bytes with a few of them flipped, cut, doubled, or exchanged."""
    damaged = bytearray(raw)
    for _ in range(rng.randint(1, most)):
        rng.choice(_DAMAGES)(damaged, rng)
    return bytes(damaged)


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0x00, 0xFF, 0x7F, 0x80, rng.randrange(256)))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _lose(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.randint(1, 64)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.randint(1, 64)] * rng.randint(1, 8)


def _insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.randbytes(rng.randint(1, 16))


_DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _flip,
    _overwrite,
    _overwrite,
    _cut,
    _lose,
    _repeat,
    _insert,
)


def damage_json(raw: bytes, rng: random.Random) -> bytes:
    """Return a JSON document with some of its parts replaced, removed, renamed, moved or multiplied."""
    document = json.loads(raw)
    for _ in range(rng.randint(1, 3)):
        places = _places(document)
        if not places:
            return b"null"
        parent, key = rng.choice(places)
        rng.choice(_CHANGES)(parent, key, rng)
    return _dump(document)


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 5000:
        part = waiting.pop()
        keys = list(part) if isinstance(part, dict) else list(range(len(part))) if isinstance(part, list) else []
        found += [(part, key) for key in keys]
        waiting += [part[key] for key in keys]
    return found


def _replace(parent: Any, key: Any, rng: random.Random) -> None:
    parent[key] = copy.deepcopy(rng.choice(EVIL_VALUES))


def _remove(parent: Any, key: Any, rng: random.Random) -> None:
    del parent[key]


def _nest(parent: Any, key: Any, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 5, 60))):
        parent[key] = [parent[key]] if rng.random() < 0.5 else {"value": parent[key]}


def _multiply(parent: Any, key: Any, rng: random.Random) -> None:
    if isinstance(parent[key], list):
        parent[key] = parent[key] * rng.choice((2, 100))
    elif isinstance(parent[key], str):
        parent[key] = parent[key] * rng.choice((2, 1000))
    elif isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = parent[key] * rng.choice((-1, 10**6, 0.1))
    else:
        parent[key] = [parent[key]] * 2


def _borrow(parent: Any, key: Any, rng: random.Random) -> None:
    """Put a neighbour's value, of another type perhaps, in its place."""
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    parent[key] = json.loads(_dump(parent[rng.choice(keys)]))


_CHANGES: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    _replace,
    _replace,
    _remove,
    _nest,
    _multiply,
    _borrow,
)


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def monstrous_json(rng: random.Random) -> bytes:
    """Return what is barely JSON: too deep, too long, in the wrong alphabet."""
    depth = rng.choice((50, 1000, 100_000))
    choices = (
        b"[" * depth,
        b"[" * depth + b"]" * depth,
        b'{"a":' * depth + b"1" + b"}" * depth,
        b'{"device_id":"' + b"A" * 1_000_000 + b'"}',
        b'{"sequence":' + b"9" * 100_000 + b"}",
        b'{"sequence":1e' + b"9" * 1000 + b"}",
        b"[" + b"1," * 200_000 + b"1]",
        b'\xef\xbb\xbf{"sequence":1}',
        '{"sequence":1}'.encode("utf-16"),
        b'{"a":"\xff\xfe"}',
        b'{"a":1,' * 1000 + b'"a":1' + b"}" * 1000,
        b"",
        b"\x00" * 1000,
        b"NaN",
        b'"' + b"\\ud800" * 1000 + b'"',
    )
    return rng.choice(choices)
