"""When a capture was taken, on a device whose clock may have been wrong at the time. Pure."""

from __future__ import annotations

from datetime import timedelta

from curate.contracts.capture import CaptureClock, CaptureRecord
from edge_agent.clock import TRUSTED_ERROR_S, ClockState


def stamp(record: CaptureRecord, state: ClockState) -> CaptureRecord:
    """Return a record taken at the system's time with the time as it is known now, and how well."""
    return _shifted(record, state.offset_s, state, state.system_epoch_s)


def restamp(record: CaptureRecord, state: ClockState, *, boot_id: str) -> CaptureRecord:
    """Return a record of this boot that was stamped before the time was known, with the time as it is known now.

    The monotonic clock has run on between the two, so it does not matter whether somebody set the clock meanwhile.
    """
    known = record.clock
    if known is None or known.uncertainty_s is not None or not state.synchronised or record.boot_id != boot_id:
        return record
    offset_s = state.offset_s + state.system_epoch_s - known.system_epoch_s
    return _shifted(record, offset_s if abs(offset_s) > TRUSTED_ERROR_S else 0.0, state, known.system_epoch_s)


def _shifted(record: CaptureRecord, offset_s: float, state: ClockState, system_epoch_s: float) -> CaptureRecord:
    clock = CaptureClock(offset_s=offset_s, uncertainty_s=state.uncertainty_s, system_epoch_s=system_epoch_s)
    captured_at = record.captured_at + timedelta(seconds=offset_s)
    return record.model_copy(update={"captured_at": captured_at, "clock": clock})
