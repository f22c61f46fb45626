"""The spool's durable writes. Each carries the ledger's totals, so a crash loses only what came after it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from edge_agent.durable import DISK_FULL_CODES, place, remove_files, stage
from edge_agent.ledger import Ledger, Totals
from edge_agent.spool.files import SpoolFolder, SpoolState
from edge_agent.spool.index import SpoolIndex

log = logging.getLogger(__name__)


class SpoolJournal:
    """Writes first and changes memory after, so that both say the same at every instant.

    Not thread-safe: the spool calls it under its lock. Whatever the disk refuses is raised as OSError.
    """

    def __init__(
        self, folder: SpoolFolder, index: SpoolIndex, ledger: Ledger, *, revision: int, removing: Sequence[Path] = ()
    ) -> None:
        """Go on from the newest `revision` on the disk, and with the removal of files that are counted as gone."""
        self._folder = folder
        self._index = index
        self._ledger = ledger
        self._prefix = os.path.join(folder.root, "")  # noqa: PTH118 - a path object has no end
        self._revision = revision
        self._removing: tuple[Path, ...] = tuple(removing)
        self._unlinked: set[Path] = set()
        """Those of them that are gone, unless the power goes before their folder is synced."""
        self._persisted: Totals | None = None

    def next_revision(self) -> int:
        """Return the number of the next durable write."""
        self._revision += 1
        return self._revision

    def leaving(self, also: Sequence[Path] = ()) -> list[str]:
        """Return what the next durable write must name: files counted as gone that a crash might bring back."""
        return [os.fspath(path).removeprefix(self._prefix) for path in (*self._removing, *also)]

    def stage_new(self, path: Path, raw: bytes) -> None:
        """Write a new file beside its place, durably; it exists only once `place_new` returns.

        Its header must name what is `leaving` with it and with those staged before it: that makes coming and going one
        commit.
        """
        stage(path, raw)

    def place_new(self, paths: Sequence[Path], *, replaces: Sequence[Path] = ()) -> None:
        """Put staged files of one folder into their places, all or none, and let those that gave way to them go.

        The removals become durable with the next write in their folder.
        """
        try:
            place(paths)
        except OSError:
            # Renamed but perhaps not durable: the caller reports a failure, so no file must turn up later.
            for path in paths:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        if self._unlinked:
            gone = {left for left in self._unlinked if left.parent == paths[0].parent}
            self._removing = tuple(left for left in self._removing if left not in gone)
            self._unlinked -= gone
        self._removing = (*self._removing, *replaces)
        for left in replaces:
            with contextlib.suppress(OSError):  # the next `persist_changes` tries again
                left.unlink(missing_ok=True)
                self._unlinked.add(left)

    def commit(
        self,
        change: Totals,
        *,
        removing: Sequence[Path] = (),
        uploaded_batches: frozenset[str] | None = None,
        uploaded_captures: frozenset[int] | None = None,
    ) -> None:
        """Write the state with the change in it; only then change memory."""
        index = self._index
        batches = index.uploaded_batches if uploaded_batches is None else uploaded_batches
        captures = index.uploaded_captures if uploaded_captures is None else uploaded_captures
        totals = self._ledger.totals().plus(change)
        state = SpoolState(
            revision=self.next_revision(),
            totals=totals,
            removing=self.leaving(removing),
            uploaded_batches=sorted(batches),
            uploaded_captures=sorted(captures),
        )
        self.insist(partial(self._folder.persist_state, state), removing)
        self._ledger.add(change)
        self._persisted = totals
        index.uploaded_batches, index.uploaded_captures = batches, captures
        self._removing = (*self._removing, *removing)

    def insist(self, persist: Callable[[], None], removing: Sequence[Path]) -> None:
        """Write what makes room also on a full disk: files that leave anyway go first, until there is room.

        A crash right here counts captures as evicted and sends feedback once more; so its own files must stay, and
        the newest capture, without which nothing on the disk may know of it.
        """
        newest = self._folder.capture_path(self._ledger.totals().spooled)  # may be the only file that counts itself
        for path in removing:
            if path.parent != self._folder.feedback and path != newest:
                try:
                    return persist()
                except OSError as exc:
                    if exc.errno not in DISK_FULL_CODES:
                        raise
                    path.unlink(missing_ok=True)
        return persist()

    def persist_changes(self) -> None:
        """Finish what is left to remove, and write the totals if they have changed since they were written."""
        if self._removing:
            self.finish_removals()
        if self._ledger.totals() != self._persisted:
            self.commit(Totals())

    def finish_removals(self) -> None:
        """Remove the files that the last state counts as gone; those the disk refuses wait for the next time."""
        try:
            remove_files(self._removing)
        except OSError as exc:
            log.warning("counted files could not be removed yet: %s", exc)
            return
        self._removing = ()
        self._unlinked.clear()
