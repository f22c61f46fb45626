"""A process that lives off its spool until somebody kills it, telling its parent what it is sure of."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

from edge_agent.ledger import Ledger
from edge_agent.spool.spool import Spool, SpoolLimits
from tests.fakes.captures import DEVICE, NOW, make_capture, make_feedback, make_jpeg

LIMITS = SpoolLimits(min_free_bytes=0, batch_max_captures=5, batch_max_age_s=0.0)


def live(parent: Connection, root: str, boot_id: str, first_number: int) -> None:
    """Put, freeze and acknowledge for ever; says `kept <id>` after a put, `leaving <ids>` before they leave."""
    ledger = Ledger()
    spool = Spool.open(Path(root), LIMITS, ledger, device_id=DEVICE, boot_id=boot_id)
    number = first_number
    while True:
        number += 1
        ledger.frame_inferred(1000)
        jpeg = make_jpeg(number, 20_000)
        if spool.put(make_capture(number, jpeg), jpeg):
            parent.send_bytes(f"kept capture-{number}".encode())
        if number % 3 == 0:
            spool.put_feedback(make_feedback(number))
        batch = spool.freeze_batch(NOW) if number % 4 == 0 else None
        if batch is not None:
            spool.mark_uploaded(batch)
        if batch is not None and number % 8 == 0:
            loaded = [spool.load_capture(sequence) for batch in spool.unacknowledged() for sequence in batch.captures]
            ids = " ".join(found[0].capture_id for found in loaded if found)
            parent.send_bytes(f"leaving {ids}".encode())
            spool.acknowledge({boot_id: batch.sequence})
