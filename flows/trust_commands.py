"""`gleaner trust`, `gleaner unlearn` and `gleaner device site`: who is believed, and who no longer counts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from flows.commands import console, device_app


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("trust")(show_trust)
    app.command("unlearn")(unlearn)
    device_app.command("site")(place)


def show_trust() -> None:
    """Show what each device's dismissals are worth, and whose answers annotators contradict more than the others'."""
    from flows._trust import trust_rows  # noqa: PLC0415 (loads the judges)
    from flows._wiring import services  # noqa: PLC0415 (loads the database)

    rows = trust_rows(services())
    table = Table(*(rows[0] if rows else ()), title="trust")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table if rows else "there are no devices yet")


def unlearn(
    device_id: Annotated[str, typer.Argument(help="The device, as in `gleaner device list`.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this only what would change is shown.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let the device count again.")] = False,
) -> None:
    """Rebuild the dataset without anything a device sent, and let nothing of it count from now on.

    Its samples are neither chosen nor trained on, its dismissals are evidence of nothing, and training does not begin
    with weights that have seen them. Nothing is deleted. The device goes on running and sending: take its bucket key
    away to stop that.
    """
    from flows._wiring import services  # noqa: PLC0415 (loads the database)
    from flows.unlearn_device import describe_plan, plan_unlearn, unlearn_device  # noqa: PLC0415

    plan = (unlearn_device if yes else plan_unlearn)(services(), device_id, datetime.now(UTC), undo=undo)
    for line in describe_plan(plan, done=yes):
        typer.echo(line)
    if plan and not yes:
        typer.echo("nothing is changed yet: add --yes")


def place(
    device_id: Annotated[str, typer.Argument(help="The device, as in `gleaner device list`.")],
    site: Annotated[str | None, typer.Argument(help="Where it stands. Without one the device has no site.")] = None,
) -> None:
    """Note where a device stands; `selection.max_site_share` bounds what the devices of one site take together."""
    from flows._wiring import services  # noqa: PLC0415 (loads the database)

    services().catalog.place_device(device_id, site)
    typer.echo(f"{device_id}: {site or 'no site'}")
