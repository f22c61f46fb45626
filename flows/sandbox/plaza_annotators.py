"""Annotators who draw boxes around people: they look at the task's picture and know the truth of what they see."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.annotation.formats import FORMATS
from curate.annotation.models import ImageSize
from curate.catalog.boxes import boxes_label
from flows.sandbox.annotators import AnnotatorsConfig, Regions, ViewImage, annotate_until_stopped, draw_for
from flows.sandbox.plaza_people import Carefulness, annotate, true_boxes
from flows.sandbox.plaza_scene import ClipReader, decode
from flows.sandbox.plaza_truth import TruthBox, load_truth
from flows.sandbox.simulator import load_simulator_config

_FORMAT = FORMATS["detection"]


class PlazaAnnotatorsConfig(AnnotatorsConfig):
    """What the process reads."""

    clip: Path


class PlazaAnnotator:
    """Draws the truth, a little off; an empty picture is answered with no box."""

    def __init__(
        self,
        config: AnnotatorsConfig,
        reader: ClipReader,
        truth: Mapping[int, Sequence[TruthBox]],
        carefulness: Carefulness = Carefulness(),  # noqa: B008 (immutable)
    ) -> None:
        self._config = config
        self._reader = reader
        self._truth = truth
        self._carefulness = carefulness

    def answer(self, data: Mapping[str, Any], view: ViewImage) -> Regions | None:
        """Return the rectangles, None for a skip. Raises KeyError or ValueError for a task of another kind."""
        rng = draw_for(self._config.seed, data["sample_id"])
        if rng.random() < self._config.skip_rate:
            return None
        picture = decode(view())
        size = ImageSize(width=picture.shape[1], height=picture.shape[0])
        truth = true_boxes(self._truth[self._reader.recognise(picture).frame])
        return _FORMAT.encode(boxes_label(annotate(truth, self._carefulness, rng)), size)


def main(argv: list[str]) -> int:
    """Annotate until stopped."""
    config = load_simulator_config(argv, PlazaAnnotatorsConfig)
    person = PlazaAnnotator(config, ClipReader.of_field(config.clip), load_truth())
    annotate_until_stopped(config, person)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
