"""What compression has to know about a kind of model: when two answers agree, and which frames show it best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from curate.answers.base import Answer, BadOutputError
from curate.answers.registry import ANSWERS
from curate.compression.inference import OnnxModel, Outputs
from curate.compression.parity import Parity, compare_distributions
from curate.contracts.prediction import DetectionPrediction
from curate.contracts.release import ModelSpec
from curate.errors import CompressionError
from curate.metrics.detection import TrueBoxes, match_frames
from curate.metrics.kinds import predicted_boxes


class CompressionKind(Protocol):
    """One kind of model, to compression."""

    agreement_name: str
    """What `Parity.agreement` is called in reports, for example `top1`."""
    export_tolerance: float
    """Largest difference of an exported file from torch."""

    def evaluate_parity(self, reference: Outputs, candidate: Outputs) -> Parity:
        """Compare what two models answered to the same frames."""

    def choose_golden(self, outputs: Outputs, n: int) -> NDArray[np.int64]:
        """Return the rows of at most `n` frames on which a device should prove itself."""

    def difference(self, found: Outputs, expected: Outputs) -> float:
        """Return how far the answers to one frame are apart at most, as a device measures it.

        Raises:
            CompressionError: they cannot be compared.
        """


class _Kind:
    """What all kinds share: a device compares answers as `curate.answers` says."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._answers = ANSWERS[spec.kind]

    def difference(self, found: Outputs, expected: Outputs) -> float:
        """Return the largest difference over all frames."""
        try:
            pairs = zip(_frames(found), _frames(expected), strict=True)
            return max((self._answers.golden_difference(left, right) for left, right in pairs), default=0.0)
        except BadOutputError as exc:
            raise CompressionError(f"two answers to the same frame cannot be compared: {exc}") from exc

    def _read(self, outputs: Outputs) -> list[Answer]:
        """Read every frame by itself."""
        height, width = self._spec.height, self._spec.width
        try:
            return [self._answers.reader(self._spec).read(frame, height, width) for frame in _frames(outputs)]
        except BadOutputError as exc:
            raise CompressionError(f"the model gives an answer that cannot be read: {exc}") from exc


class Classification(_Kind):
    """Class distributions with one embedding a frame."""

    agreement_name = "top1"
    export_tolerance = 1e-4

    def evaluate_parity(self, reference: Outputs, candidate: Outputs) -> Parity:
        """Compare the distributions row by row."""
        return compare_distributions(reference["probabilities"], candidate["probabilities"])

    def choose_golden(self, outputs: Outputs, n: int) -> NDArray[np.int64]:
        """Three quarters the surest, class by class in turn, then the least sure."""
        return choose_by_margin(outputs["probabilities"], n)


class Detection(_Kind):
    """Boxes, judged by average precision: a shift of many faint candidates matters less than one box that is gone."""

    agreement_name = "ap50"
    export_tolerance = 1e-3  # of a small box's overlap; a fraction of a pixel

    def evaluate_parity(self, reference: Outputs, candidate: Outputs) -> Parity:
        """Take the boxes that the reference shows for the truth: agreement is the candidate's AP50 against them.

        The divergence is 1 - AP50-95, which sees boxes that move, too. Without a box to find both are NaN.
        """
        truth = [_shown(_prediction(answer)) for answer in self._read(reference)]
        found = [predicted_boxes(_prediction(answer).boxes) for answer in self._read(candidate)]
        evidence = match_frames(found, truth, len(self._spec.class_names))
        return Parity(
            agreement=evidence.measuring("AP50").value(),
            divergence=1.0 - evidence.measuring("AP50-95").value(),
            max_abs_difference=self.difference(candidate, reference),
            n=len(truth),
        )

    def choose_golden(self, outputs: Outputs, n: int) -> NDArray[np.int64]:
        """Three quarters the frames it is surest of, then those it is least sure of."""
        unsure = [answer.scores[self._answers.default_score] for answer in self._read(outputs)]
        order = np.argsort(unsure, kind="stable").astype(np.int64)
        if len(order) <= n:
            return order
        return np.concatenate([order[: n - n // 4], order[len(order) - n // 4 :]])


def choose_by_margin(probabilities: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Indices of at most `n` rows: three quarters the surest, class by class in turn, then the least sure.

    Sure and unsure are measured by the margin between the two largest of `probabilities` [N, K].
    """
    ordered = np.sort(probabilities, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    predicted = probabilities.argmax(axis=1)
    by_margin = np.argsort(-margin, kind="stable")
    rank_in_class = np.empty(len(margin), dtype=np.int64)
    for name in np.unique(predicted):
        members = by_margin[predicted[by_margin] == name]
        rank_in_class[members] = np.arange(len(members))
    surest_first = np.lexsort((-margin, rank_in_class))
    sure = surest_first[: n - n // 4]
    unsure = [index for index in by_margin[::-1] if index not in set(sure.tolist())][: n - len(sure)]
    return np.concatenate([sure, np.asarray(unsure, dtype=np.int64)])


def _frames(outputs: Outputs) -> Iterator[Outputs]:
    """One frame's outputs after the other."""
    for row in range(len(next(iter(outputs.values())))):
        yield {name: values[row] for name, values in outputs.items()}


def _prediction(answer: Answer) -> DetectionPrediction:
    prediction = answer.to_prediction("parity", "parity")
    if not isinstance(prediction, DetectionPrediction):
        raise CompressionError("the answer holds no boxes")
    return prediction


def _shown(prediction: DetectionPrediction) -> TrueBoxes:
    """What people see of a frame, taken for the truth."""
    boxes = [box for box in prediction.shown_boxes if box.x_max > box.x_min and box.y_max > box.y_min]
    corners = [(box.x_min, box.y_min, box.x_max, box.y_max) for box in boxes]
    return TrueBoxes.of(corners, [box.class_index for box in boxes])


KINDS: Final[Mapping[str, Callable[[ModelSpec], CompressionKind]]] = {
    "classification": Classification,
    "detection": Detection,
}


def find_kind(spec: ModelSpec) -> CompressionKind:
    """Return the adapter of a specification's kind.

    Raises:
        CompressionError: there is none.
    """
    if spec.kind not in KINDS:
        raise CompressionError(f"{spec.kind} models cannot be compressed yet", hint=f"kinds: {', '.join(KINDS)}")
    return KINDS[spec.kind](spec)


def kind_of(model: OnnxModel) -> CompressionKind:
    """Return the adapter of the model's kind.

    Raises:
        CompressionError: there is none.
    """
    return find_kind(model.spec)
