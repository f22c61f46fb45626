"""What the fleet has sent already, told to its devices: no two of them send the same new thing."""

from __future__ import annotations

from datetime import datetime, timedelta

from curate.catalog.models import DeviceRow
from curate.contracts.sketch import EmbeddingSketch
from curate.release.assignments import assign, read_assignment
from curate.release.fleet_sketch import SentSketch, grow_sketch, is_due, should_tell, still_holds, uses_sketch
from flows._wiring import Services


def sketch_for(wired: Services, release_id: str | None) -> EmbeddingSketch | None:
    """What the fleet has sent in the space of a release, as far as it was looked at; None where nobody compares."""
    if release_id is None or _interval(wired) is None:
        return None
    found = still_holds(_load(wired, release_id), wired.catalog.unlearned_devices())
    return None if found is None else found.sketch


def refresh_sketches(wired: Services, now: datetime) -> int:
    """Look at what has come since, where that is due, and tell the devices; return how many were told something new.

    The sketch is kept after the devices were told: a run that dies between is made up for by the next.
    """
    if (interval := _interval(wired)) is None:
        return 0
    forgotten, told = wired.catalog.unlearned_devices(), 0
    for release_id, devices in _answering(wired).items():
        before = still_holds(_load(wired, release_id), forgotten)
        if not is_due(before, now, interval):
            continue
        blocks = wired.catalog.arrivals(release_id, before.reached if before else None)
        after = grow_sketch(before, blocks, release_id=release_id, now=now, forgotten=forgotten)
        if after is not None:
            told += sum(_tell(wired, device, after.sketch, now) for device in devices)
            wired.catalog.set_watermark(_name(release_id), after.model_dump_json())
    return told


def _tell(wired: Services, device: DeviceRow, sketch: EmbeddingSketch, now: datetime) -> bool:
    current = read_assignment(wired.store, wired.settings.key_dir, device.device_id)
    if current is None or not should_tell(current, sketch):
        return False
    assign(
        wired.store,
        wired.settings.key_dir,
        device.device_id,
        current.release_id,
        wired.settings.capture_policy,
        settings=wired.settings.device_settings,
        fleet_sketch=sketch,
        now=now,
    )
    return True


def _interval(wired: Services) -> timedelta | None:
    """The longest wait between two looks; None where devices shall not be told."""
    interval_s = wired.settings.schedule.fleet_sketch_s
    return timedelta(seconds=interval_s) if interval_s and uses_sketch(wired.settings.capture_policy) else None


def _answering(wired: Services) -> dict[str, list[DeviceRow]]:
    """Releases that devices say answer their frames, each with those devices: only they can compare in its space."""
    released = sorted(model.release_id for model in wired.catalog.models() if model.release_id)
    devices = [device for device in wired.catalog.devices() if device.reported and device.unlearned_at is None]
    running = {name: [d for d in devices if d.reported and d.reported.release_id == name] for name in released}
    return {name: some for name, some in running.items() if some}


def _load(wired: Services, release_id: str) -> SentSketch | None:
    stored = wired.catalog.watermark(_name(release_id))
    return None if stored is None else SentSketch.model_validate_json(stored)


def _name(release_id: str) -> str:
    return f"fleet-sketch/{release_id}"
