"""What samples of the plaza really showed, for the report: recognised from their pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from PIL import Image

from curate.catalog.boxes import LabelledBox, parse_boxes
from curate.catalog.models import IMPORTED, FeedbackRow, Sample
from curate.contracts.feedback import Verdict
from curate.contracts.prediction import DetectionPrediction
from curate.errors import BlobNotFoundError
from flows.sandbox.plaza_clip import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX
from flows.sandbox.plaza_people import PERSON, Comparison, compare, true_boxes
from flows.sandbox.plaza_scene import ClipReader, Scene, decode
from flows.sandbox.plaza_truth import TruthBox
from flows.sandbox.worlds.base import Json

_THUMBNAIL = (480, 360)
_THUMBNAIL_QUALITY = 78
_SCENE_S = 1.0


class PlazaWitness:
    """Looks at pictures and knows who is there."""

    def __init__(
        self,
        fetch: Callable[[str], bytes],
        reader: ClipReader,
        truth: Mapping[int, Sequence[TruthBox]],
        labels: Mapping[str, Json],
    ) -> None:
        self._fetch = fetch
        self._reader = reader
        self._truth = truth
        self._labels = labels
        self._known: dict[str, Scene | None] = {}

    def scene_of(self, sample: Sample) -> Hashable | None:
        """The second of the clip, whatever the camera, the pass and the light."""
        scene = self._recognise(sample)
        return int(scene.frame / (FRAMES_PER_S * _SCENE_S)) if scene else None

    def describe(self, sample: Sample, verdicts: Sequence[FeedbackRow] = ()) -> Json:
        """Counts in words, and every box with what became of it."""
        scene = self._recognise(sample)
        truth = true_boxes(self._truth[scene.frame]) if scene else ()
        predicted, scores, ids = _read(sample)
        found = compare(predicted, [True] * len(predicted), truth)
        told = self._labels.get(sample.sample_id)
        wrong = found.right.count(False)
        return {
            "predicted": _people(len(predicted)),
            "confidence": None,
            "label": _people(len(parse_boxes(told))) if told else None,
            "truth": _people(len(truth)) if scene else None,
            "right": not wrong and not found.missed,
            "mistakes": wrong + len(found.missed),
            "light": scene.condition if scene else None,
            "boxes": list(_overlay(predicted, scores, found, truth, _dismissed(sample, verdicts), ids)),
        }

    def thumbnail(self, sample: Sample, encoded: bytes) -> bytes:  # noqa: ARG002 (all are of one size)
        """A smaller JPEG."""
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(encoded)) as picture:
            picture.convert("RGB").resize(_THUMBNAIL).save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
        return buffer.getvalue()

    def _recognise(self, sample: Sample) -> Scene | None:
        if sample.device_id == IMPORTED:
            return None
        if sample.sample_id not in self._known:
            try:
                picture = decode(self._fetch(sample.image_key))
                self._known[sample.sample_id] = self._reader.recognise(picture)
            except (BlobNotFoundError, ValueError):
                self._known[sample.sample_id] = None
        return self._known[sample.sample_id]


def _read(sample: Sample) -> tuple[tuple[LabelledBox, ...], list[float], list[str]]:
    """The boxes that people were shown, by falling score."""
    prediction = sample.prediction
    shown = prediction.shown_boxes if isinstance(prediction, DetectionPrediction) else ()
    boxes = tuple(LabelledBox(PERSON, box.x_min, box.y_min, box.x_max, box.y_max) for box in shown)
    return boxes, [box.score for box in shown], [box.box_id for box in shown]


def _dismissed(sample: Sample, verdicts: Sequence[FeedbackRow]) -> set[str]:
    """Ids of tapped boxes; the people of this world name their verdicts after them."""
    tapped = (row for row in verdicts if row.verdict == Verdict.DISMISSED)
    return {row.feedback_id.removeprefix(f"fb-{sample.camera_id}-{row.prediction_id}-") for row in tapped}


def _overlay(
    predicted: Sequence[LabelledBox],
    scores: Sequence[float],
    found: Comparison,
    truth: Sequence[LabelledBox],
    dismissed: set[str],
    ids: Sequence[str],
) -> Iterator[Json]:
    for box, score, right, box_id in zip(predicted, scores, found.right, ids, strict=True):
        what = "dismissed" if box_id in dismissed else "right" if right else "wrong"
        yield _rectangle(box, what, f"{what}, score {score:.2f}")
    for place in found.missed:
        yield _rectangle(truth[place], "missed", "missed")


def _rectangle(box: LabelledBox, what: str, note: str) -> Json:
    return {
        "what": what,
        "note": note,
        "x": round(box.x_min / WIDTH_PX, 4),
        "y": round(box.y_min / HEIGHT_PX, 4),
        "width": round(box.width / WIDTH_PX, 4),
        "height": round(box.height / HEIGHT_PX, 4),
    }


def _people(count: int) -> str:
    return "nobody" if not count else "1 person" if count == 1 else f"{count} people"
