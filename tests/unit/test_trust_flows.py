"""From the catalog to what devices are believed: evidence, probation, sites, the table, the commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from curate.catalog.models import AnnotationRow, Sample, SelectedRow, SelectionRole
from curate.catalog.store import Catalog
from curate.contracts.capture import CaptureRecord
from curate.contracts.feedback import Feedback, FeedbackReason
from curate.contracts.prediction import ClassificationPrediction
from curate.selection.base import SelectionPolicy
from flows import _wiring
from flows._trust import read_trust, trust_rows
from flows._wiring import Services
from flows.cli import app
from tests.catalog_builders import NOW, batch, capture, feedback, plan
from tests.fakes.wiring import LABELS, local_services

CLASSES, JUDGED, OPEN = 10, 30, 3


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """An honest and an abusive device, whose dismissals annotators have judged, and one that nobody knows."""
    with local_services(tmp_path, selection=SelectionPolicy(probation_labels=10)) as services:
        services.catalog.open_round(1, budget=99, seed=0, now=NOW)
        for number, (device, wrong) in enumerate((("honest", 0.7), ("abuser", 0.0), ("new", 0.0))):
            captures = [seen(device, i) for i in range(JUDGED + OPEN)]
            said = [dismissed(100 * number + i, device, i) for i in range(JUDGED + OPEN - 1)]
            services.catalog.admit_batch(plan(batch(captures=captures, device=device, feedback=said)))
            if device != "new":
                answer(services, [f"{device}-{i}" for i in range(JUDGED)], round(wrong * JUDGED), 1 + 100 * number)
        services.catalog.join_feedback()
        yield services


def seen(device: str, number: int) -> CaptureRecord:
    """A capture in a burst of its own, predicted as class 0."""
    said = ClassificationPrediction(
        prediction_id=f"p-{device}-{number}", release_id="r1", probabilities=[0.91] + [0.01] * (CLASSES - 1)
    )
    at = NOW - timedelta(minutes=2 * (number + 1))
    return capture(number, device, prediction=said, captured_at=at)


def dismissed(number: int, device: str, frame: int) -> Feedback:
    return feedback(number, f"p-{device}-{frame}", user="ann", received_at=NOW)


def answer(wired: Services, names: Sequence[str], wrong: int, rank: int) -> None:
    """Have the samples audited in a round of their own: the first of them are not what was predicted."""
    classes = wired.settings.labels.class_names
    wired.catalog.open_round(rank, budget=99, seed=0, now=NOW)
    rows = [SelectedRow(rank, name, i, SelectionRole.AUDIT, 0.0, 0.01, ()) for i, name in enumerate(names)]
    wired.catalog.save_selection(rank, rows)
    labels = [{"class": classes[1 if i < wrong else 0]} for i in range(len(names))]
    rows_of = zip(names, labels, strict=True)
    wired.catalog.save_annotations(
        [AnnotationRow(f"a-{name}", name, "ann", label, False, NOW, NOW) for name, label in rows_of]
    )


def unasked(wired: Services, device: str) -> list[Sample]:
    """What the device's unanswered captures are, the last of which nobody dismissed."""
    found = {sample.sample_id: sample for sample in wired.catalog.samples(devices=[device])}
    return [found[f"{device}-{number}"] for number in range(JUDGED, JUDGED + OPEN)]


def test_dismissals_weigh_what_they_have_been_worth(wired: Services) -> None:
    """The honest device's count for their rate, the abuser's for nothing, the unknown's for the fleet's."""
    trust = read_trust(wired)
    honest, abuser, new = (trust.evidence(unasked(wired, name)) for name in ("honest", "abuser", "new"))
    assert honest == pytest.approx([0.65, 0.65, 0.0], abs=0.05)
    assert abuser.tolist() == [0.0, 0.0, 0.0]
    assert new[:2] == pytest.approx([trust.reliability.fleet.mean] * 2)
    assert list(trust.reliability.throttled) == ["abuser"]


def test_an_explanation_says_why_a_dismissal_counts_or_not(wired: Services) -> None:
    """The pick's reason names the record behind the weight; where nobody dismissed there is nothing to say."""
    trust = read_trust(wired)
    said = {name: trust.explain(unasked(wired, name)[0]) for name in ("honest", "abuser")}
    assert "21 of 30 judged were right" in str(said["honest"])
    assert str(said["abuser"]).startswith("abuser's dismissal counts for nothing")
    assert trust.explain(unasked(wired, "honest")[-1]) is None
    assert trust.explain(None) is None


def test_what_is_not_wrong_is_no_claim(wired: Services) -> None:
    """Who finds a frame uninteresting, or dismisses in a flood, is not judged for it."""
    before = read_trust(wired).reliability.devices["honest"]
    bored = feedback(900, "p-honest-1", reason=FeedbackReason.NOT_INTERESTING)
    flood = feedback(901, "p-honest-2", quarantined=True)
    record = batch(2, [], device="honest", feedback=[bored, flood])
    wired.catalog.admit_batch(plan(record))
    wired.catalog.join_feedback()
    assert read_trust(wired).reliability.devices["honest"] == before


def test_answers_over_other_classes_say_nothing(wired: Services) -> None:
    """A release that knew other classes is no reason to stop: what it answered is not judged."""
    said = ClassificationPrediction(prediction_id="p-old", release_id="r0", probabilities=[0.5, 0.5])
    wired.catalog.admit_batch(plan(batch(2, [capture(400, "old", prediction=said)], device="honest")))
    answer(wired, ["old-400"], 1, 900)
    assert read_trust(wired).reliability.devices["honest"].judged == JUDGED


def test_probation_ends_with_answered_audits(wired: Services) -> None:
    """The device without audits is on probation; before anybody is proven nobody is."""
    trust = read_trust(wired)
    rows = [*unasked(wired, "honest"), *unasked(wired, "new")]
    probation = trust.probation(rows)
    assert probation is not None
    assert probation.tolist() == [False] * OPEN + [True] * OPEN
    strict = wired.settings.selection.model_copy(update={"probation_labels": JUDGED + 1})
    nobody = Services(
        wired.settings.model_copy(update={"selection": strict}), wired.store, wired.catalog, wired.open_annotation
    )
    assert read_trust(nobody).probation(rows) is None


def test_sites_are_numbered(wired: Services) -> None:
    """Devices of one site share a number, one without has -1, and without any site there is no column."""
    rows = [unasked(wired, name)[0] for name in ("honest", "abuser", "new")]
    assert read_trust(wired).sites(rows) is None
    for device in ("honest", "abuser"):
        wired.catalog.place_device(device, "gate")
    sites = read_trust(wired).sites(rows)
    assert sites is not None
    assert np.array_equal(sites, [0, 0, -1])


def test_the_table_puts_first_who_needs_a_look(wired: Services) -> None:
    """The honest device is contradicted where the abuser is not; throttled and contradicted come before the rest."""
    rows = trust_rows(wired)
    assert [row["device"] for row in rows] == ["abuser", "honest", "new"]
    abuser, honest, new = rows
    assert (abuser["dismissals right"], abuser["worth"]) == ("0 of 30", 0.0)
    assert "its dismissals count for nothing" in abuser["look"]
    assert (honest["audits"], honest["contradicted"], honest["others"]) == (30, 0.7, 0.0)
    assert "annotators contradict it" in honest["look"]
    assert (new["probation"], new["look"], new["audits"]) == ("yes", "", 0)


def test_what_is_unlearned_teaches_nothing_about_the_fleet(wired: Services) -> None:
    """Without the abuser the fleet's rate is the honest one's, and its row says that it does not count."""
    before = read_trust(wired).reliability.fleet.mean
    wired.catalog.unlearn_device("abuser", NOW)
    assert read_trust(wired).reliability.fleet.mean > before + 0.05
    row = next(row for row in trust_rows(wired) if row["device"] == "abuser")
    assert "unlearned" in row["look"]


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`device site`, `trust` and `unlearn` work on the configured catalog; without --yes nothing is unlearned."""
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    settings = {"CATALOG_URL": url, "BUCKET__BUCKET": "orchard", "LABEL_STUDIO__URL": "http://127.0.0.1:9"}
    settings |= {"LABEL_STUDIO__TOKEN": "0" * 40, "LABELS_FILE": str(LABELS), "BUCKET__ACCESS_KEY": "a"}
    for name, value in (settings | {"BUCKET__SECRET_KEY": "b"}).items():
        monkeypatch.setenv(f"GLEANER_{name}", value)
    monkeypatch.delenv("GLEANER_CONFIG", raising=False)
    with Catalog.open(url) as catalog:
        catalog.admit_batch(plan(batch(captures=[capture(1)])))
        _wiring.services.cache_clear()
        try:
            for words in (["device", "site", "cam-1", "gate"], ["unlearn", "cam-1"]):
                assert CliRunner().invoke(app, words).exit_code == 0
            (device,) = catalog.devices()
            assert (device.site, device.unlearned_at) == ("gate", None)
            done = CliRunner().invoke(app, ["unlearn", "cam-1", "--yes"])
            assert "cam-1 is unlearned" in done.output
            assert catalog.devices()[0].unlearned_at is not None
            assert CliRunner().invoke(app, ["trust"]).exit_code == 0
            assert "counts again" in CliRunner().invoke(app, ["unlearn", "cam-1", "--undo", "--yes"]).output
            assert catalog.devices()[0].unlearned_at is None
        finally:
            _wiring.services().catalog.close()
            _wiring.services.cache_clear()
