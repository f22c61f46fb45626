"""What an operator does by hand: start the repository, add and assign devices, bring in labels, turn a round.

The functions take the services they work on; the commands below them only read arguments and print.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from curate.catalog.models import RoundPhase
from curate.catalog.rounds import next_round_number
from curate.contracts.assignment import Assignment
from curate.contracts.ids import SAFE_NAME
from curate.contracts.paths import ack_key, reported_key
from curate.contracts.telemetry import ReportedState
from curate.errors import BlobNotFoundError, CatalogError, ConfigError, ContractError, ReleaseError
from curate.release.fleet import describe_problems
from curate.storage.access import device_policy

if TYPE_CHECKING:
    from flows._wiring import Services

MAX_DEVICE_ID = 64
RESERVED_IDS = frozenset({"imported"})
"""Pictures that people bring in lie under this name; a device of that name could replace them."""
_MAX_REPORT_BYTES = 1024 * 1024

console = Console()
device_app = typer.Typer(no_args_is_help=True, help="Add devices to the fleet, see them, and assign releases to them.")


def register(app: typer.Typer) -> None:
    """Add the operator's commands to the command line."""
    app.command("init")(init)
    app.command("import")(import_pictures)
    app.command("export")(export_labels)
    app.command("round")(turn_round)
    app.command("drift")(show_drift)
    app.add_typer(device_app, name="device")


def start_repository(wired: Services, root_file: Path, now: datetime) -> None:
    """Make the signing keys and the signed repository unless they are there, and write the root that devices trust.

    Raises:
        ReleaseError: the bucket holds a repository of other keys, or the root cannot be written.
    """
    from curate.release.repository import init_repository  # noqa: PLC0415

    raw = init_repository(wired.store, wired.settings.key_dir, now, wired.settings.expiry)
    try:
        root_file.parent.mkdir(parents=True, exist_ok=True)
        root_file.write_bytes(raw)
    except OSError as exc:
        raise ReleaseError(f"cannot write {root_file}: {exc.strerror}") from exc


def add_device(wired: Services, device_id: str, now: datetime) -> Assignment:
    """Know a device and tell it what to run: the fleet's release, if there is one, and the capture policy.

    Adding it again writes what the fleet runs now. The empty acknowledgement lets a device without the right to list
    tell "nothing yet" from "denied".

    Raises:
        ConfigError: the name cannot be a device's.
        ReleaseError: the assignment key is absent.
    """
    verify_device_id(device_id)
    wired.catalog.register_device(device_id, now)
    if wired.store.size(ack_key(device_id)) is None:
        acknowledgement = wired.catalog.acknowledgement(device_id, now=now)
        wired.store.put(ack_key(device_id), acknowledgement.to_bytes(), content_type="application/json")
    incumbent = wired.catalog.released_model()
    return _assign(wired, device_id, incumbent.release_id if incumbent else None, now=now)


def assign_device(
    wired: Services, device_id: str, release_id: str | None, *, allow_downgrade: bool, now: datetime
) -> Assignment:
    """Assign one release to one device until the next promoted candidate goes to the whole fleet.

    Raises:
        CatalogError: no such device.
        ReleaseError: no such release, or the assignment key is absent.
    """
    if device_id not in {device.device_id for device in wired.catalog.devices()}:
        raise CatalogError(f"there is no device {device_id}", hint="add it with `gleaner device add`")
    released = sorted(model.release_id for model in wired.catalog.models() if model.release_id)
    if release_id is not None and release_id not in released:
        raise ReleaseError(f"there is no release {release_id}", hint=f"there are {', '.join(released) or 'none'}")
    return _assign(wired, device_id, release_id, now=now, allow_downgrade=allow_downgrade)


def verify_device_id(device_id: str) -> None:
    """Accept a name that is safe inside an object key and not taken by the cloud itself.

    Raises:
        ConfigError: it is not.
    """
    if not re.fullmatch(SAFE_NAME, device_id) or len(device_id) > MAX_DEVICE_ID:
        raise ConfigError(
            f"{device_id!r} cannot be a device's name",
            hint=f"letters, digits, - and _, beginning with a letter or digit, at most {MAX_DEVICE_ID}",
        )
    if device_id in RESERVED_IDS:
        raise ConfigError(f"the name {device_id} is reserved", hint="pictures imported by people lie under it")


def fleet_rows(wired: Services) -> list[dict[str, Any]]:
    """One row a device, from its newest heartbeat in the bucket; `given up` counts captures it had to drop or evict."""
    incumbent = wired.catalog.released_model()
    newest = incumbent.release_id if incumbent else None
    return [_fleet_row(wired, device.device_id, newest) for device in wired.catalog.devices()]


def _fleet_row(wired: Services, device_id: str, newest: str | None) -> dict[str, Any]:
    try:
        state = ReportedState.from_bytes(wired.store.get(reported_key(device_id), max_bytes=_MAX_REPORT_BYTES))
    except BlobNotFoundError:
        return {"device": device_id, "problem": "never heard of"}
    except ContractError as exc:
        return {"device": device_id, "problem": f"its heartbeat cannot be read: {exc}"}
    counters = state.counters
    return {
        "device": device_id,
        "last seen": f"{state.reported_at:%Y-%m-%d %H:%M}",
        "release": state.release_id,
        "pending": counters.pending,
        "given up": counters.evicted + sum(counters.dropped.values()),
        "problem": "; ".join(describe_problems(state, newest)),
    }


def describe_round(wired: Services, number: int) -> str:
    """Say in a line where a round stands and what became of its candidate.

    Raises:
        CatalogError: there is no such round.
    """
    current = wired.catalog.round(number)
    if current is None:
        raise CatalogError(f"there is no round {number}")
    model = next((model for model in wired.catalog.models() if model.round_number == number), None)
    if current.phase is not RoundPhase.CLOSED:
        return f"round {number} stands at {current.phase}; run it again when the annotators have answered"
    if model is None or model.gate is None:
        return f"round {number} is closed"
    verdict = f"released as {model.release_id}" if model.release_id else "refused, the incumbent stays"
    return f"round {number} is closed: {model.model_id} {verdict} ({'; '.join(model.gate['reasons'])})"


def _assign(
    wired: Services, device_id: str, release_id: str | None, *, now: datetime, allow_downgrade: bool = False
) -> Assignment:
    from curate.release.assignments import assign  # noqa: PLC0415
    from flows._fleet_sketch import sketch_for  # noqa: PLC0415

    return assign(
        wired.store,
        wired.settings.key_dir,
        device_id,
        release_id,
        wired.settings.capture_policy,
        settings=wired.settings.device_settings,
        fleet_sketch=sketch_for(wired, release_id),
        now=now,
        allow_downgrade=allow_downgrade,
        accepted_version=_accepted_version(wired, device_id),
    )


def _accepted_version(wired: Services, device_id: str) -> int:
    """The highest assignment the device says it has followed; matters when the bucket's document was lost."""
    try:
        raw = wired.store.get(reported_key(device_id), max_bytes=_MAX_REPORT_BYTES)
        return ReportedState.from_bytes(raw).assignment_version or 0
    except (BlobNotFoundError, ContractError):
        return 0


def _connect() -> Services:
    from flows._wiring import services  # noqa: PLC0415 (loads the database and the annotation client)

    return services()


# -- commands ------------------------------------------------------------------------------------------------


def init(
    root_file: Annotated[Path, typer.Option(help="Where to write what devices get as `trust.root_file`.")] = Path(
        "root.json"
    ),
) -> None:
    """Create the bucket, the signing keys and the signed release repository. Running it again changes nothing.

    Reads GLEANER_CONFIG. Keep a copy of the key folder: who loses the keys has to visit every device.
    """
    from curate.storage.s3 import ensure_bucket  # noqa: PLC0415

    wired = _connect()
    ensure_bucket(wired.settings.bucket)
    start_repository(wired, root_file, datetime.now(UTC))
    typer.echo(f"keys: {wired.settings.key_dir}   trusted root for devices: {root_file}")
    typer.echo("next: gleaner device add ID")


def import_pictures(
    source: Annotated[
        Path, typer.Argument(exists=True, help="A folder, or COCO's annotation file with images beside.")
    ],
) -> None:
    """Bring in pictures that are labelled already; the very first model is trained on them.

    For classification a folder <class>/<picture>.jpg or .png. For detection COCO (annotations/*.json and images/, or
    one annotation file) or YOLO (a folder with data.yaml). Importing again adds what is new.
    Without PREFECT_API_URL Prefect runs inside this process.
    """
    from flows.import_labels import import_labels  # noqa: PLC0415

    count = import_labels(source.resolve())
    typer.echo(f"{count} labelled pictures are in the catalog")


def export_labels(
    folder: Annotated[Path, typer.Argument(help="An empty folder, or one that does not exist yet.")],
    format_name: Annotated[str, typer.Option("--format", help="coco or yolo.")] = "coco",
    version: Annotated[str | None, typer.Option(help="A dataset version; by default the newest.")] = None,
) -> None:
    """Write a dataset version with its pictures for other tools."""
    from flows._wiring import services  # noqa: PLC0415
    from flows.export_dataset import export_dataset  # noqa: PLC0415

    exported = export_dataset(services(), version, format_name, folder)
    typer.echo(f"{exported.images} images with {exported.boxes} boxes: {', '.join(map(str, exported.files))}")


def turn_round(
    number: Annotated[int | None, typer.Option(min=0, help="The round; by default the open one or the next.")] = None,
) -> None:
    """Turn the loop once in this process, from wherever an earlier run stopped. The worker does it by schedule.

    Not beside a worker that is turning the same round.
    """
    from flows.curation_round import curation_round  # noqa: PLC0415

    wired = _connect()
    chosen = next_round_number(wired.catalog.rounds()) if number is None else number
    curation_round(chosen)
    typer.echo(describe_round(wired, chosen))


def show_drift() -> None:
    """Show which cameras' worlds have changed since the model that runs there was made."""
    from flows.watch_drift import drift_rows  # noqa: PLC0415 (loads the model's runtime)

    rows = drift_rows(_connect())
    table = Table("camera", "changed since", "evidence", "watched", "reference", "note", title="drift")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table if rows else "nothing is released yet, or nothing was captured")


@device_app.command("add")
def device_add(device_id: Annotated[str, typer.Argument(help="The `device_id` of its agent.yaml.")]) -> None:
    """Register a device and sign its first assignment. Its bucket rights: `gleaner device policy ID`."""
    assignment = add_device(_connect(), device_id, datetime.now(UTC))
    typer.echo(_describe(assignment))


@device_app.command("assign")
def device_assign(
    device_id: Annotated[str, typer.Argument()],
    release: Annotated[str, typer.Argument(help="A release id, as in `gleaner device list`.")],
    allow_downgrade: Annotated[
        bool, typer.Option("--allow-downgrade", help="Let the device go back to an older release.")
    ] = False,
) -> None:
    """Give one device another release than the fleet's. The next promoted model replaces it."""
    wired = _connect()
    assignment = assign_device(wired, device_id, release, allow_downgrade=allow_downgrade, now=datetime.now(UTC))
    typer.echo(_describe(assignment))


@device_app.command("list")
def device_list() -> None:
    """Show every device with its newest heartbeat; times are UTC."""
    rows = fleet_rows(_connect())
    columns = ("device", "last seen", "release", "pending", "given up", "problem")
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if row.get(name) is None else str(row[name]) for name in columns))
    console.print(table)


@device_app.command("policy")
def device_policy_document(device_id: Annotated[str, typer.Argument()]) -> None:
    """Print the bucket rights of one device as an AWS policy document; create its key with exactly these."""
    from curate.settings import load_settings  # noqa: PLC0415

    verify_device_id(device_id)
    typer.echo(json.dumps(device_policy(load_settings().bucket.bucket, device_id), indent=2))


def _describe(assignment: Assignment) -> str:
    release = assignment.release_id or "no release yet"
    policy = assignment.capture_policy.version
    return f"{assignment.device_id}: assignment {assignment.version}, {release}, capture policy {policy}"
