"""Slots and the self-check: what is on the disk counts only when it proves itself."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from curate.contracts.release import ReleaseManifest
from curate.errors import AgentError, SelfCheckError
from curate.release.manifest import build_manifest
from edge_agent.errors import CorruptFileError
from edge_agent.models.inference import load_model
from edge_agent.models.self_check import load_golden, verify_model
from edge_agent.models.slots import SlotContent, SlotName, Slots
from edge_agent.models.updater_state import UpdaterState, load_state, persist_state
from tests.fakes.disk_faults import faulty_disk
from tests.fakes.releases import SPEC, answer, draft, golden_bytes, release_files
from tests.fakes.tiny_model import tiny_manifest


def _manifest(release_id: str = "r-1") -> ReleaseManifest:
    created_at = tiny_manifest().created_at
    return build_manifest(draft(release_id), release_files(), number=1, created_at=created_at)


def _fill(slots: Slots) -> SlotName:
    name = slots.idle()
    slots.open(name)
    files = release_files()
    slots.model_path(name).write_bytes(files["int8"])
    slots.golden_path(name).write_bytes(files["golden"])
    return name


def _closed(slots: Slots) -> SlotContent:
    return slots.close(_fill(slots), _manifest(), "int8")


def test_a_commit_is_found_by_the_next_process(tmp_path: Path) -> None:
    """What was closed and committed is loaded, verified, after a restart; the other slot becomes idle."""
    content = _closed(Slots(tmp_path))
    Slots(tmp_path).commit(content.name)
    again = Slots(tmp_path)
    assert again.committed() == content.name
    assert again.load(content.name) == content
    assert again.idle() != content.name


def test_a_slot_without_its_seal_is_empty(tmp_path: Path) -> None:
    """Files alone are a half-written slot and never used."""
    slots = Slots(tmp_path)
    name = _fill(slots)
    with pytest.raises(CorruptFileError, match="half-written"):
        slots.load(name)


def test_opening_a_slot_breaks_its_seal_first(tmp_path: Path) -> None:
    """Once a slot is opened for writing, its old content is gone for good, also when nothing follows."""
    slots = Slots(tmp_path)
    name = _closed(slots).name
    slots.open(name)
    with pytest.raises(CorruptFileError):
        slots.load(name)


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz", "seal"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_any_damage_is_noticed_at_load(tmp_path: Path, file: str, damage: str) -> None:
    """One flipped bit, a cut or a missing file in a slot is an error, never a model."""
    slots = Slots(tmp_path)
    content = _closed(slots)
    path = slots.folder(content.name) / file
    raw = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(raw[:-1] if damage == "truncate" else raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(CorruptFileError):
        slots.load(content.name)


def test_a_slot_closes_only_over_what_the_manifest_says(tmp_path: Path) -> None:
    """Sealing other bytes than the manifest's fails."""
    slots = Slots(tmp_path)
    name = _fill(slots)
    slots.model_path(name).write_bytes(b"another model")
    with pytest.raises(CorruptFileError):
        slots.close(name, _manifest(), "int8")


def test_an_unreadable_pointer_or_state_is_a_new_start(tmp_path: Path) -> None:
    """Damage to the pointer or to the updater's state never stops the agent; it knows that it has forgotten what may be
    kept."""
    slots = Slots(tmp_path)
    slots.commit(_closed(slots).name)
    (tmp_path / "committed").write_bytes(b"noise")
    assert slots.committed() is None
    persist_state(tmp_path / "state", UpdaterState(desired_sha256="0" * 64))
    assert load_state(tmp_path / "state").desired_sha256 == "0" * 64
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-2])
    assert load_state(tmp_path / "state") == UpdaterState(settings_known=False)
    assert load_state(tmp_path / "none") == UpdaterState(settings_known=True)


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz", "seal"])
def test_what_cannot_be_read_now_is_not_damaged(tmp_path: Path, file: str) -> None:
    """A disk that refuses to read a slot, its pointer or the updater's state is a passing error, never a new start."""
    slots = Slots(tmp_path)
    name = _closed(slots).name
    slots.commit(name)
    persist_state(tmp_path / "state", UpdaterState(desired_sha256="0" * 64))
    with faulty_disk(slots.folder(name) / file, errno.EIO, 0), pytest.raises(AgentError, match="now") as slot:
        slots.load(name)
    with faulty_disk(tmp_path / "committed", errno.EIO, 0), pytest.raises(AgentError, match="now") as pointer:
        slots.committed()
    with faulty_disk(tmp_path / "state", errno.EIO, 0), pytest.raises(AgentError, match="now") as state:
        load_state(tmp_path / "state")
    for caught in (slot, pointer, state):
        assert caught.value.retryable
        assert not isinstance(caught.value, CorruptFileError)


def _check(folder: Path, golden: bytes, *, max_latency_s: float = 5.0, bias: float = 0.0) -> None:
    (folder / "model").write_bytes(release_files(bias)["int8"])
    (folder / "golden").write_bytes(golden)
    model = load_model(folder / "model", _manifest())
    verify_model(model, load_golden(folder / "golden", SPEC), max_latency_s=max_latency_s)


def test_a_model_that_answers_as_expected_passes(tmp_path: Path) -> None:
    """Golden answers of the same model, computed elsewhere, are met."""
    _check(tmp_path, golden_bytes())


_IMAGES = np.full((3, 8, 8, 3), 100, np.uint8)
_PROBABILITIES, _EMBEDDING = answer(_IMAGES)


@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        (golden_bytes(bias=0.5), "answer is off by"),
        (golden_bytes(embedding=np.full((3, 3), 9, np.float32)), "answer is off by"),
        (golden_bytes(probabilities=np.full((3, 3), np.nan, np.float32)), "answer 0 is none"),
        (golden_bytes(embedding=np.full((3, 3), np.nan, np.float32)), "finite numbers"),
        (golden_bytes(tolerance=np.array(np.nan)), "tolerates"),
        (golden_bytes(tolerance=np.array(2.0)), "tolerates"),
        (golden_bytes(images=np.zeros((0, 8, 8, 3), np.uint8)), "needs uint8"),
        (golden_bytes(images=np.zeros((3, 9, 8, 3), np.uint8)), "needs uint8"),
        (golden_bytes(images=np.zeros((3, 8, 8, 3), np.float32)), "needs uint8"),
        (golden_bytes(probabilities=np.array([object()])), "cannot be read"),
        (b"noise", "cannot be read"),
        (golden_bytes()[:-40], "cannot be read"),
    ],
)
def test_a_model_that_answers_otherwise_fails(tmp_path: Path, golden: bytes, reason: str) -> None:
    """Other answers, NaN, a toothless tolerance, no inputs, pickles or a damaged file fail with the reason."""
    with pytest.raises(SelfCheckError, match=reason):
        _check(tmp_path, golden)


def test_a_model_that_answers_too_slowly_fails(tmp_path: Path) -> None:
    """A model slower than the bound is refused however right it is."""
    with pytest.raises(SelfCheckError, match="takes"):
        _check(tmp_path, golden_bytes(), max_latency_s=0.0)
