"""Watch the fleet follow its assignments, and keep the signatures fresh."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from curate.contracts.paths import reported_key
from curate.contracts.telemetry import ReportedState
from curate.errors import BlobNotFoundError, ContractError
from curate.release.fleet import describe_problems
from curate.release.repository import refresh_timestamp
from flows._fleet_sketch import refresh_sketches
from flows._stage import stage_task
from flows._wiring import services

MAX_REPORT_BYTES = 1024 * 1024


@flow(name="supervise-rollout")
def supervise_rollout() -> int:
    """Read every heartbeat, publish the fleet's state, renew the timestamp, tell devices what the fleet has sent.

    Returns how many devices lag behind.
    """
    rows = read_heartbeats()
    create_table_artifact(key="fleet", table=rows, description="Devices: what they run and what they should run")
    renew_signatures()
    tell_fleet_sketch()
    return sum(not row["up to date"] for row in rows)


@stage_task("read heartbeats")
def read_heartbeats() -> list[dict[str, Any]]:
    """Fetch each device's `reported.json` into the catalog and return one row a device."""
    wired = services()
    incumbent = wired.catalog.released_model()
    rows: list[dict[str, Any]] = []
    for device in wired.catalog.devices():
        try:
            raw = wired.store.get(reported_key(device.device_id), max_bytes=MAX_REPORT_BYTES)
            state = ReportedState.from_bytes(raw)
        except (BlobNotFoundError, ContractError) as exc:
            rows.append({"device": device.device_id, "release": None, "up to date": False, "problem": str(exc)})
            continue
        wired.catalog.save_reported(state, now=datetime.now(UTC))
        rows.append(
            {
                "device": device.device_id,
                "release": state.release_id,
                "up to date": incumbent is not None and state.release_id == incumbent.release_id,
                "last seen": state.reported_at.isoformat(timespec="seconds"),
                "captures pending": state.counters.pending,
                "problem": "; ".join(describe_problems(state, incumbent.release_id if incumbent else None)) or None,
            }
        )
    return rows


@stage_task("renew signatures")
def renew_signatures() -> None:
    """Extend the timestamp's life before it runs out."""
    wired = services()
    refresh_timestamp(wired.store, wired.settings.key_dir, datetime.now(UTC), expiry=wired.settings.expiry)


@stage_task("tell the fleet's sketch")
def tell_fleet_sketch() -> int:
    """Sign anew the assignments of devices that should know of something new; return how many."""
    told = refresh_sketches(services(), datetime.now(UTC))
    if told:
        get_run_logger().info("%d devices are told what the fleet has sent", told)
    return told
