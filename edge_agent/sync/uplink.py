"""Every put of this device goes through here: it is charged to the budget, and counted when it was accepted."""

from __future__ import annotations

from collections.abc import Callable

from curate.contracts.device_settings import BandwidthSpec
from curate.storage.ports import BlobStore
from edge_agent.sync.bandwidth import allows, fill
from edge_agent.token_bucket import TokenBucket


class Uplink:
    """Owned by the sync thread. The specification is asked each time, so a change needs no restart."""

    def __init__(
        self, store: BlobStore, bandwidth: Callable[[], BandwidthSpec], monotonic: Callable[[], float]
    ) -> None:
        """The budget starts empty: a process that dies again and again is not given a burst each time."""
        self._store = store
        self._bandwidth = bandwidth
        self._monotonic = monotonic
        self._bucket = TokenBucket(monotonic())
        self.accepted = 0
        """Puts that the bucket took since this process started."""

    def has_budget(self, size_bytes: int) -> bool:
        """Return whether so much may be sent now."""
        spec = self._bandwidth()
        self._bucket = fill(self._bucket, spec, self._monotonic())
        return allows(self._bucket, spec, size_bytes)

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Send a blob; the budget pays for the attempt. Whether there is any left is the caller's business.

        Raises:
            StorageError: as the store says.
        """
        self._bucket = fill(self._bucket, self._bandwidth(), self._monotonic()).charged(len(data))
        self._store.put(key, data, content_type=content_type)
        self.accepted += 1
