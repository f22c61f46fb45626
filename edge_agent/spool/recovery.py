"""What the spool's folder says after a crash, made consistent. The files are the truth; the totals follow them.

A file that fails its checksum goes to quarantine. One that the disk does not give may be as good as ever: it counts as
held, and is read when its turn comes to be sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
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

_UNREAD_REVISIONS = 1000
"""A file that cannot be read may carry a higher revision than all that can: by less than this."""

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
    removing: tuple[Path, ...] = ()
    """Counted as gone, and not removed yet because the disk refused."""

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
    captures = _survey(folder, folder.captures, CAPTURE_SUFFIX, CaptureSketch, _found, _guess_capture)
    feedback = _survey(folder, folder.feedback, FEEDBACK_SUFFIX, FeedbackHeader, _receipt, _guess_receipt)
    newest = max([state, *captures.newest, *feedback.newest], key=lambda snapshot: snapshot.revision)
    removing = _finish_removals(folder, {*state.removing, *newest.removing}, captures.good, feedback.good)
    batches, gaps = _load_batches(folder, gone=removing)
    # A number above the newest truth belongs to a put that was reported as failed but left its file.
    _remove_above(newest.totals.spooled, captures, folder.capture_path)
    _remove_above(newest.totals.feedback_spooled, feedback, folder.feedback_path)
    spare = _UNREAD_REVISIONS if captures.unread or feedback.unread else 0
    return Recovered(
        revision=max([newest.revision, *(batch.revision for batch in batches)]) + spare,
        totals=reconcile(
            newest.totals,
            captures=len(captures.good),
            unreadable=len(captures.bad),
            feedback=len(feedback.good),
            unreadable_feedback=len(feedback.bad),
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
        removing=removing,
    )


def reconcile(
    totals: Totals,
    *,
    captures: int,
    unreadable: int,
    feedback: int,
    unreadable_feedback: int,
    highest_capture: int,
    highest_feedback: int,
) -> Totals:
    """Return totals that agree with what lies in the folder: how many good files, up to which number. Pure.

    A capture the totals expect and the folder lacks (`unreadable` of them just found, others lost by the disk) counts
    as evicted, and feedback as given up. Files the totals never heard of (the newest file is unreadable, the state was
    lost) count as selected and spooled.
    """
    unheard = max(highest_capture - totals.spooled, captures - totals.pending, 0)
    unheard_feedback = max(highest_feedback - totals.feedback_spooled, feedback - totals.feedback_pending, 0)
    totals = totals.plus(Totals(selected=unheard, spooled=unheard, feedback_spooled=unheard_feedback))
    missing, missing_feedback = totals.pending - captures, totals.feedback_pending - feedback
    unreadable, unreadable_feedback = min(unreadable, missing), min(unreadable_feedback, missing_feedback)
    gone = (
        Totals.eviction("unreadable", unreadable),
        Totals.eviction("lost", missing - unreadable),
        Totals.giving_up("unreadable", unreadable_feedback),
        Totals.giving_up("lost", missing_feedback - unreadable_feedback),
    )
    return reduce(Totals.plus, gone, totals)


def _load_state(folder: SpoolFolder) -> SpoolState:
    try:
        state = folder.load_state()
    except (CorruptFileError, ContractError, OSError) as exc:
        # Also when the disk does not give it: the other files say nearly as much, and frames wait to be answered.
        folder.set_aside(folder.state, str(exc))
        state = None
    return state or SpoolState(revision=1, totals=Totals())


def _load_receipts(folder: SpoolFolder) -> tuple[Receipt, ...]:
    try:
        return tuple(folder.load_receipts())
    except (CorruptFileError, ContractError, OSError) as exc:
        folder.set_aside(folder.receipts, str(exc))
        return ()


@dataclass
class _Survey(Generic[ItemT]):
    """What numbered files say, without their headers: tens of thousands of those are too much to hold."""

    good: dict[int, ItemT] = field(default_factory=dict)
    bad: set[int] = field(default_factory=set)
    """Those that went to quarantine."""
    unread: set[int] = field(default_factory=set)
    """Those among the good that the disk does not give at present."""
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
    guess: Callable[[int, Path], ItemT],
) -> _Survey[ItemT]:
    """Read the headers of a folder's files; `digest` keeps what is needed of number, header and size in bytes, and
    `guess` stands in for it where a file cannot be read."""
    survey = _Survey[ItemT]()
    for sequence, path in folder.numbered(where, suffix):
        try:
            loaded = _load(folder, path, kind)
        except OSError as exc:
            log.error("%s cannot be read now: %s", path.name, exc)  # noqa: TRY400 - the message says it all
            survey.unread.add(sequence)
            survey.good[sequence] = guess(sequence, path)
            continue
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
) -> tuple[Path, ...]:
    """Remove what was counted as gone before the crash, from the folder and from what was found; return what the disk
    refused to let go."""
    paths = sorted(folder.root / name for name in names)
    refused = _remove(paths)
    for path in paths:
        if path.suffix == CAPTURE_SUFFIX:
            captures.pop(int(path.stem), None)
        elif path.suffix == FEEDBACK_SUFFIX:
            feedback.pop(int(path.stem), None)
    return refused


def _remove(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Remove the files durably; return them all when the disk refuses."""
    try:
        remove_files(paths)
    except OSError as exc:
        log.warning("files that count for nothing could not be removed yet: %s", exc)
        return tuple(paths)
    return ()


def _load_batches(folder: SpoolFolder, *, gone: Sequence[Path]) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
    """Return the readable batches in order of freezing, and the gaps; `gone` are files that count as removed."""
    batches, gaps = [], []
    for path in sorted({*folder.outbox.glob(f"*{BATCH_SUFFIX}")}.difference(gone)):
        place = folder.parse_batch_path(path)
        try:
            found = _load(folder, path, BatchHeader, stays=place is not None)
        except OSError as exc:
            # All it says can be said anew: what it named waits again, and an empty batch takes its place.
            log.error("%s cannot be read now: %s", path.name, exc)  # noqa: TRY400 - as above
            found = None
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
    """Return a file's header and its size in bytes; None when it went to quarantine.

    Raises:
        OSError: the disk does not give it at present.
    """
    try:
        header, size_bytes = load_header_and_size(path)
        return kind.from_bytes(header), size_bytes
    except (CorruptFileError, ContractError, FileNotFoundError) as exc:
        folder.set_aside(path, str(exc), stays=stays)
        return None


def _remove_above(limit: int, survey: _Survey[ItemT], path_of: Callable[[int], Path]) -> None:
    """Remove what was never counted; what cannot be read may carry the newest truth itself, and stays."""
    above = [sequence for sequence in survey.good if sequence > limit and sequence not in survey.unread]
    for sequence in above:
        log.info("removing the leftover of a failed write: %s", path_of(sequence).name)
        del survey.good[sequence]
    _remove([path_of(sequence) for sequence in above])


def _found(sequence: int, header: CaptureSketch, size_bytes: int) -> Found:
    record = header.record
    stake, worth = weigh((outcome.arm for outcome in record.arms if outcome.kept), record.prediction.scores)
    return Found(Held(sequence, size_bytes, stake, worth), record.prediction.prediction_id)


def _guess_capture(sequence: int, path: Path) -> Found:
    try:
        size_bytes = path.stat().st_size
    except OSError:
        size_bytes = 0
    return Found(Held(sequence, size_bytes), f"unread-{sequence}")


def _receipt(_sequence: int, header: FeedbackHeader, _size_bytes: int) -> Receipt:
    return Receipt.of(header.feedback)


def _guess_receipt(sequence: int, _path: Path) -> Receipt:
    return Receipt(feedback_id=f"unread-{sequence}", frame_available=False)
