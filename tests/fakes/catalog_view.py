"""The cloud as a device's spool sees it: what has arrived, how often, and what may be deleted."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from curate.contracts.assignment import Acknowledgement
from curate.contracts.capture import BatchRecord
from edge_agent.spool.spool import Spool
from tests.fakes.captures import DEVICE, NOW


class CatalogView:
    """Ingest as the contract describes it: the first record of a name counts, acknowledged is what has no gap."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, int], bytes] = {}
        self.captures: Counter[str] = Counter()
        """How many different batches named a capture."""
        self.digests: dict[str, str] = {}
        self.feedback: set[str] = set()
        self.through: dict[str, int] = {}
        self.changed: list[tuple[str, int]] = []
        """Batches that came again with other bytes, and not merely empty, as one in the place of a lost file is."""

    def take(self, raw: bytes) -> BatchRecord:
        """Ingest one commit record; the same one again changes nothing."""
        record = BatchRecord.from_bytes(raw)
        name = (record.boot_id, record.sequence)
        if name in self.records:
            is_said = self.records[name] == raw or not (record.captures or record.feedback)
            self.changed += [] if is_said else [name]
            return record
        self.records[name] = raw
        self.captures.update(capture.capture_id for capture in record.captures)
        self.digests |= {capture.capture_id: capture.image.sha256 for capture in record.captures}
        self.feedback |= {feedback.feedback_id for feedback in record.feedback}
        while (record.boot_id, self.through.get(record.boot_id, 0) + 1) in self.records:
            self.through[record.boot_id] = self.through.get(record.boot_id, 0) + 1
        return record

    @property
    def twice(self) -> list[str]:
        """Captures that more than one batch named."""
        return sorted(name for name, count in self.captures.items() if count > 1)

    def acknowledgement(self, device_id: str = DEVICE) -> bytes:
        """`ack.json` as ingest writes it."""
        return Acknowledgement(device_id=device_id, through=self.through, updated_at=datetime.now(UTC)).to_bytes()


def drain(spool: Spool, catalog: CatalogView) -> None:
    """Move all that waits in the spool to the catalog, as an endless good link would."""
    while True:
        while spool.freeze_batch(NOW) is not None:
            pass
        outstanding = spool.outstanding()
        for batch in outstanding:
            raw = spool.load_batch_record(batch)
            if raw is not None:
                catalog.take(raw)
                spool.mark_uploaded(batch)
        if not spool.acknowledge(catalog.through) and not outstanding:
            return
