"""`gleaner`: the local stack, the demo, and the flows at hand."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from curate.errors import Error
from flows import commands, explain_commands, trust_commands
from flows.bench_commands import bench_app

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn what cameras get wrong into a better model on those cameras.",
    epilog="Start with `gleaner demo`: the whole loop on this machine, with real services, in a few minutes.",
)
console = commands.console

Root = Annotated[Path, typer.Option(help="Where data, logs and process ids live.")]
DEFAULT_ROOT = Path(".gleaner")
DEMO = "demo"


@app.command()
def demo(
    world: Annotated[str, typer.Option(help="What the cameras see: fashion (one class a frame) or plaza (boxes).")] = (
        "fashion"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the world, the selection and the training.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of the loop after the first release.")] = 2,
    budget: Annotated[int | None, typer.Option(min=10, help="Labels a round. By default what suits the world.")] = None,
    window_s: Annotated[
        float | None, typer.Option(help="Seconds the cameras look before each round; likewise.")
    ] = None,
    chaos: Annotated[
        str, typer.Option(help="Kill at random moments, comma-separated: agent, flow, label-studio, s3.")
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the services up and print their addresses.")] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Turn the loop on real services with simulated cameras and people, and write a report.

    Cameras watch Fashion-MNIST garments, or the people on a plaza; people dismiss wrong predictions; annotators answer
    in Label Studio; models are retrained, compressed, signed and rolled out. Ends with .gleaner/demo/report.html and
    a non-zero exit code if a single frame, capture, task or verdict is unaccounted for.
    """
    from flows.sandbox.show import run_demo  # noqa: PLC0415 (loads only when needed)
    from flows.sandbox.worlds.registry import find_world  # noqa: PLC0415

    kinds = tuple(kind for kind in chaos.split(",") if kind)
    usual = find_world(world).script
    script = replace(
        usual,
        seed=seed,
        rounds=rounds,
        budget=usual.budget if budget is None else budget,
        window_s=usual.window_s if window_s is None else window_s,
        chaos=kinds,
    )
    closes = run_demo(root / DEMO, script, keep=keep, console=console)
    raise typer.Exit(0 if closes else 1)


@app.command()
def up(
    root: Root = DEFAULT_ROOT,
    device: Annotated[list[str] | None, typer.Option(help="A device that gets S3 keys; repeat for more.")] = None,
) -> None:
    """Start the local stack: an S3 server, a Prefect server and Label Studio, all on loopback."""
    from flows.sandbox.stack import start_stack  # noqa: PLC0415

    with console.status("starting S3, Prefect and Label Studio"):
        start_stack(root, tuple(device or ()))
    _show_status(root)


@app.command()
def down(root: Root = DEFAULT_ROOT) -> None:
    """Stop everything that runs under the root, a kept or broken demo included. Data stays."""
    from flows.sandbox.stack import stop_stack  # noqa: PLC0415

    stopped = [*stop_stack(root / DEMO), *stop_stack(root)]
    console.print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status(root: Root = DEFAULT_ROOT) -> None:
    """Show what runs under the root and where."""
    _show_status(root)
    if (root / DEMO / "stack.json").exists():
        _show_status(root / DEMO)


@app.command()
def worker() -> None:
    """Register the flows with Prefect and run what is due, until stopped. Reads GLEANER_CONFIG and PREFECT_API_URL."""
    from flows.worker import serve_deployments  # noqa: PLC0415

    serve_deployments()


def _show_status(root: Path) -> None:
    from flows.sandbox.stack import stack_status  # noqa: PLC0415

    table = Table("service", "state", title=str(root))
    table.add_column("address", no_wrap=True)  # it is there to be copied
    table.add_column("process")
    table.add_column("log", overflow="fold")
    for each in stack_status(root):
        colour = {"ready": "green", "not ready": "yellow", "stopped": "red"}[each.state]
        pid = str(each.pid) if each.pid else ""
        table.add_row(each.name, f"[{colour}]{each.state}[/]", each.address or "", pid, str(each.log))
    console.print(table)


commands.register(app)
explain_commands.register(app)
trust_commands.register(app)
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Run the command line; expected errors print a message and the next step, never a trace."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("flows.sandbox").setLevel(logging.INFO)
    try:
        app()
    except Error as exc:
        console.print(f"[red]error:[/] {exc}", highlight=False)
        if exc.hint:
            console.print(f"  hint: {exc.hint}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
