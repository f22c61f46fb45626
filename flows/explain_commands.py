"""`gleaner explain`, `gleaner sheet`, `gleaner savings`: why people were asked what they were, and what it saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from curate.errors import ConfigError

console = Console()


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("explain")(explain)
    app.command("sheet")(sheet)
    app.command("savings")(savings)


def explain(
    sample: Annotated[str, typer.Argument(help="A sample's id, or as much of its beginning as is its alone.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of sentences.")] = False,
) -> None:
    """Tell why a sample was chosen, what its score is made of, and what came of it."""
    from flows._wiring import services  # noqa: PLC0415 (loads the database)
    from flows.explain import explain_sample  # noqa: PLC0415
    from flows.explain_words import tell_account  # noqa: PLC0415

    account = explain_sample(services(), sample)
    if as_json:
        typer.echo(json.dumps(account.to_json(), ensure_ascii=False))
        return
    console.print(f"[bold]{escape(account.sample.sample_id)}[/]", highlight=False)
    for heading, lines in tell_account(account):
        console.print(f"\n[bold]{heading}[/]")
        for line in lines:
            console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def sheet(
    number: Annotated[int, typer.Argument(min=0, help="The round.", metavar="ROUND")],
    out: Annotated[Path | None, typer.Option(help="Where to write it; by default round-N-sheet.html here.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=2000, help="So many pictures at most, the first by rank.")] = 300,
) -> None:
    """Write a page with every picture a round has chosen, its reason, and the closest label beside it."""
    from flows._wiring import services  # noqa: PLC0415
    from flows.explain_sheet import build_sheet  # noqa: PLC0415

    page = out or Path(f"round-{number}-sheet.html")
    html = build_sheet(services(), number, limit)
    try:
        page.write_text(html, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"cannot write {page}: {exc.strerror}") from exc
    typer.echo(f"{page}: {len(html) / 1e6:.1f} MB")


def savings(
    number: Annotated[
        int | None, typer.Argument(min=0, help="The round; by default the newest, once.", metavar="ROUND")
    ] = None,
) -> None:
    """Measure how many labels choosing has saved against random ones: trains a control on the explored labels alone."""
    from flows._field_report import describe_savings  # noqa: PLC0415
    from flows.measure_savings import measure_savings  # noqa: PLC0415 (loads torch)

    found = measure_savings(number)
    console.print(
        "nothing to measure: the newest round has been, or there is none" if found is None else describe_savings(found),
        highlight=False,
    )
