"""A round's contact sheet: every chosen picture with its reason and the label closest to it, as one HTML file."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from curate.catalog.boxes import parse_boxes
from curate.catalog.images import shrink_image
from curate.catalog.models import Sample, SelectedRow, SelectionRole
from curate.contracts.capture import Arm
from curate.contracts.prediction import DetectionPrediction
from curate.errors import BlobNotFoundError, CatalogError
from flows._blobs import PARALLEL_FETCHES, fetch_image
from flows._labels import agreed_labels
from flows._wiring import Services
from flows.explain_words import SHOWN_DIGITS, agrees, few_words, say_label, say_prediction

MOST_SHOWN = 300
PICTURE_PX, NEAREST_PX = 144, 72
"""Longest sides of the pictures, and of the labels beside them."""

KEPT: Final[Mapping[str, str]] = {
    Arm.DISMISSED: "a person objected to the answer",
    Arm.UNCERTAIN: "the model was unsure",
    Arm.NOVEL: "nothing like it had been sent",
    Arm.TEMPORAL: "the answers around it disagree",
    Arm.RANDOM: "kept at random on the device",
}
"""What an arm keeps a frame for; of several arms the first one here names the group."""


@dataclass(frozen=True)
class Rectangle:
    """A box as shares of the picture's sides."""

    x: float
    y: float
    width: float
    height: float
    note: str


@dataclass(frozen=True)
class Picture:
    """A picture as a `data:` address, None where it is gone, with boxes over it."""

    url: str | None
    boxes: tuple[Rectangle, ...]


@dataclass(frozen=True)
class Nearest:
    """The closest training label of that time."""

    sample_id: str
    picture: Picture
    label: str
    cosine: float


@dataclass(frozen=True)
class Card:
    """One chosen sample. `right` is None while nobody has settled what it is."""

    sample_id: str
    rank: int
    camera: str
    stands_for: int
    picture: Picture
    said: str
    label: str | None
    right: bool | None
    words: str
    reasons: tuple[str, ...]
    compared: bool
    """Whether it was compared with labels at all; rounds of an older version were not."""
    nearest: Nearest | None


@dataclass(frozen=True)
class Group:
    """Samples chosen for one purpose, of which the first are shown."""

    title: str
    note: str
    colour: str
    chosen: int
    cards: tuple[Card, ...]

    @property
    def settled(self) -> int:
        """Of how many of those shown people have said what they are."""
        return sum(card.right is not None for card in self.cards)

    @property
    def wrong(self) -> int:
        """On how many of these the device had been wrong."""
        return sum(card.right is False for card in self.cards)


def sheet_key(round_number: int) -> str:
    """Return where the bucket keeps a round's sheet."""
    return f"reports/round-{round_number:04d}-sheet.html"


def build_sheet(wired: Services, round_number: int, most: int = MOST_SHOWN) -> str:
    """Return the sheet of a round's first `most` samples by rank; shares are interleaved, so all of them are there.

    Raises:
        CatalogError: there is no such round, or it has chosen nothing yet.
        StorageUnavailableError: the bucket cannot be reached.
    """
    rows = wired.catalog.selection(round_number)
    if wired.catalog.round(round_number) is None:
        raise CatalogError(f"there is no round {round_number}")
    if not rows:
        raise CatalogError(f"round {round_number} has chosen nothing yet", hint="turn it with `gleaner round`")
    groups = group_rows(rows, _arms(wired, rows))
    shown = {row.sample_id for row in rows[:most]}
    cards = _cards(wired, rows[:most])
    return render_sheet(
        round_number,
        [
            Group(title, note, colour, len(members), tuple(cards[m.sample_id] for m in members if m.sample_id in shown))
            for (title, note, colour), members in groups.items()
        ],
        policy=next((row.policy_digest[:SHOWN_DIGITS] for row in rows if row.policy_digest), None),
        devices=Counter(card.camera for card in cards.values()),
    )


def group_rows(
    rows: Sequence[SelectedRow], arms: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str, str], list[SelectedRow]]:
    """Return title, note and colour of each group with its rows by rank: what teaches by arm, explored, audits."""
    groups: dict[tuple[str, str, str], list[SelectedRow]] = {}
    order = {key: place for place, key in enumerate([*(_TAUGHT | _OTHERS).values()])}
    for row in rows:
        groups.setdefault(_group_of(row, arms.get(row.sample_id, ())), []).append(row)
    return dict(sorted(groups.items(), key=lambda each: order[each[0]]))


_TAUGHT: Final = {arm: (f"Chosen to teach: {why}", "", "orange") for arm, why in KEPT.items()} | {
    "": ("Chosen to teach", "", "orange")
}
_OTHERS: Final = {
    "explored": (
        "Explored to teach",
        "Drawn at random among the distinct sights: a young model errs where it is sure, too.",
        "green",
    ),
    "audit": ("Audit", "Drawn at random to measure the field. No model is ever taught with them.", "blue"),
    "contested": ("Contested", "Candidate and incumbent differ: asked before the candidate was judged.", "blue"),
}


def _group_of(row: SelectedRow, arms: Sequence[str]) -> tuple[str, str, str]:
    if row.role is SelectionRole.AUDIT:
        return _OTHERS["audit"]
    if row.role is SelectionRole.CONTESTED:
        return _OTHERS["contested"]
    if row.explored:
        return _OTHERS["explored"]
    if row.parts.get("evidence"):  # a verdict may come long after another arm has kept the frame
        return _TAUGHT[Arm.DISMISSED]
    return _TAUGHT[next((arm for arm in KEPT if arm in arms), "")]


def render_sheet(round_number: int, groups: Sequence[Group], *, policy: str | None, devices: Mapping[str, int]) -> str:
    """Return the page: nothing in it is loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("flows"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("sheet.html.j2").render(
        number=round_number,
        groups=groups,
        policy=policy,
        devices=devices,
        chosen=sum(group.chosen for group in groups),
        shown=sum(len(group.cards) for group in groups),
    )


def _arms(wired: Services, rows: Sequence[SelectedRow]) -> dict[str, tuple[str, ...]]:
    samples = wired.catalog.samples(ids=[row.sample_id for row in rows], unlearned_too=True)
    return {sample.sample_id: sample.arms for sample in samples}


def _cards(wired: Services, rows: Sequence[SelectedRow]) -> dict[str, Card]:
    """The cards by sample."""
    neighbours = {row.nearest_id for row in rows if row.nearest_id is not None}
    wanted = {row.sample_id for row in rows} | neighbours
    samples = {sample.sample_id: sample for sample in wired.catalog.samples(ids=wanted, unlearned_too=True)}
    labels = agreed_labels(wired, wanted)
    large = _shrink(wired, [samples[row.sample_id] for row in rows], PICTURE_PX)
    small = _shrink(wired, [samples[each] for each in sorted(neighbours) if each in samples], NEAREST_PX)
    names = wired.settings.labels.class_names
    return {
        row.sample_id: _card(row, samples[row.sample_id], large, labels, names, _nearest(row, samples, small, labels))
        for row in rows
    }


def _card(
    row: SelectedRow,
    sample: Sample,
    pictures: Mapping[str, str],
    labels: Mapping[str, Mapping[str, Any]],
    class_names: tuple[str, ...],
    nearest: Nearest | None,
) -> Card:
    label = labels.get(sample.sample_id)
    return Card(
        sample_id=sample.sample_id,
        rank=row.rank,
        camera=_camera(sample),
        stands_for=row.stands_for,
        picture=Picture(pictures.get(sample.image_key), tuple(_predicted(sample, class_names))),
        said=say_prediction(sample.prediction, class_names),
        label=say_label(label),
        right=agrees(sample, label, class_names),
        words=few_words(row),
        reasons=row.reasons,
        compared=bool(row.parts),
        nearest=nearest,
    )


def _camera(sample: Sample) -> str:
    return sample.device_id if sample.camera_id == sample.device_id else f"{sample.device_id}/{sample.camera_id}"


def _nearest(
    row: SelectedRow,
    samples: Mapping[str, Sample],
    pictures: Mapping[str, str],
    labels: Mapping[str, Mapping[str, Any]],
) -> Nearest | None:
    sample = samples.get(row.nearest_id or "")
    if sample is None or row.nearest_cosine is None:
        return None
    label = labels.get(sample.sample_id)
    picture = Picture(pictures.get(sample.image_key), tuple(_labelled(sample, label)))
    return Nearest(sample.sample_id, picture, say_label(label) or "not answered", row.nearest_cosine)


def _shrink(wired: Services, samples: Sequence[Sample], longest_px: int) -> dict[str, str]:
    """Return small pictures as `data:` addresses by key, made one at a time; what is gone or damaged is left out."""
    keys = sorted({sample.image_key for sample in samples})
    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        found = zip(keys, pool.map(partial(_shrink_one, wired, longest_px), keys), strict=True)
        return {key: url for key, url in found if url is not None}


def _shrink_one(wired: Services, longest_px: int, key: str) -> str | None:
    try:
        small = shrink_image(key, fetch_image(wired, key), longest_px)
    except (BlobNotFoundError, CatalogError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(small).decode()


def _predicted(sample: Sample, class_names: Sequence[str]) -> Iterable[Rectangle]:
    """The boxes that people were shown."""
    boxes = sample.prediction.shown_boxes if isinstance(sample.prediction, DetectionPrediction) else ()
    for box in boxes:
        name = class_names[box.class_index] if box.class_index < len(class_names) else str(box.class_index)
        yield _rectangle(sample, (box.x_min, box.y_min, box.x_max, box.y_max), f"{name} {box.score:.0%}")


def _labelled(sample: Sample, label: Mapping[str, Any] | None) -> Iterable[Rectangle]:
    """The boxes that people settled on."""
    for box in parse_boxes(label) if label is not None and "boxes" in label else ():
        yield _rectangle(sample, box.corners, box.class_name)


def _rectangle(sample: Sample, corners: tuple[float, float, float, float], note: str) -> Rectangle:
    left, top, right, bottom = corners
    wide, high = (right - left) / sample.width, (bottom - top) / sample.height
    return Rectangle(round(left / sample.width, 4), round(top / sample.height, 4), round(wide, 4), round(high, 4), note)
