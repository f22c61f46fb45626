"""The pictures of the report: what was chosen and what people dismissed, as the devices uploaded it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from curate.catalog.models import FeedbackRow, Sample, SelectedRow
from curate.contracts.feedback import Verdict
from flows.sandbox.worlds.base import Json, Witness

SHOWN_PER_ROUND = 18
THUMBNAILS = "thumbnails"


class Gallery:
    """Says what pictures show: what the device thought, what people said, what it really was."""

    def __init__(self, witness: Witness, samples: Mapping[str, Sample], feedback: Sequence[FeedbackRow]) -> None:
        self._witness = witness
        self._samples = samples
        self._verdicts: defaultdict[str, list[FeedbackRow]] = defaultdict(list)
        for row in feedback:
            if row.sample_id is not None:
                self._verdicts[row.sample_id].append(row)

    def describe_choices(self, rows: Sequence[SelectedRow]) -> list[Json]:
        """The first of a round's choices by rank, each with what it was chosen for."""
        shown = sorted(rows, key=lambda row: row.rank)[:SHOWN_PER_ROUND]
        return [
            {
                **self._describe(self._samples[row.sample_id]),
                "rank": row.rank,
                "role": row.role.value,
                "reasons": list(row.reasons),
                "stands_for": row.stands_for,
            }
            for row in shown
            if row.sample_id in self._samples
        ]

    def describe_dismissed(self) -> list[Json]:
        """Frames that people dismissed, the most confident mistakes first: what uncertainty alone would never find."""
        told = {
            sample_id: against[-1]
            for sample_id, rows in self._verdicts.items()
            if sample_id in self._samples and (against := [row for row in rows if row.verdict != Verdict.CONFIRMED])
        }
        shown = [
            {
                **self._describe(self._samples[sample_id]),
                "verdict": row.verdict,
                "reason": row.reason,
                "said": row.label,
            }
            for sample_id, row in told.items()
        ]
        shown.sort(key=lambda entry: (entry["mistakes"] == 0, -(entry["confidence"] or 0.0)))
        return shown[:SHOWN_PER_ROUND]

    def persist_thumbnails(
        self, root: Path, fetch: Callable[[Sequence[str]], Mapping[str, bytes]], entries: Sequence[Json]
    ) -> None:
        """Put pictures of the entries under `root/thumbnails`; one that is gone from the bucket is left out."""
        (root / THUMBNAILS).mkdir(parents=True, exist_ok=True)
        wanted = {self._samples[e["sample_id"]].image_key: (self._samples[e["sample_id"]], e) for e in entries}
        for key, data in fetch(list(wanted)).items():
            sample, entry = wanted[key]
            (root / entry["picture"]).write_bytes(self._witness.thumbnail(sample, data))

    def _describe(self, sample: Sample) -> Json:
        return {
            "sample_id": sample.sample_id,
            "picture": f"{THUMBNAILS}/{sample.image_sha256}.jpg",
            "camera": sample.camera_id,
            "release": sample.release_id,
            "arms": list(sample.arms),
            **self._witness.describe(sample, self._verdicts.get(sample.sample_id, ())),
        }
