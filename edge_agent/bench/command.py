"""`gleaner-agent bench`: measure, judge, and write it down."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from curate.errors import AgentError, ConfigError, Error
from edge_agent.bench.bare import open_session
from edge_agent.bench.gate import measure_gate
from edge_agent.bench.model import find_slot_model, load_file, make_pictures
from edge_agent.bench.overhead import measure_overhead
from edge_agent.bench.processes import measure_processes
from edge_agent.bench.report import Outcome, Section, to_document, to_markdown
from edge_agent.bench.spool import measure_spool
from edge_agent.cameras.base import Pixels
from edge_agent.config.agent import load_config
from edge_agent.machine import processor_name
from edge_agent.models.inference import LoadedModel

SECTIONS: Final = ("overhead", "processes", "spool", "gate")
_PICTURES: Final = 16
_BEGIN: Final = "<!-- measured: begin -->"
_END: Final = "<!-- measured: end -->"


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="measure with the release that this device has installed")
    source.add_argument("--model", type=Path, help="measure with this ONNX file instead")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="leave out the others; may be repeated")
    parser.add_argument("--frames", type=int, default=400, help="frames of one repeat of the overhead (default 400)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one run of a process (default 20)")
    parser.add_argument("--repeats", type=int, default=5, help="figures are medians over these (default 5)")
    parser.add_argument("--captures", type=int, default=50_000, help="of the big spool that is opened (default 50000)")
    parser.add_argument("--spool-dir", type=Path, help="measure the spool on the disk of this folder, not of /tmp")
    parser.add_argument("--clip", type=Path, help="a video file to measure the scene gate on")
    parser.add_argument(
        "--detector", type=Path, help="an ONNX detector that watches the clip; the model itself without"
    )
    parser.add_argument("--sensitivity", type=float, default=0.5, help="the scene gate's (default 0.5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--write", type=Path, help="put the table between the marks in this Markdown file")


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure; 1 when a bar is missed or the machine is too noisy to tell."""
    path, model = _open_model(arguments)
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-") as folder:
        sections = list(_measure(arguments, path, model, Path(folder)))
    facts = machine_facts(path, model)
    table = to_markdown(sections, facts)
    if arguments.write is not None:
        arguments.write.write_text(replace_table(arguments.write.read_text("utf-8"), table), "utf-8")
    print(json.dumps(to_document(sections, facts), indent=2) if arguments.json else table)
    outcomes = {figure.outcome for section in sections for figure in section.figures}
    return 1 if outcomes & {Outcome.MISSED, Outcome.NOISY} or any(section.left_out for section in sections) else 0


def replace_table(text: str, table: str) -> str:
    """Return the document with another table between its marks.

    Raises:
        ConfigError: it has no marks.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ConfigError(f"the document has no place for the table: {_BEGIN} and {_END}")
    return f"{before}{_BEGIN}\n{table}{_END}{after}"


def machine_facts(path: Path, model: LoadedModel) -> dict[str, str]:
    """Return what the figures depend on."""
    spec = model.spec
    return {
        "machine": f"{processor_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load before": ", ".join(f"{load:.2f}" for load in os.getloadavg()),
        "model": f"{path.name}, {spec.kind}, {spec.width}x{spec.height}, {path.stat().st_size} bytes, one thread",
    }


def _open_model(arguments: argparse.Namespace) -> tuple[Path, LoadedModel]:
    if arguments.model is not None:
        return arguments.model, load_file(arguments.model)
    return find_slot_model(load_config(arguments.config).state_dir)


def _measure(arguments: argparse.Namespace, path: Path, model: LoadedModel, folder: Path) -> Iterator[Section]:
    pictures = make_pictures(model.spec.height, model.spec.width, _PICTURES)
    sections: dict[str, Callable[[], Section]] = {
        "overhead": lambda: _measure_overhead(arguments, path, model, pictures, folder / "overhead"),
        "processes": lambda: measure_processes(
            path,
            pictures,
            folder / "pictures",
            seconds=arguments.seconds,
            repeats=max(1, arguments.repeats),
            tell=_tell,
        ),
        "spool": lambda: _measure_spool(arguments),
        "gate": lambda: _measure_gate(arguments, model),
    }
    for name in arguments.only or SECTIONS:
        _tell(f"{name} …")
        try:
            yield sections[name]()
        except (Error, OSError) as exc:
            yield Section(name, left_out=str(exc))


def _measure_overhead(
    arguments: argparse.Namespace, path: Path, model: LoadedModel, pictures: list[Pixels], folder: Path
) -> Section:
    session = open_session(path)
    session.run(None, {"images": np.stack(pictures[:1])})
    return measure_overhead(
        model, session, pictures, folder, frames=max(10, arguments.frames), repeats=max(1, arguments.repeats)
    )


def _measure_spool(arguments: argparse.Namespace) -> Section:
    with tempfile.TemporaryDirectory(prefix="gleaner-bench-", dir=arguments.spool_dir) as folder:
        return measure_spool(Path(folder), captures=max(1, arguments.captures))


def _measure_gate(arguments: argparse.Namespace, model: LoadedModel) -> Section:
    if arguments.clip is None:
        raise AgentError("pass --clip FILE, and --detector FILE unless the model is one")
    detector = model if arguments.detector is None else load_file(arguments.detector)
    return measure_gate(arguments.clip, detector, sensitivity=arguments.sensitivity)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
