"""Pictures to arrays and back, refusing bombs before they are decoded."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from curate.errors import CatalogError

Images = NDArray[np.uint8]

MAX_PIXELS = 50_000_000
JPEG_QUALITY = 95


def decode_images(encoded: Iterable[tuple[str, bytes]], height: int, width: int) -> Images:
    """Decode `(sample_id, JPEG or PNG bytes)` pairs to uint8 [N, height, width, 3], scaled where the size differs.

    Raises:
        CatalogError: bytes are no readable image; names the sample.
    """
    frames = [_decode(name, data, (width, height)) for name, data in encoded]
    return np.stack(frames) if frames else np.zeros((0, height, width, 3), np.uint8)


def load_image(path: Path) -> Images:
    """Read a picture as uint8 [H, W, 3].

    Raises:
        CatalogError: not a readable picture.
    """
    return _decode(path.name, path.read_bytes(), None)


def encode_jpeg(image: Images) -> bytes:
    """Encode uint8 [H, W, 3]; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _decode(name: str, data: bytes, size: tuple[int, int] | None) -> Images:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise CatalogError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            picture = image.convert("RGB")
            if size is not None and picture.size != size:
                picture = picture.resize(size, Image.Resampling.BILINEAR)
            return np.asarray(picture, np.uint8)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as exc:
        raise CatalogError(f"{name} is not a readable image: {exc}") from exc
