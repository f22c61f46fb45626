"""Pictures to arrays and back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from curate.catalog.images import decode_frames, encode_jpeg
from curate.errors import CatalogError
from edge_agent.cameras.base import decode_image


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    """Bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def test_decoding_keeps_pixels_and_order() -> None:
    """A lossless file of the right size comes back pixel for pixel, in the order given."""
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    decoded = decode_frames([(f"s{i}", encoded(image)) for i, image in enumerate(images)], 8, 6)
    assert np.array_equal(decoded.images, images)


def test_decoding_scales_and_colours() -> None:
    """A grey frame of another size becomes a colour frame of the asked size, and says what size it had."""
    decoded = decode_frames([("s", encoded(np.full((20, 30), 77, np.uint8), "JPEG"))], 8, 6)
    assert decoded.images.shape == (1, 8, 6, 3)
    assert decoded.sizes.tolist() == [[20, 30]]
    assert np.abs(decoded.images.astype(int) - 77).max() <= 2


def test_sixteen_bits_of_grey_look_as_on_the_device() -> None:
    """A 16-bit PNG is scaled to eight bits as the agent does it, so that what is learnt is what the device sees."""
    data = encoded(np.array([[0, 257, 32768, 65535]], np.uint16))
    decoded = decode_frames([("s", data)], 1, 4)
    assert decoded.images[0, 0, :, 0].tolist() == [0, 1, 127, 255]
    assert np.array_equal(decoded.images[0], decode_image(data, max_pixels=100))


def test_decoding_nothing_gives_an_empty_stack() -> None:
    """No sample is no error: the empty array has the right shape."""
    assert decode_frames([], 8, 6).images.shape == (0, 8, 6, 3)


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(np.zeros((40, 40, 3), np.uint8), "JPEG")[:200]])
def test_a_bad_image_names_its_sample(data: bytes) -> None:
    """Empty, foreign and truncated bytes raise CatalogError with the sample's id."""
    with pytest.raises(CatalogError, match="sample-17"):
        decode_frames([("sample-17", data)], 8, 8)


def test_encoding_is_repeatable_and_close() -> None:
    """The same pixels give the same bytes, and decoding them gives nearly the same pixels."""
    image = np.full((8, 6, 3), 120, np.uint8)
    assert encode_jpeg(image) == encode_jpeg(image)
    assert np.abs(decode_frames([("s", encode_jpeg(image))], 8, 6).images[0].astype(int) - image).max() <= 2
