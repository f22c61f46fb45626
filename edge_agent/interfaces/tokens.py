"""Who may talk to the agent beyond this machine: whoever knows a token from a file."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from curate.errors import ConfigError

BEARER: Final = "bearer "
MIN_TOKEN_LENGTH: Final = 16
MAX_FAILURES: Final = 10
"""Wrong tokens that one client may try within `FAILURE_WINDOW_S`; then it is refused unheard."""
FAILURE_WINDOW_S: Final = 60.0
_REMEMBERED_CLIENTS: Final = 1024
_MAX_FILE_BYTES: Final = 64 * 1024
_SESSION_PURPOSE: Final = b"gleaner-agent page"


class TokenGuard:
    """Knows the tokens by their digests. Thread-safe; every comparison takes the same time."""

    def __init__(self, tokens: Sequence[str], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._digests = [_digest(token.encode()) for token in tokens]
        self._sessions = [_digest(make_session(token).encode()) for token in tokens]
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def admits(self, token: str, *, client: str) -> bool:
        """Say whether the token is one of ours; `client` is who asks, an address."""
        if self.is_blocked(client):
            return False
        admitted = _is_among(token, self._digests)
        if not admitted:
            self._note_failure(client)
        return admitted

    def admits_session(self, session: str) -> bool:
        """Say whether the cookie was made from one of our tokens.

        A wrong one counts for nothing: nobody guesses 256 bits, and a page that was left open with the cookie of a
        token that is no more would shut out whoever sits at the same address.
        """
        return _is_among(session, self._sessions)

    def is_blocked(self, client: str) -> bool:
        """Say whether this client has tried too many wrong tokens lately."""
        with self._lock:
            return len(self._recent(client)) >= MAX_FAILURES

    def _recent(self, client: str) -> deque[float]:
        times = self._failures.get(client, deque())
        while times and times[0] <= self._monotonic() - FAILURE_WINDOW_S:
            times.popleft()
        return times

    def _note_failure(self, client: str) -> None:
        with self._lock:
            times = self._recent(client)
            times.append(self._monotonic())
            self._failures[client] = times
            self._failures.move_to_end(client)
            if len(self._failures) > _REMEMBERED_CLIENTS:
                self._failures.popitem(last=False)


def make_session(token: str) -> str:
    """Return the cookie that stands for a token; the token cannot be told from it."""
    return hmac.new(token.encode(), _SESSION_PURPOSE, hashlib.sha256).hexdigest()


def prove_identity(secret: str, challenge: str) -> str:
    """Return what only a process that knows the secret can answer to a challenge; the secret cannot be told from it."""
    return hmac.new(secret.encode(), challenge.encode(errors="replace"), hashlib.sha256).hexdigest()


def load_tokens(path: Path) -> list[str]:
    """Read the tokens of a file, one a line; empty lines and lines that start with # say nothing.

    Raises:
        ConfigError: the file cannot be read, holds none, or one that is easy to guess.
    """
    hint = f"Write one to it, for example with: openssl rand -hex 24 > {path}"
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the token file {path} cannot be read: {exc}", hint=hint) from exc
    tokens = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not tokens:
        raise ConfigError(f"the token file {path} holds no token", hint=hint)
    if any(len(token) < MIN_TOKEN_LENGTH or " " in token for token in tokens):
        raise ConfigError(
            f"a token in {path} has fewer than {MIN_TOKEN_LENGTH} characters, or a space in it", hint=hint
        )
    return tokens


def _is_among(given: str, digests: Sequence[bytes]) -> bool:
    digest = _digest(given.encode(errors="replace"))
    # A sum, not any(): which of the tokens it is shall not show in the time.
    return sum(hmac.compare_digest(digest, known) for known in digests) > 0


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
