"""Pictures to arrays and back, refusing bombs before they are decoded."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from curate.errors import CatalogError

Images = NDArray[np.uint8]

MAX_PIXELS = 50_000_000
JPEG_QUALITY = 95
THUMBNAIL_QUALITY = 78


@dataclass(frozen=True, eq=False)
class Frames:
    """Pictures at the size a model takes, with the size they had."""

    images: Images
    """uint8 [N, H, W, 3]."""
    sizes: NDArray[np.int64]
    """Height and width before scaling, [N, 2]."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)


def decode_frames(encoded: Iterable[tuple[str, bytes]], height: int, width: int) -> Frames:
    """Decode `(sample_id, JPEG or PNG bytes)` pairs, scaled to `height` and `width` where the size differs.

    Raises:
        CatalogError: bytes are no readable image; names the sample.
    """
    images: list[Images] = []
    sizes: list[tuple[int, int]] = []
    for name, data in encoded:  # one at a time: full-size pictures of a whole round would not fit
        picture = _decode(name, data)
        images.append(_pixels(picture, (width, height)))
        sizes.append((picture.height, picture.width))
    stacked = np.stack(images) if images else np.zeros((0, height, width, 3), np.uint8)
    return Frames(stacked, np.array(sizes, np.int64).reshape(-1, 2))


def load_image(path: Path) -> Images:
    """Read a picture as uint8 [H, W, 3].

    Raises:
        CatalogError: not a readable picture.
    """
    return np.asarray(_decode(path.name, path.read_bytes()), np.uint8)


def shrink_image(name: str, data: bytes, longest_px: int) -> bytes:
    """Return a small JPEG of a JPEG or PNG, its longer side at most that many pixels.

    Raises:
        CatalogError: the bytes are no readable image.
    """
    picture = _decode(name, data, longest_px)
    picture.thumbnail((longest_px, longest_px))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return buffer.getvalue()


def encode_jpeg(image: Images) -> bytes:
    """Encode uint8 [H, W, 3]; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _decode(name: str, data: bytes, at_least_px: int | None = None) -> Image.Image:
    """Decode, whole or, where the format can, at a fraction of its size that still has so many pixels a side."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise CatalogError(f"{name} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            if at_least_px is not None:
                image.draft(None, (at_least_px, at_least_px))
            # As the agent does: Pillow would clip sixteen bits of grey to white.
            shown = image.point(lambda level: level * (1 / 257)) if image.mode.startswith("I") else image
            return shown.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as exc:
        raise CatalogError(f"{name} is not a readable image: {exc}") from exc


def _pixels(picture: Image.Image, size: tuple[int, int]) -> Images:
    scaled = picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(scaled, np.uint8)
