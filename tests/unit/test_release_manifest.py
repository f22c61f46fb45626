"""A release's description and the publisher's keys."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from curate.errors import ReleaseError
from curate.release.keys import KEY_NAMES, create_keys, key_path, load_key
from curate.release.manifest import build_manifest, name_targets
from tests.fakes.releases import draft

NOW = datetime(2026, 5, 1, tzinfo=UTC)
FILES = {"int8": b"small", "float": b"large model", "golden": b"golden"}


def test_the_manifest_names_every_file_with_its_digest() -> None:
    """Each file appears under its flat target name with its own digest and size, and nothing else does."""
    manifest = build_manifest(draft("r-1"), FILES, number=3, created_at=NOW)
    named = {a.target: (a.sha256, a.size_bytes) for a in (*manifest.variants.values(), manifest.golden)}
    assert named == {
        target: (hashlib.sha256(data).hexdigest(), len(data)) for target, data in name_targets("r-1", FILES).items()
    }
    assert set(named) == {"r-1.model-int8.onnx", "r-1.model-float.onnx", "r-1.golden.npz"}
    assert (manifest.release_id, manifest.number) == ("r-1", 3)


def test_the_float_model_is_optional() -> None:
    """A release may hold the int8 model alone."""
    manifest = build_manifest(draft("r-1"), {"int8": b"x", "golden": b"y"}, number=1, created_at=NOW)
    assert set(manifest.variants) == {"int8"}


@pytest.mark.parametrize(
    "files",
    [{"int8": b"x"}, {"golden": b"x"}, {"int8": b"", "golden": b"x"}, {"int8": b"x", "golden": b"x", "extra": b"x"}],
    ids=["golden missing", "int8 missing", "empty", "unknown"],
)
def test_an_incomplete_release_is_refused(files: dict[str, bytes]) -> None:
    """A missing, empty or unknown file stops a release before anything is written."""
    with pytest.raises(ReleaseError):
        name_targets("r-1", files)


def test_keys_are_private_and_never_replaced(tmp_path: Path) -> None:
    """Key files are 0600, all differ, and creating again keeps every one."""
    keys = create_keys(tmp_path / "keys")
    assert len({key.public_key.keyid for key in keys.values()}) == len(KEY_NAMES)
    assert {key_path(tmp_path / "keys", name).stat().st_mode & 0o777 for name in KEY_NAMES} == {0o600}
    again = create_keys(tmp_path / "keys")
    assert {n: k.public_key.keyid for n, k in keys.items()} == {n: k.public_key.keyid for n, k in again.items()}
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == sorted(f"{n}.pem" for n in KEY_NAMES)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A key file open to others is refused with the remedy."""
    create_keys(tmp_path)
    key_path(tmp_path, "online").chmod(0o640)
    with pytest.raises(ReleaseError, match="readable by others") as refused:
        load_key(tmp_path, "online")
    assert "chmod 600" in str(refused.value.hint)


def test_an_absent_or_broken_key_is_refused(tmp_path: Path) -> None:
    """Neither a missing file nor noise passes for a key."""
    with pytest.raises(ReleaseError, match="cannot read"):
        load_key(tmp_path, "targets")
    key_path(tmp_path, "targets").write_bytes(b"noise")
    key_path(tmp_path, "targets").chmod(0o600)
    with pytest.raises(ReleaseError, match="not an unencrypted PEM key"):
        load_key(tmp_path, "targets")
