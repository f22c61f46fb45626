"""Free TCP ports on the loopback address."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"

# Below the range from which systems take the source ports of outgoing connections: a client that keeps
# calling a dead service there could be given that very port, connect to itself and keep the service out.
_FIRST, _LAST = 20_000, 29_999


def is_port_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        # As servers do: connections that linger after a killed server are no reason to give up its port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def find_free_ports(count: int) -> tuple[int, ...]:
    """Return `count` different ports that are free now; another program may still take one before it is used.

    Raises OSError when the range is exhausted.
    """
    # Random, so that two stacks that start at the same moment rarely look at the same port.
    candidates = random.SystemRandom().sample(range(_FIRST, _LAST + 1), _LAST + 1 - _FIRST)
    free: list[int] = []
    for port in candidates:
        if len(free) == count:
            break
        if is_port_free(port):
            free.append(port)
    if len(free) < count:
        raise OSError(f"only {len(free)} of {count} free ports between {_FIRST} and {_LAST}")
    return tuple(free)
