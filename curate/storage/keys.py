"""Which keys every store accepts: the ones that mean the same in a bucket and in a folder."""

from __future__ import annotations

from curate.errors import StorageError

MAX_KEY_BYTES = 1024


def verify_key(key: str) -> None:
    """Raise StorageError unless every component is a plain name: not empty, not hidden, not climbing, printable."""
    if not key:
        raise StorageError("a key must not be empty")
    _verify_components(key, key.split("/"))


def verify_prefix(prefix: str) -> None:
    """Like `verify_key`, but the last component may be cut short or missing, and all may be."""
    *whole, partial = prefix.split("/")
    _verify_components(prefix, [*whole, partial] if partial else whole)


def _verify_components(key: str, components: list[str]) -> None:
    if len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        raise StorageError(f"key is longer than {MAX_KEY_BYTES} bytes: {key[:80]!r}...")
    for component in components:
        if not component or component.startswith(".") or "\\" in component or not component.isprintable():
            raise StorageError(f"not a key: {key!r}", hint="components are plain names joined by single slashes")
