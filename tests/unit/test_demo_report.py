"""The report: true to what the demo left behind, complete, and one file that needs nothing else."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from curate.catalog.models import DatasetItem, DatasetVersion, ModelStatus, Split
from flows.sandbox.heldout import HeldOutScore, pair_rounds, recovered_share
from flows.sandbox.journal import ACCURACY, Sighting, load_journal, measure_until, note
from flows.sandbox.plots import link_intervals, short_release
from flows.sandbox.report import assemble_report, persist_report, print_summary
from flows.sandbox.report_html import clock, data_url, frame_parts, human_bytes, render_report
from flows.sandbox.report_scores import Scores
from flows.sandbox.report_sections import count_leaks, describe_coverage, describe_rounds, follow_metric
from flows.sandbox.world_schedule import Schedule, WorldConfig
from flows.sandbox.worlds.fashion import FashionWitness
from tests.demo_leftovers import OPENED, RELEASES, Leftovers, placeholder_garments

RESERVED = 20
WORLD = WorldConfig(reserved_images=RESERVED)


@pytest.fixture(scope="module")
def leftovers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Leftovers]:
    made = Leftovers(
        tmp_path_factory.mktemp("demo"), placeholder_garments(RESERVED), WORLD, window_frames=240, fps=10.0
    )
    yield made
    made.catalog.close()


@pytest.fixture(scope="module")
def report(leftovers: Leftovers) -> dict[str, Any]:
    return assemble_report(leftovers.facts(), Scores(*leftovers.scores()))


def test_it_holds_what_was_promised(report: dict[str, Any]) -> None:
    """Every name that the demo's acceptance reads is there, and all of it is plain JSON."""
    assert json.loads(json.dumps(report))["rounds"][1]["oracle_in_ci95"] is True
    assert {"seed", "wall_s", "rounds", "devices", "model", "annotation", "prefect", "ledger"} <= report.keys()
    of_round = {"labels", "release", "heldout_accuracy_int8", "field_accuracy", "oracle_accuracy"}
    assert all(of_round | {"control_random_accuracy"} <= entry.keys() for entry in report["rounds"])
    of_device = {"device_id", "release", "frames_seen", "frames_skipped", "captured", "dropped", "uploaded", "acked"}
    of_device |= {"bytes_seen", "bytes_uploaded", "swap_gap_ms", "feedback_sent"}
    assert all(of_device <= device.keys() for device in report["devices"])
    assert {"float_bytes", "int8_bytes", "float_p50_ms", "int8_p50_ms", "parity_top1"} <= report["model"].keys()
    assert report["prefect"] == {"completed": 31, "failed": 0, "crashed": 1}


def test_rounds_tell_labels_and_estimates(report: dict[str, Any]) -> None:
    """Labels are cumulative answers without skips; round 0 has no estimate and its control is itself."""
    first, second, third = report["rounds"]
    assert [entry["labels"] for entry in report["rounds"]] == [20, 59, 98]
    assert first["field_accuracy"] is None
    assert first["oracle_accuracy"] is None
    assert first["control_random_accuracy"] == first["heldout_accuracy_int8"]
    assert second["field_accuracy"]["release"] == RELEASES[0]
    assert third["release"] == report["model"]["release"] == RELEASES[2]
    assert report["coverage"] == {"contained": 2, "rounds": 2, "share": 1.0}


def test_the_ledger_closes_on_whole_books(report: dict[str, Any]) -> None:
    """Books gathered from a catalog, heartbeats and a backend that agree give no violation."""
    assert report["ledger"]["violations"] == []
    assert report["annotation"] == {"tasks": 80, "annotations": 78, "duplicates": 0, "skipped": 2}


def test_a_task_sent_twice_is_a_duplicate(leftovers: Leftovers) -> None:
    """One more task for a known sample opens the ledger and counts as a duplicate."""
    facts = leftovers.facts()
    leftovers.backend.tasks.append(replace(leftovers.backend.tasks[0], backend_task_id="again"))
    try:
        broken = assemble_report(facts, Scores(*leftovers.scores()))
    finally:
        leftovers.backend.tasks.pop()
    assert not broken["ledger"]["closes"]
    assert broken["annotation"]["duplicates"] == 1


def test_the_drift_is_measured_between_the_right_models(report: dict[str, Any]) -> None:
    """The model that met dusk is compared with the last one, on the camera that dusk fell on."""
    assert (report["drift"]["before"], report["drift"]["after"]) == (RELEASES[1], RELEASES[2])
    assert report["drift"]["cost"] == pytest.approx(0.78 - 0.48)
    assert report["drift"]["recovered_share"] == pytest.approx((0.70 - 0.48) / (0.78 - 0.48))
    dusk_from_s = report["over_time"]["cam-3"]["dusk_from_s"]
    assert dusk_from_s == pytest.approx(36.0)
    assert report["over_time"]["cam-1"]["dusk_from_s"] is None


def test_a_refused_candidate_leaves_the_incumbent_in_the_field(leftovers: Leftovers) -> None:
    """A round whose candidate was refused is scored with the model that kept running."""
    models = [replace(m, status=ModelStatus.REFUSED) if m.round_number == 2 else m for m in leftovers.catalog.models()]
    scores, controls = leftovers.scores()
    rounds = leftovers.catalog.rounds()
    *_, last = describe_rounds(pair_rounds(rounds, models, scores, controls), [], [], scores, ACCURACY)
    assert last["release"] == RELEASES[1]
    assert not last["promoted"]
    assert last["heldout_accuracy_int8"] == scores["m1"].mean
    assert last["candidate_accuracy_int8"] == scores["m2"].mean


def test_every_frame_is_in_one_part(report: dict[str, Any]) -> None:
    """The parts of a device's bar add up to the frames it saw."""
    for device in report["devices"]:
        parts = frame_parts(device)
        assert sum(part.count for part in parts) == device["frames_seen"]
        assert sum(part.share for part in parts) == pytest.approx(1.0)


def test_a_leak_is_found_by_the_true_burst() -> None:
    """A test label counts as leaked exactly when a training label shares its burst, whatever its group says."""
    burst = Schedule(WORLD, "cam-1").burst_at(100)
    inside, outside = burst.first + 1, burst.first + burst.length

    def item(frame: int, split: Split) -> DatasetItem:
        return DatasetItem(f"s{frame}", "key", {"class": "Bag"}, split, f"g{frame}", "cam-1", "cam-1")

    frames = (burst.first, inside, outside)
    samples: dict[str, Any] = {f"s{n}": Sighted("cam-1", n) for n in frames}
    items = (item(burst.first, Split.TRAIN), item(inside, Split.TEST), item(outside, Split.TEST))
    found = count_leaks(DatasetVersion("v", 1, OPENED, items), samples, FashionWitness(WORLD, (), {}))
    assert found == {"test_items_sharing_a_burst_with_training": 1, "of": 2}


class Sighted:
    """The two facts of a sample that place it in the world."""

    def __init__(self, camera_id: str, frame_index: int) -> None:
        self.camera_id, self.frame_index = camera_id, frame_index


def test_the_journal_survives_kills(tmp_path: Path) -> None:
    """A line cut off by a kill is left out, and a frame that a restarted process notes again counts once."""
    first = Sighting("cam-1", 5, "r1", OPENED, ((0.9, True), (0.4, False)), expected=2, mistakes=1, scene="231/dusk")
    second = replace(first, frame_index=6, answers=(), scene=None)
    whole = note(first)
    (tmp_path / "cam-1.jsonl").write_text(f"{whole}\n{whole}\n{whole[:20]}\n{note(second)}\n[1]\n")
    assert load_journal(tmp_path) == [first, second]


def _sighting(second: float, *, right: bool = True, release: str = "r1") -> Sighting:
    at = OPENED + timedelta(seconds=second)
    return Sighting("cam-1", int(second * 10), release, at, ((1.0, right),))


def test_the_oracle_counts_one_release_until_the_choice() -> None:
    """Frames of other releases or after the moment do not count; without any there is no oracle."""
    seen = [_sighting(1), _sighting(2, right=False), _sighting(3, release="r2"), _sighting(9, right=False)]
    assert measure_until(ACCURACY, seen, "r1", OPENED + timedelta(seconds=5)) == 0.5
    assert measure_until(ACCURACY, seen, "r9", OPENED) is None


def test_rolling_accuracy_forgets() -> None:
    """A point tells of its window alone, and a gap without frames has no points."""
    seen = [_sighting(s, right=s < 5) for s in (1, 2, 3, 40, 41)]
    followed = follow_metric(seen, ACCURACY, OPENED, {}, window_s=6, step_s=3)["cam-1"]
    assert followed["points"][0] == (4.0, 1.0, 3)
    assert followed["points"][-1][1:] == (0.0, 2)
    assert not [point for point in followed["points"] if 10 < point[0] < 39]
    assert followed["releases"] == {"r1": 1.0}


def test_recovered_share_needs_a_cost() -> None:
    """Where dusk cost nothing there is no share to win back; a full return to the day is 1."""
    model = HeldOutScore({"c/day": 0.8, "c/dusk": 0.5})
    assert recovered_share(model, HeldOutScore({"c/day": 0.7, "c/dusk": 0.8}), "c") == pytest.approx(1.0)
    assert recovered_share(HeldOutScore({"c/day": 0.5, "c/dusk": 0.5}), model, "c") is None
    assert describe_coverage([{"oracle_in_ci95": None}]) == {"contained": 0, "rounds": 0, "share": None}


def test_the_page_needs_nothing_else(leftovers: Leftovers, report: dict[str, Any]) -> None:
    """One file below 3 MB with its pictures inside, that loads nothing and leaves no half-written file."""
    page = persist_report(report, leftovers.root)
    text = page.read_text()
    assert len(text) < 3_000_000
    assert text.count("data:image/jpeg;base64,") == len(report["gallery"]["dismissed"]) + 2 * 18
    assert text.count("<svg") == text.count("</svg>") == 3
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"|url\((?!#)|@import|<script|<link", text)
    assert json.loads((leftovers.root / "report.json").read_text())["seed"] == 0
    assert not list(leftovers.root.glob(".report*"))


def _without_drift(report: dict[str, Any]) -> None:
    report["drift"] = None


def _one_round(report: dict[str, Any]) -> None:
    del report["rounds"][1:]
    report["gallery"] = {"rounds": {}, "dismissed": []}


def _nobody_looked(report: dict[str, Any]) -> None:
    report["over_time"] = {}
    report["devices"][0] = {"device_id": "cam-1", "release": None, "reported": False}
    report["model"] = None


def _lost_pictures(report: dict[str, Any]) -> None:
    for entry in report["gallery"]["dismissed"]:
        entry["picture"] = "thumbnails/none.jpg"


@pytest.mark.parametrize("spoil", [_without_drift, _one_round, _nobody_looked, _lost_pictures])
def test_a_poorer_run_still_has_a_page(
    spoil: Callable[[dict[str, Any]], None], leftovers: Leftovers, report: dict[str, Any]
) -> None:
    """A page is drawn whatever part of the demo did not happen."""
    poorer = deepcopy(report)
    spoil(poorer)
    assert render_report(poorer, leftovers.root).rstrip().endswith("</html>")


def test_words_from_outside_are_escaped(leftovers: Leftovers, report: dict[str, Any]) -> None:
    """What devices and people wrote cannot become markup; a violation is shown to the reader."""
    hostile = deepcopy(report)
    hostile["gallery"]["rounds"]["1"][0]["reasons"] = ["<script>alert(1)</script>"]
    hostile["ledger"] = {"closes": False, "violations": ["cam-1: ingested = uploaded: 4 against 5"], "books": []}
    text = render_report(hostile, leftovers.root)
    assert "<script>" not in text
    assert "ingested = uploaded: 4 against 5" in text


def test_the_terminal_tells_the_essence(report: dict[str, Any]) -> None:
    """The summary shows every release and whether the ledger closes."""
    out = io.StringIO()
    print_summary(report, Console(file=out, width=120))
    print_summary({**report, "ledger": {"closes": False, "violations": ["cam-1: [x] 1 against 2"]}}, Console(file=out))
    assert all(name in out.getvalue() for name in ("r0", "r1", "r2", "the ledger closes", "cam-1: [x] 1 against 2"))


def test_small_words() -> None:
    """Numbers, moments and releases are told the way people read them."""
    assert [human_bytes(n) for n in (12, 1_500, 2_340_000, None)] == ["12 B", "1.5 kB", "2.3 MB", "\N{EN DASH}"]
    assert [clock(t_s) for t_s in (0, 75.2, -40)] == ["0:00", "1:15", "-0:40"]
    assert [short_release(name) for name in ("r0012-ab", "odd", None)] == ["r12", "odd", "none"]
    assert data_url(Path("nowhere.jpg")) is None


def test_a_link_that_stays_down_is_shown_to_the_end() -> None:
    """Each cut ends where the link came back, the last one with the picture; other cameras' links do not count."""
    events = [("link_down", 5, "a"), ("link_up", 9, "a"), ("link_down", 20, "a"), ("link_up", 21, "b")]
    timeline = [{"kind": kind, "t_s": t_s, "camera": camera} for kind, t_s, camera in events]
    assert link_intervals(timeline, "a", 30.0) == [(5, 9), (20, 30.0)]
