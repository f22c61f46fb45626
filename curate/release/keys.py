"""The publisher's ed25519 keys: one PEM file a role, readable by the owner only.

`root` signs who may sign; it is needed only to start and to renew the repository and belongs offline.
`targets` signs releases, `online` signs snapshot and timestamp (a schedule needs no other key),
`assignment` signs what each device shall run.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from curate.errors import ReleaseError

KeyName = Literal["root", "targets", "online", "assignment"]
KEY_NAMES: tuple[KeyName, ...] = get_args(KeyName)


def key_path(key_dir: Path, name: KeyName) -> Path:
    """Where that key lies."""
    return key_dir / f"{name}.pem"


def create_keys(key_dir: Path, names: Iterable[KeyName] = KEY_NAMES) -> dict[KeyName, CryptoSigner]:
    """Create the keys that do not exist yet and load all of them; never replaces a key.

    Raises:
        ReleaseError: a key cannot be written or read.
    """
    names = tuple(names)
    try:
        key_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            if not key_path(key_dir, name).exists():
                _persist_secret(key_path(key_dir, name), CryptoSigner.generate_ed25519().private_bytes)
    except OSError as exc:
        raise ReleaseError(f"cannot write signing keys under {key_dir}: {exc}") from exc
    return {name: load_key(key_dir, name) for name in names}


def load_key(key_dir: Path, name: KeyName) -> CryptoSigner:
    """Load one signing key.

    Raises:
        ReleaseError: it is absent, readable by others, or not an ed25519 key.
    """
    path = key_path(key_dir, name)
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as exc:
        raise ReleaseError(
            f"cannot read the {name} key at {path}: {exc.strerror}", hint="start the repository, or fetch the key"
        ) from exc
    if mode & 0o077:
        raise ReleaseError(f"the {name} key at {path} is readable by others", hint=f"chmod 600 {path}")
    try:
        private_key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ReleaseError(f"{path} is not an unencrypted PEM key") from exc
    if not isinstance(private_key, Ed25519PrivateKey):
        raise ReleaseError(f"{path} is not an ed25519 key")
    return CryptoSigner(private_key)


def _persist_secret(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 whole or not at all; a file that is already there wins."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
