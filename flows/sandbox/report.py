"""The demo's report: everything it left behind, gathered once, as `report.json` and one page to look at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from curate.contracts.telemetry import ReportedState
from flows._blobs import fetch_images_if_there
from flows.sandbox.demo_books import fetch_reported, find_violations, gather_annotation_book, gather_device_book
from flows.sandbox.heldout import pair_rounds
from flows.sandbox.journal import MetricNames, Sighting, load_journal
from flows.sandbox.plots import short_release
from flows.sandbox.report_gallery import Gallery
from flows.sandbox.report_html import percent, render_report
from flows.sandbox.report_sections import (
    Json,
    count_leaks,
    describe_annotation,
    describe_coverage,
    describe_device,
    describe_dismissals,
    describe_drift,
    describe_model,
    describe_rounds,
    describe_totals,
    find_zero,
    follow_metric,
    place_events,
)

if TYPE_CHECKING:
    from flows._wiring import Services
    from flows.sandbox.report_scores import Scores
    from flows.sandbox.script import DemoScript
    from flows.sandbox.worlds.base import DemoWorld


@dataclass(frozen=True)
class DemoFacts:
    """One run of the demo, while its services are still up."""

    root: Path
    wired: Services
    script: DemoScript
    world: DemoWorld
    started_s: float
    """On the monotonic clock."""
    events: Sequence[Json]
    """The timeline: `at` (ISO), `kind` and what goes with it."""
    prefect_runs: Mapping[str, int]
    """Flow runs by the lower-case name of their state."""

    @property
    def journal_dir(self) -> Path:
        """What the simulated people saw."""
        return self.root / "journal"


def build_report(run: DemoFacts, on_step: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Gather the report. Scores every model and trains the random controls, which takes a while: see `on_step`.

    Writes the pictures it names to `root/thumbnails`.

    Raises:
        Error: catalog, bucket or annotation tool cannot be read.
    """
    from flows.sandbox.report_scores import score_models  # noqa: PLC0415 (torch loads only when there is work for it)

    on_step("drawing held-out frames")
    exam = run.world.exam(run.wired, load_journal(run.journal_dir))
    scores = score_models(run.wired, exam, run.script.seed, on_step)
    on_step("closing the books")
    return assemble_report(run, scores)


def assemble_report(run: DemoFacts, scores: Scores) -> dict[str, Any]:
    """Put the sections together, given the scores."""
    catalog, metric = run.wired.catalog, run.world.metric
    sightings = load_journal(run.journal_dir)
    states = fetch_reported(run.wired.store, run.world.cameras)
    facts = pair_rounds(catalog.rounds(), catalog.models(), scores.models, scores.controls)
    rounds = describe_rounds(facts, catalog.tasks(), sightings, scores.models, metric)
    devices = [describe_device(device_id, state) for device_id, state in states.items()]
    drift = next((event for event in run.events if event["kind"] == "drift"), None)
    return {
        "seed": run.script.seed,
        "wall_s": round(time.monotonic() - run.started_s, 1),
        "script": asdict(run.script),
        "metric": {"key": metric.key, "title": metric.title},
        "rounds": rounds,
        "devices": devices,
        "totals": describe_totals(devices),
        "model": describe_model(catalog.released_model()),
        **_close_books(run, states),
        "prefect": {"completed": 0, "failed": 0, **run.prefect_runs},
        "drift": describe_drift(facts, run.world.drift_camera, drift),
        "coverage": describe_coverage(rounds),
        "dismissals": describe_dismissals(catalog.feedback(), sightings),
        "words": dict(run.world.words),
        **run.world.conclude(facts),
        **_look_back(run, sightings, drift),
    }


def persist_report(report: Mapping[str, Any], root: Path) -> Path:
    """Write `report.json` and `report.html`, each in one step; return the page's path. Needs `root/thumbnails`."""
    _persist(root / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    page = root / "report.html"
    _persist(page, render_report(report, root))
    return page


def print_summary(report: Mapping[str, Any], console: Console) -> None:
    """Show the essence on the terminal."""
    names = MetricNames(**report["metric"])
    rounds = Table("round", "labels", "in the field", "held-out int8", "random labels", "field estimate", "truth")
    for entry in report["rounds"]:
        estimate = entry[names.field]
        low, high = estimate["ci95"] if estimate else (None, None)
        rounds.add_row(
            str(entry["number"]),
            str(entry["labels"]),
            f"{short_release(entry['release'])}{'' if entry['promoted'] else ' (candidate refused)'}",
            percent(entry[names.heldout]),
            percent(entry[names.control]),
            f"{percent(estimate['estimate'])} [{percent(low)}, {percent(high)}]" if estimate else "",
            percent(entry[names.oracle]) if entry[names.oracle] is not None else "",
        )
    console.print(rounds)
    totals, annotation = report["totals"], report["annotation"]
    console.print(
        f"{totals['frames_seen']:,} frames seen, {totals['acked']:,} kept and in the cloud "
        f"({percent(totals['uploaded_share_of_bytes'])} of the bytes), {totals['frames_lost_at_swap']} lost at swaps; "
        f"{annotation['tasks']} questions, {annotation['duplicates']} asked twice"
    )
    _print_ledger(report["ledger"], console)


def _close_books(run: DemoFacts, states: Mapping[str, ReportedState | None]) -> Json:
    """The ledger and what the annotation tool holds."""
    catalog = run.wired.catalog
    annotation = gather_annotation_book(catalog, run.wired.annotation)
    books = [gather_device_book(catalog, state) for state in states.values() if state is not None]
    violations = find_violations(states, books, annotation)
    return {
        "annotation": describe_annotation(annotation, catalog.tasks()),
        "ledger": {
            "closes": not violations,
            "violations": violations,
            "books": [
                {
                    "device_id": book.device_id,
                    "cloud_captures": book.cloud_captures,
                    "cloud_feedback": book.cloud_feedback,
                    "feedback_joined": book.feedback_joined,
                    "feedback_explained": book.feedback_explained,
                }
                for book in books
            ],
        },
    }


def _look_back(run: DemoFacts, sightings: Sequence[Sighting], drift: Json | None) -> Json:
    """What happened when, and the pictures."""
    catalog = run.wired.catalog
    samples = {sample.sample_id: sample for sample in catalog.samples()}
    dataset = catalog.latest_dataset_version()
    labels = {item.sample_id: dict(item.label) for item in dataset.items} if dataset else {}
    witness = run.world.witness(run.wired, labels)
    gallery = Gallery(witness, samples, catalog.feedback())
    choices = {str(r.number): gallery.describe_choices(catalog.selection(r.number)) for r in catalog.rounds()}
    dismissed = gallery.describe_dismissed()
    shown = [*(entry for entries in choices.values() for entry in entries), *dismissed]
    gallery.persist_thumbnails(run.root, partial(fetch_images_if_there, run.wired), shown)
    zero = find_zero(run.events, sightings)
    dusk = {run.world.drift_camera: run.world.dusk_began(sightings, drift)} if drift else {}
    return {
        "leakage": count_leaks(dataset, samples, witness),
        "over_time": follow_metric(sightings, run.world.metric, zero, dusk),
        "timeline": place_events(run.events, zero),
        "gallery": {"rounds": {number: each for number, each in choices.items() if each}, "dismissed": dismissed},
    }


def _print_ledger(ledger: Mapping[str, Any], console: Console) -> None:
    if ledger["closes"]:
        console.print("[green]✔ the ledger closes:[/] every frame, capture, question and verdict is accounted for")
        return
    console.print("[red]✘ the ledger does not close:[/]")
    for violation in ledger["violations"]:
        console.print(f"  {violation}", highlight=False, markup=False)


def _persist(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
