"""What the fleet has sent, as few centres that travel in its assignments: no device sends it as new again. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from curate.answers.base import Floats
from curate.answers.folding import fold_rows
from curate.answers.kept_sketch import FIRST_RADIUS, KeptSketch, to_document, unpack_centres
from curate.catalog.columns import EmbeddingBlock, Position
from curate.contracts.assignment import Assignment, CapturePolicySpec
from curate.contracts.sketch import MAX_FLEET_CENTRES, EmbeddingSketch
from curate.waits import is_time

_ROWS_AT_ONCE = 1024


class SentSketch(BaseModel):
    """The sketch of one release, and how far the captures have been read that it stands for."""

    model_config = ConfigDict(frozen=True)

    sketch: EmbeddingSketch
    reached: Position
    begun_at: datetime
    looked_at: datetime
    forgotten: tuple[str, ...] = ()
    """The devices that were unlearned then: nothing of theirs is in it."""


def is_due(before: SentSketch | None, now: datetime, interval: timedelta) -> bool:
    """Whether to look for more: waits double from the release's first captures on, up to `interval`."""
    return before is None or is_time(before.begun_at, before.looked_at, now, interval)


def still_holds(before: SentSketch | None, forgotten: tuple[str, ...]) -> SentSketch | None:
    """Return the sketch, or None when other devices have been unlearned since and it starts anew."""
    return before if before is not None and before.forgotten == forgotten else None


def grow_sketch(
    before: SentSketch | None,
    blocks: Iterable[EmbeddingBlock],
    *,
    release_id: str,
    now: datetime,
    forgotten: tuple[str, ...] = (),
) -> SentSketch | None:
    """Add what came since; None while there is nothing at all.

    The sketch is the same as long as nothing came that lies far from all its centres. Memory is one block's, the
    work `MAX_FLEET_CENTRES` products a capture.
    """
    kept, reached = _continue(before), before.reached if before else None
    dim, is_changed = 0, before is None
    for block in blocks:
        reached, dim = block.last, block.embeddings.shape[1]
        is_changed |= _add_block(kept, block)
    if reached is None or not len(kept):
        return None
    sketch = to_document(kept, release_id, dim) if is_changed or before is None else before.sketch
    begun_at = before.begun_at if before else now
    return SentSketch(sketch=sketch, reached=reached, begun_at=begun_at, looked_at=now, forgotten=forgotten)


def uses_sketch(policy: CapturePolicySpec) -> bool:
    """Whether devices that follow the policy compare with what was sent."""
    return policy.novel_budget_fraction > 0.0


def should_tell(current: Assignment, sketch: EmbeddingSketch) -> bool:
    """Whether a device's assignment is to be signed anew with this sketch.

    One that allows a downgrade was made by hand for one device: it is never repeated by itself.
    """
    is_for_it = current.release_id == sketch.space and not current.allow_downgrade
    return is_for_it and uses_sketch(current.capture_policy) and current.fleet_sketch != sketch


def _continue(before: SentSketch | None) -> KeptSketch:
    if before is None:
        return KeptSketch(MAX_FLEET_CENTRES)
    kept = KeptSketch(MAX_FLEET_CENTRES, radius=max(before.sketch.radius, FIRST_RADIUS))
    for centre in unpack_centres(before.sketch):
        kept.add(centre)
    return kept


def _add_block(kept: KeptSketch, block: EmbeddingBlock) -> bool:
    """Add what lies far from the centres; return whether any of it became one."""
    is_changed = False
    for start in range(0, len(block.embeddings), _ROWS_AT_ONCE):
        for row in _far(kept, fold_rows(block.embeddings[start : start + _ROWS_AT_ONCE].astype("f4"))):
            is_changed |= kept.add(row)
    return is_changed


def _far(kept: KeptSketch, rows: Floats) -> Floats:
    """Return the rows that may become centres: nearly all of a million captures are near one, and need no turn each."""
    if not len(kept):
        return rows
    cosine = (rows @ kept.centres.T).max(axis=1)
    far: Floats = rows[cosine < 1.0 - 2.0 * (2.0 * kept.radius) ** 2]  # half the chord is sqrt((1 - cosine) / 2)
    return far
