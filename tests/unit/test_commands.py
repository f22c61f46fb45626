"""The operator's commands: start the repository, add and assign devices, see the fleet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root
from typer.testing import CliRunner

from curate.catalog.models import DatasetVersion, ModelRow, ModelStatus, RoundPhase
from curate.contracts.assignment import Acknowledgement, Assignment
from curate.contracts.paths import ack_key, desired_key, reported_key
from curate.contracts.signing import ASSIGNMENT_KEYS_FIELD
from curate.contracts.telemetry import DeviceCounters, ReportedState, UpdateEvent
from curate.errors import CatalogError, ConfigError, Error, ReleaseError
from edge_agent.models.trust import TrustFloor, verify_assignment
from flows._wiring import Services
from flows.cli import app
from flows.commands import add_device, assign_device, describe_round, fleet_rows, start_repository, verify_device_id
from tests.fakes.wiring import local_services

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """Real parts on this disk; nobody talks to Label Studio."""
    with local_services(tmp_path) as services:
        yield services


def _start(wired: Services, tmp_path: Path) -> Root:
    start_repository(wired, tmp_path / "etc" / "root.json", NOW)
    return Metadata[Root].from_file(str(tmp_path / "etc" / "root.json")).signed


def _publish(wired: Services, number: int) -> None:
    """A released model in the catalog; its files do not matter here."""
    wired.catalog.save_dataset_version(DatasetVersion("d" * 64, 0, NOW, ()))
    wired.catalog.save_model(
        ModelRow(f"m{number}", number, "d" * 64, NOW, ModelStatus.RELEASED, {}, {}, f"r000{number}", number)
    )


def _believed(wired: Services, root: Root, device_id: str) -> Assignment:
    """The bucket's assignment as that device reads it."""
    keys = {
        key_id: Key.from_dict(key_id, dict(value))
        for key_id, value in root.unrecognized_fields[ASSIGNMENT_KEYS_FIELD].items()
    }
    return verify_assignment(wired.store.get(desired_key(device_id)), keys, device_id, TrustFloor()).assignment


def _report(wired: Services, device_id: str, **facts: object) -> None:
    state = ReportedState.model_validate(
        {"device_id": device_id, "boot_id": "b", "reported_at": NOW, "agent_version": "1", "counters": DeviceCounters()}
        | facts
    )
    wired.store.put(reported_key(device_id), state.to_bytes())


def test_starting_twice_changes_nothing(wired: Services, tmp_path: Path) -> None:
    """The second start gives the same root and leaves every blob of the bucket as it is."""
    root = _start(wired, tmp_path)
    blobs = {blob.key: wired.store.get(blob.key) for blob in wired.store.list("")}
    assert _start(wired, tmp_path) == root
    assert {blob.key: wired.store.get(blob.key) for blob in wired.store.list("")} == blobs


def test_a_root_that_cannot_be_written_is_told(wired: Services, tmp_path: Path) -> None:
    """A root file below something that is no folder ends in an error of ours."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ReleaseError, match=r"root\.json"):
        start_repository(wired, tmp_path / "file" / "root.json", NOW)


def test_a_device_added_before_any_release_gets_its_policy(wired: Services, tmp_path: Path) -> None:
    """Its first assignment is signed by the root's key, names no release, and carries the configured policy."""
    root = _start(wired, tmp_path)
    add_device(wired, "cam-1", NOW)
    believed = _believed(wired, root, "cam-1")
    assert (believed.release_id, believed.capture_policy) == (None, wired.settings.capture_policy)
    assert [device.device_id for device in wired.catalog.devices()] == ["cam-1"]


def test_a_new_device_reads_an_acknowledgement_of_nothing(wired: Services, tmp_path: Path) -> None:
    """An S3 that answers "denied" for what is missing never has to: the document is there from the start."""
    _start(wired, tmp_path)
    add_device(wired, "cam-1", NOW)
    assert Acknowledgement.from_bytes(wired.store.get(ack_key("cam-1"))).through == {}


def test_adding_again_follows_the_fleet_and_keeps_the_acknowledgement(wired: Services, tmp_path: Path) -> None:
    """A device added again gets the newest release under a higher version; what was acknowledged stays."""
    root = _start(wired, tmp_path)
    add_device(wired, "cam-1", NOW)
    acknowledged = Acknowledgement(device_id="cam-1", through={"boot": 7}, updated_at=NOW).to_bytes()
    wired.store.put(ack_key("cam-1"), acknowledged)
    _publish(wired, 1)
    add_device(wired, "cam-1", NOW)
    believed = _believed(wired, root, "cam-1")
    assert (believed.release_id, believed.version) == ("r0001", 2)
    assert wired.store.get(ack_key("cam-1")) == acknowledged


def test_an_older_release_is_assigned_with_its_permission(wired: Services, tmp_path: Path) -> None:
    """Going back names the older release, carries the signed permission, and is for that device only."""
    root = _start(wired, tmp_path)
    _publish(wired, 1)
    _publish(wired, 2)
    for device in ("cam-1", "cam-2"):
        add_device(wired, device, NOW)
    assign_device(wired, "cam-1", "r0001", allow_downgrade=True, now=NOW)
    back = _believed(wired, root, "cam-1")
    assert (back.release_id, back.allow_downgrade) == ("r0001", True)
    assert _believed(wired, root, "cam-2").release_id == "r0002"


def test_an_assignment_that_was_lost_continues_above_what_the_device_followed(wired: Services, tmp_path: Path) -> None:
    """With `desired.json` gone, the next version is above the one in the heartbeat, or the device would refuse it."""
    root = _start(wired, tmp_path)
    _report(wired, "cam-1", assignment_version=41)
    add_device(wired, "cam-1", NOW)
    assert _believed(wired, root, "cam-1").version == 42


def test_what_is_not_there_cannot_be_assigned(wired: Services, tmp_path: Path) -> None:
    """A strange device and a strange release are refused, and nothing is signed."""
    _start(wired, tmp_path)
    with pytest.raises(CatalogError, match="cam-9"):
        assign_device(wired, "cam-9", "r0001", allow_downgrade=False, now=NOW)
    wired.catalog.register_device("cam-1", NOW)
    with pytest.raises(ReleaseError, match="r0009"):
        assign_device(wired, "cam-1", "r0009", allow_downgrade=False, now=NOW)
    assert wired.store.size(desired_key("cam-1")) is None


@pytest.mark.parametrize("name", ["", "-cam", "cam/1", "cam 1", "..", "c" * 65, "imported", "cam\n"])
def test_names_that_cannot_be_devices(name: str) -> None:
    """A name that is no safe key component, is too long, or belongs to the cloud is refused with a hint."""
    with pytest.raises(ConfigError) as refused:
        verify_device_id(name)
    assert refused.value.hint


def test_the_fleet_is_told_from_the_heartbeats(wired: Services, tmp_path: Path) -> None:
    """Silent, unreadable, refusing and healthy devices each have a row that says so."""
    _start(wired, tmp_path)
    _publish(wired, 1)
    for device in ("broken", "fine", "refusing", "silent"):
        wired.catalog.register_device(device, NOW)
    wired.store.put(reported_key("broken"), b"{")
    committed = UpdateEvent(at=NOW, outcome="committed", release_id="r0001")
    lost = DeviceCounters(evicted=2, dropped={"disk_full": 3})
    _report(wired, "fine", release_id="r0001", updates=[committed], counters=lost)
    refused = UpdateEvent(at=NOW, outcome="refused", detail="a false signature")
    _report(wired, "refusing", updates=[committed, refused], quarantined=1)
    rows = {row["device"]: row for row in fleet_rows(wired)}
    assert (rows["fine"]["release"], rows["fine"]["given up"], rows["fine"]["problem"]) == ("r0001", 5, "")
    assert rows["refusing"]["problem"] == "refused: a false signature; not on r0001; 1 file(s) in quarantine"
    assert "cannot be read" in rows["broken"]["problem"]
    assert rows["silent"]["problem"] == "never heard of"


def test_a_round_is_described(wired: Services) -> None:
    """A waiting round says what it waits for, a closed one what became of its candidate and why."""
    wired.catalog.open_round(1, budget=10, seed=0, now=NOW)
    assert "annotators" in describe_round(wired, 1)
    wired.catalog.advance_round(1, RoundPhase.CLOSED, {}, now=NOW)
    wired.catalog.save_dataset_version(DatasetVersion("d" * 64, 0, NOW, ()))
    gate = {"promote": False, "reasons": ["not enough evidence"]}
    wired.catalog.save_model(ModelRow("m1", 1, "d" * 64, NOW, ModelStatus.REFUSED, {}, {}, gate=gate))
    assert describe_round(wired, 1).endswith("m1 refused, the incumbent stays (not enough evidence)")
    with pytest.raises(CatalogError, match="9"):
        describe_round(wired, 9)


def test_the_policy_command_prints_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gleaner device policy` prints one JSON document that names this device's prefixes and the configured bucket."""
    monkeypatch.setenv("GLEANER_BUCKET__BUCKET", "orchard")
    monkeypatch.setenv("GLEANER_LABEL_STUDIO__URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GLEANER_LABEL_STUDIO__TOKEN", "0" * 40)
    result = CliRunner().invoke(app, ["device", "policy", "cam-1"])
    assert result.exit_code == 0
    resources = [arn for statement in json.loads(result.stdout)["Statement"] for arn in statement["Resource"]]
    assert "arn:aws:s3:::orchard/captures/cam-1/*" in resources
    assert all("cam-1" in arn or arn.endswith("/tuf/*") for arn in resources)


def test_a_bad_name_ends_the_policy_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """No policy is printed for a name that could widen it."""
    result = CliRunner().invoke(app, ["device", "policy", "*"])
    assert isinstance(result.exception, Error)
    assert result.stdout == ""
