"""Pictures from the bucket, as a model takes them."""

from __future__ import annotations

from collections.abc import Sequence

from curate.catalog.images import Frames, decode_frames
from curate.catalog.models import DatasetItem, Sample
from flows._blobs import fetch_images
from flows._wiring import Services


def fetch_frames(wired: Services, pictured: Sequence[Sample | DatasetItem]) -> Frames:
    """Fetch and decode the pictures of samples or dataset items, scaled to the size of the fleet's model.

    Raises:
        BlobNotFoundError: an admitted image is gone from the bucket.
        StorageUnavailableError: the bucket cannot be reached.
        CatalogError: an image cannot be decoded.
    """
    encoded = fetch_images(wired, [each.image_key for each in pictured])
    named = zip((each.sample_id for each in pictured), encoded, strict=True)
    return decode_frames(named, wired.settings.labels.height, wired.settings.labels.width)
