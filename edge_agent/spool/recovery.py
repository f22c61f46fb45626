"""What the spool's folder says after a crash, made consistent. The files are the truth; the totals follow them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar

from curate.contracts.document import Document
from curate.errors import ContractError
from edge_agent.durable import load_header_and_size, remove_files
from edge_agent.errors import CorruptFileError
from edge_agent.ledger import Totals
from edge_agent.spool.files import (
    BATCH_SUFFIX,
    CAPTURE_SUFFIX,
    FEEDBACK_SUFFIX,
    Batch,
    BatchHeader,
    CaptureSketch,
    FeedbackHeader,
    Receipt,
    Snapshot,
    SpoolFolder,
    SpoolState,
)
from edge_agent.spool.index import LONG_AGO, SpoolIndex
from edge_agent.spool.retention import Held, weigh

log = logging.getLogger(__name__)

HeaderT = TypeVar("HeaderT", bound=Document)
SnapshotT = TypeVar("SnapshotT", bound=Snapshot)
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Found:
    """One capture found in the folder."""

    held: Held
    prediction_id: str


@dataclass(frozen=True)
class Recovered:
    """The folder's content, with totals that obey the ledger's laws."""

    revision: int
    totals: Totals
    captures: tuple[Found, ...]
    feedback: Mapping[int, Receipt]
    left_receipts: tuple[Receipt, ...]
    batches: tuple[Batch, ...]
    gaps: tuple[Batch, ...]
    """Where a batch was and cannot be read; its file, if any, stays until an empty batch replaces it."""
    uploaded_batches: frozenset[str]
    uploaded_captures: frozenset[int]

    def make_index(self) -> SpoolIndex:
        """Return an index of all this."""
        index = SpoolIndex()
        # What waited in an earlier process has waited long enough.
        index.add_captures([(found.held, found.prediction_id) for found in self.captures], since_s=LONG_AGO)
        for sequence, receipt in self.feedback.items():
            index.add_feedback(sequence, receipt, since_s=LONG_AGO)
        index.replace_left_receipts(self.left_receipts)
        for batch in self.batches:
            index.freeze(batch)
        index.gaps = {gap.name: gap for gap in self.gaps}
        index.uploaded_batches = self.uploaded_batches
        index.uploaded_captures = self.uploaded_captures
        return index


def recover(folder: SpoolFolder) -> Recovered:
    """Finish what a crash interrupted and read what is left; a bad file goes to quarantine and stops nothing.

    Raises:
        OSError: the folder itself cannot be used.
    """
    folder.create()
    state = _load_state(folder)
    captures = _survey(folder, folder.captures, CAPTURE_SUFFIX, CaptureSketch, _found)
    feedback = _survey(folder, folder.feedback, FEEDBACK_SUFFIX, FeedbackHeader, _receipt)
    newest = max([state, *captures.newest, *feedback.newest], key=lambda snapshot: snapshot.revision)
    _finish_removals(folder, {*state.removing, *newest.removing}, captures.good, feedback.good)
    batches, gaps = _load_batches(folder)
    # A number above the newest truth belongs to a put that was reported as failed but left its file.
    _remove_above(newest.totals.spooled, captures.good, folder.capture_path)
    _remove_above(newest.totals.feedback_spooled, feedback.good, folder.feedback_path)
    return Recovered(
        revision=max([newest.revision, *(batch.revision for batch in batches)]),
        totals=reconcile(
            newest.totals,
            captures=len(captures.good),
            unreadable=len(captures.bad),
            feedback=len(feedback.good),
            highest_capture=max([*captures.numbers, *(n for batch in batches for n in batch.captures)], default=0),
            highest_feedback=max([*feedback.numbers, *(n for batch in batches for n in batch.feedback)], default=0),
        ),
        captures=tuple(captures.good.values()),
        feedback=feedback.good,
        left_receipts=_load_receipts(folder),
        batches=batches,
        gaps=gaps,
        uploaded_batches=frozenset(state.uploaded_batches) & {batch.name for batch in (*batches, *gaps)},
        uploaded_captures=frozenset(state.uploaded_captures) & captures.good.keys(),
    )


def reconcile(
    totals: Totals, *, captures: int, unreadable: int, feedback: int, highest_capture: int, highest_feedback: int
) -> Totals:
    """Return totals that agree with what lies in the folder: how many good files, up to which number. Pure.

    A capture the totals expect and the folder lacks (`unreadable` of them just found, others lost by the disk)
    counts as evicted. Files
    the totals never heard of (the newest file is unreadable, the state was lost) count as selected and
    spooled. Feedback that is lost stays pending for ever: it was never delivered and the number says so.
    """
    unheard = max(highest_capture - totals.spooled, captures - totals.pending, 0)
    pending_feedback = totals.feedback_spooled - totals.feedback_acknowledged
    unheard_feedback = max(highest_feedback - totals.feedback_spooled, feedback - pending_feedback, 0)
    totals = totals.plus(Totals(selected=unheard, spooled=unheard, feedback_spooled=unheard_feedback))
    missing = totals.pending - captures
    unreadable = min(unreadable, missing)
    return totals.plus(Totals.eviction("unreadable", unreadable)).plus(Totals.eviction("lost", missing - unreadable))


def _load_state(folder: SpoolFolder) -> SpoolState:
    try:
        state = folder.load_state()
    except (CorruptFileError, ContractError) as exc:
        folder.set_aside(folder.state, str(exc))
        state = None
    return state or SpoolState(revision=1, totals=Totals())


def _load_receipts(folder: SpoolFolder) -> tuple[Receipt, ...]:
    try:
        return tuple(folder.load_receipts())
    except (CorruptFileError, ContractError) as exc:
        folder.set_aside(folder.receipts, str(exc))
        return ()


@dataclass
class _Survey(Generic[ItemT]):
    """What numbered files say, without their headers: tens of thousands of those are too much to hold."""

    good: dict[int, ItemT] = field(default_factory=dict)
    bad: set[int] = field(default_factory=set)
    """Those that went to quarantine."""
    newest: list[Snapshot] = field(default_factory=list)
    """One, or none."""

    @property
    def numbers(self) -> Iterator[int]:
        return chain(self.good, self.bad)


def _survey(
    folder: SpoolFolder,
    where: Path,
    suffix: str,
    kind: type[SnapshotT],
    digest: Callable[[int, SnapshotT, int], ItemT],
) -> _Survey[ItemT]:
    """Read the headers of a folder's files; `digest` keeps what is needed of number, header and size in bytes."""
    survey = _Survey[ItemT]()
    for sequence, path in folder.numbered(where, suffix):
        loaded = _load(folder, path, kind)
        if loaded is None:
            survey.bad.add(sequence)
            continue
        header, size_bytes = loaded
        survey.good[sequence] = digest(sequence, header, size_bytes)
        seen: list[Snapshot] = [header, *survey.newest]
        survey.newest = [max(seen, key=lambda snapshot: snapshot.revision)]
    return survey


def _finish_removals(
    folder: SpoolFolder,
    names: set[str],
    captures: dict[int, Found],
    feedback: dict[int, Receipt],
) -> None:
    """Remove what was counted as gone before the crash, from the folder and from what was found."""
    paths = sorted(folder.root / name for name in names)
    remove_files(paths)
    for path in paths:
        if path.suffix == CAPTURE_SUFFIX:
            captures.pop(int(path.stem), None)
        elif path.suffix == FEEDBACK_SUFFIX:
            feedback.pop(int(path.stem), None)


def _load_batches(folder: SpoolFolder) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Return the readable batches in order of freezing, and the gaps."""
    batches, gaps = [], []
    for path in sorted(folder.outbox.glob(f"*{BATCH_SUFFIX}")):
        place = folder.parse_batch_path(path)
        found = _load(folder, path, BatchHeader, stays=place is not None)
        if found is not None:
            header = found[0]
            batches.append(
                Batch(header.revision, header.boot_id, header.sequence, tuple(header.captures), tuple(header.feedback))
            )
        elif place is not None:
            gaps.append(place)
    for gap in find_gaps(batches, gaps):
        folder.set_aside(folder.batch_path(gap), "the file is gone", stays=True)
        gaps.append(gap)
    return tuple(sorted(batches, key=lambda batch: batch.revision)), tuple(gaps)


def find_gaps(batches: Sequence[Batch], known: Sequence[Batch]) -> list[Batch]:
    """Return empty batches for what is missing between the batches of a boot, beside the gaps already known. Pure.

    Acknowledged batches leave from the front, so what is missing there has arrived.
    """
    taken: dict[str, set[int]] = {}
    for batch in batches:
        taken.setdefault(batch.boot_id, set()).add(batch.sequence)
    between = [
        Batch(0, boot_id, sequence, (), ())
        for boot_id, sequences in taken.items()
        for sequence in range(min(sequences), max(sequences))
        if sequence not in sequences
    ]
    return [gap for gap in between if gap not in known]


def _load(folder: SpoolFolder, path: Path, kind: type[HeaderT], *, stays: bool = False) -> tuple[HeaderT, int] | None:
    """Return a file's header and its size in bytes; None when it went to quarantine."""
    try:
        header, size_bytes = load_header_and_size(path)
        return kind.from_bytes(header), size_bytes
    except (CorruptFileError, ContractError, OSError) as exc:
        folder.set_aside(path, str(exc), stays=stays)
        return None


def _remove_above(limit: int, found: dict[int, ItemT], path_of: Callable[[int], Path]) -> None:
    above = [sequence for sequence in found if sequence > limit]
    for sequence in above:
        log.info("removed the leftover of a failed write: %s", path_of(sequence).name)
        del found[sequence]
    remove_files(path_of(sequence) for sequence in above)


def _found(sequence: int, header: CaptureSketch, size_bytes: int) -> Found:
    record = header.record
    stake, worth = weigh((outcome.arm for outcome in record.arms if outcome.kept), record.prediction.scores)
    return Found(Held(sequence, size_bytes, stake, worth), record.prediction.prediction_id)


def _receipt(_sequence: int, header: FeedbackHeader, _size_bytes: int) -> Receipt:
    return Receipt.of(header.feedback)
