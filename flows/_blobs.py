"""Fetching many blobs at once, and model files by content."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from curate.errors import BlobNotFoundError, TrustError
from curate.storage.ports import BlobStore
from flows._wiring import Services

PARALLEL_FETCHES = 8
MAX_IMAGE_BYTES = 32 * 1024 * 1024

T = TypeVar("T")
R = TypeVar("R")


def work_ahead(work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Yield what `work` makes of each item, in order; threads begin at most `ahead` of them before they are asked for.

    An error is raised where its item's turn comes, and what was not begun is left.
    """
    pool = ThreadPoolExecutor(PARALLEL_FETCHES)
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def fetch_images(wired: Services, keys: Sequence[str]) -> list[bytes]:
    """Fetch admitted images in the order of the keys, each from the bucket at most once while the cache has room.

    Raises:
        BlobNotFoundError: an admitted image is gone from the bucket.
        StorageUnavailableError: the bucket cannot be reached.
    """
    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        return list(pool.map(partial(fetch_image, wired), keys))


def fetch_image(wired: Services, key: str) -> bytes:
    """Fetch one image, as `fetch_images` does."""
    known = wired.images.get(key)
    return fetch_fresh(wired, key) if known is None else known


def fetch_images_if_there(wired: Services, keys: Sequence[str]) -> dict[str, bytes]:
    """Fetch what the bucket holds now; a missing image has no entry."""

    def fetch(key: str) -> bytes | None:
        try:
            return fetch_fresh(wired, key)
        except BlobNotFoundError:
            return None

    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        found = zip(keys, pool.map(fetch, keys), strict=True)
        return {key: data for key, data in found if data is not None}


def fetch_fresh(wired: Services, key: str) -> bytes:
    """Fetch what the bucket holds now, and keep it for later.

    Raises:
        BlobNotFoundError: nothing lies there.
    """
    data = wired.store.get(key, max_bytes=MAX_IMAGE_BYTES)
    wired.images.put(key, data)
    return data


def put_model_file(store: BlobStore, name: str, data: bytes) -> str:
    """Write a model file under a content-addressed key and return the key."""
    key = f"models/{hashlib.sha256(data).hexdigest()}.{name}"
    if store.size(key) != len(data):
        store.put(key, data)
    return key


def fetch_model_file(store: BlobStore, key: str, cache_dir: Path) -> Path:
    """Return a local copy of a model file, fetched once.

    Raises:
        TrustError: the bucket holds other bytes than the key says.
    """
    path = cache_dir / Path(key).name
    digest = path.name.partition(".")[0]
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
        return path
    data = store.get(key)
    if hashlib.sha256(data).hexdigest() != digest:
        raise TrustError(f"{key} does not hold what its name says", hint="restore the bucket or train again")
    cache_dir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
    return path
