"""The contact sheet: who is shown, in which group, with which pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.catalog.images import encode_jpeg, shrink_image
from curate.catalog.models import AnnotationRow, SelectedRow, SelectionRole
from curate.contracts.capture import Arm
from curate.errors import CatalogError
from flows._wiring import Services
from flows.explain_sheet import PICTURE_PX, build_sheet, group_rows
from tests.catalog_builders import NOW, batch, capture, detection, imported, jpeg, plan
from tests.fakes.wiring import local_services

NAMES = ("boot", "shirt", "bag")


def row(sample_id: str, rank: int, role: SelectionRole = SelectionRole.ACTIVE, **facts: object) -> SelectedRow:
    """A chosen sample with numbers."""
    plain = SelectedRow(1, sample_id, rank, role, 0.5, None, ("because <b>",), parts={"model": 0.6, "evidence": 0.0})
    return replace(plain, **facts)  # type: ignore[arg-type]


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Services]:
    """Six captures of one device and a labelled picture; the pictures of all but one lie in the bucket."""
    (tmp_path / "labels.yaml").write_text(f"class_names: [{', '.join(NAMES)}]\nheight: 16\nwidth: 24\n")
    with local_services(tmp_path, labels_file=tmp_path / "labels.yaml") as services:
        captures = [capture(number) for number in range(5)] + [capture(5, prediction=detection(5))]
        services.catalog.admit_batch(plan(batch(captures=captures)))
        services.catalog.add_samples([replace(imported(1), image_key="captures/imported/1.jpg")])
        for sample in services.catalog.samples():
            if sample.sample_id != "c-3":
                services.store.put(sample.image_key, jpeg(sample.frame_index))
        services.catalog.save_annotations([AnnotationRow("a", "imported-1", "ann", {"class": "bag"}, False, NOW, NOW)])
        services.catalog.open_round(1, budget=6, seed=0, now=NOW)
        yield services


def choose(wired: Services) -> None:
    """Have all six chosen, for four purposes."""
    near = {"nearest_id": "imported-1", "nearest_cosine": 0.83}
    wired.catalog.save_selection(
        1,
        [
            row("c-0", 1, SelectionRole.AUDIT, inclusion_probability=0.01, parts={"model": 0.1}),
            row("c-1", 2, stands_for=9, **near),
            row("c-2", 3, explored=True),
            row("c-3", 4),
            row("c-4", 5, parts={"model": 0.2, "evidence": 0.5}, **near),
            row("c-5", 6),
        ],
    )


def pictures(page: str) -> list[Image.Image]:
    """Every picture in the page."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


def test_the_page_shows_every_choice_and_loads_nothing(wired: Services) -> None:
    """All six are there with their reasons, a missing picture as gone, and no address leads elsewhere."""
    choose(wired)
    page = build_sheet(wired, 1)
    assert re.findall(r'class="id">([^<]+)<', page) == ["c-4", "c-1", "c-3", "c-5", "c-2", "c-0"]
    assert page.count('class="gone"') == 1
    assert len(pictures(page)) == 5 + 2
    assert "because &lt;b&gt;" in page
    assert "stands for 9" in page
    assert "drawn at random, for 100 frames" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_the_nearest_label_stands_beside(wired: Services) -> None:
    """The closest training label is shown with what it is and how close; where there was none, that is said."""
    choose(wired)
    page = build_sheet(wired, 1)
    assert page.count("<b>bag</b><br>cosine 0.83") == 2
    assert page.count("no label yet") == 4


def test_boxes_are_drawn_in_their_place(wired: Services) -> None:
    """A predicted box of 24 x 16 pixels lies where it was, as a share of the picture."""
    choose(wired)
    (drawn, _) = re.findall(r'<rect x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)">', build_sheet(wired, 1))
    assert [float(each) for each in drawn] == pytest.approx([1 / 24, 2 / 16, 8.5 / 24, 6 / 16], abs=1e-4)


def test_answers_show_who_was_right(wired: Services) -> None:
    """Once people have answered, wrong and right frames are marked and counted by group."""
    choose(wired)
    wired.catalog.save_annotations(
        [
            AnnotationRow(f"a-{name}", name, "ann", {"class": label}, False, NOW, NOW)
            for name, label in (("c-1", "shirt"), ("c-3", "boot"), ("c-0", "boot"))
        ]
    )
    page = build_sheet(wired, 1)
    assert "the device erred on 1 of 2 that people have settled" in page
    assert "the device erred on 0 of 1 that people have settled" in page
    assert (page.count("card wrong"), page.count("card right")) == (1, 2)


def test_a_large_round_is_cut_and_says_so(wired: Services) -> None:
    """No more pictures than asked for are drawn, the first by rank, and the page says what is missing."""
    choose(wired)
    page = build_sheet(wired, 1, most=2)
    assert set(re.findall(r'class="id">([^<]+)<', page)) == {"c-0", "c-1"}
    assert "The first 2 by rank are shown" in page
    assert "6 pictures chosen" in page


def test_nothing_chosen_is_told(wired: Services) -> None:
    """A round that does not exist, and one that has chosen nothing, have no sheet."""
    with pytest.raises(CatalogError, match="no round 7"):
        build_sheet(wired, 7)
    with pytest.raises(CatalogError, match="chosen nothing"):
        build_sheet(wired, 1)


def test_what_teaches_is_grouped_by_why_the_device_kept_it() -> None:
    """A dismissal names the group before uncertainty does, evidence alone does, too, and audits stand apart."""
    rows = [
        row("unsure", 1),
        row("both", 2),
        row("told", 3, parts={"evidence": 0.9}),
        row("audit", 4, SelectionRole.AUDIT, parts={"evidence": 0.9}),
        row("explored", 5, explored=True),
        row("unknown", 6),
    ]
    arms = {"unsure": ("random", "uncertain"), "both": ("uncertain", "dismissed")}
    groups = {title: [each.sample_id for each in members] for (title, _, _), members in group_rows(rows, arms).items()}
    assert list(groups.values()) == [["both", "told"], ["unsure"], ["unknown"], ["explored"], ["audit"]]


def test_every_arm_has_words() -> None:
    """A new arm needs a line here, or its captures would be shown without a reason."""
    rows = [row(arm, 1) for arm in Arm]
    assert all(title != "Chosen to teach" for title, _, _ in group_rows(rows, {arm: (arm,) for arm in Arm}))


def test_a_small_picture_keeps_its_shape() -> None:
    """The longer side is at most what was asked for, the shape stays, and a small picture is not blown up."""
    wide = encode_jpeg(np.zeros((300, 1200, 3), np.uint8))
    assert Image.open(io.BytesIO(shrink_image("x", wide, PICTURE_PX))).size == (PICTURE_PX, PICTURE_PX // 4)
    assert Image.open(io.BytesIO(shrink_image("x", jpeg(1), PICTURE_PX))).size == (24, 16)
    with pytest.raises(CatalogError, match="x is not a readable image"):
        shrink_image("x", b"no picture", PICTURE_PX)
