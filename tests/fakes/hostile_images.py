"""Pictures made to hurt whoever decodes them: bombs, polyglots, lies in headers, seeded damage."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.fakes.mutations import damage_bytes

PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with a right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG whose header says whatever it is told to; `extra` chunks come before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")


def encoded(format_name: str, mode: str = "RGB", size: int = 32) -> bytes:
    """A good picture of noise."""
    noise = np.random.default_rng(3).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, format_name)
    return buffer.getvalue()


def jpeg_claiming(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size than its data has."""
    raw = bytearray(encoded("JPEG"))
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(raw)


def zipped(megabytes: int) -> bytes:
    """An archive that unpacks to much more than it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(megabytes * 1024 * 1024))
    return buffer.getvalue()


def monsters() -> Iterator[tuple[str, bytes]]:
    """Yield (what it is, bytes): each made by hand."""
    many_zeros = zlib.compress(bytes(64 * 1024 * 1024), 9)
    good_png, good_jpeg = encoded("PNG"), encoded("JPEG")
    yield "nothing", b""
    yield "a PNG of 2^31 x 2^31", png(2**31 - 1, 2**31 - 1, b"\0" * 64)
    yield "a PNG of 65535 x 65535", png(65535, 65535, b"\0" * 64)
    yield "a PNG of one endless row", png(2**31 - 1, 1, b"\0" * 64)
    yield "a PNG without pixels", png(0, 0, b"")
    yield "a PNG just below the limit whose rows are missing", png(1000, 1000, b"\0")
    yield "a PNG just below the limit, all zeros: a bomb that is allowed", png(1000, 1000, bytes(1000 * 3001))
    yield "a PNG with more pixels than it says", png(8, 8, bytes(32 * 1024 * 1024))
    yield "a PNG of 16 bits", png(8, 8, bytes(8 * 49), depth=16)
    yield "a PNG of an impossible depth", png(8, 8, bytes(200), depth=7)
    yield "a PNG of an impossible colour", png(8, 8, bytes(200), colour=5)
    text = b"Comment\0\0" + many_zeros
    yield "a PNG with a text bomb", png(8, 8, bytes(200), extra=chunk(b"zTXt", text))
    yield "a PNG with many text bombs", png(8, 8, bytes(200), extra=chunk(b"zTXt", text) * 20)
    yield (
        "a PNG with an international text bomb",
        png(8, 8, bytes(200), extra=chunk(b"iTXt", b"Comment\0\1\0\0\0" + many_zeros)),
    )
    yield "a PNG with a colour profile bomb", png(8, 8, bytes(200), extra=chunk(b"iCCP", b"p\0\0" + many_zeros))
    yield "a PNG with a chunk of a negative length", PNG_START + b"\xff\xff\xff\xffIHDR" + bytes(20)
    yield (
        "an animated PNG of 2^31 frames",
        png(8, 8, bytes(200), extra=chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    )
    yield "a PNG with an archive behind it", good_png + zipped(64)
    yield "a JPEG with an archive behind it", good_jpeg + zipped(64)
    yield "a JPEG with a PNG behind it", good_jpeg + good_png
    yield "a JPEG of 65535 x 65535", jpeg_claiming(65535, 65535)
    yield "a JPEG that claims to be larger than its data", jpeg_claiming(999, 999)
    yield "a JPEG of size nought", jpeg_claiming(0, 0)
    yield "a JPEG of nothing but markers", b"\xff\xd8" + b"\xff\xe0\x00\x02" * 50_000
    yield "a JPEG of endless padding", b"\xff\xd8" + b"\xff" * 1_000_000
    yield (
        "a JPEG that says it holds many pictures",
        good_jpeg[:2] + b"\xff\xe2\x00\x10MPF\0MM\0*\0\0\0\x08" + good_jpeg[2:],
    )
    yield "a JPEG with a broken EXIF", good_jpeg[:2] + b"\xff\xe1\x00\x20Exif\0\0MM\0*\xff\xff\xff\xff" + good_jpeg[2:]
    yield "a picture in CMYK", encoded("JPEG", "CMYK")
    yield "a grey picture", encoded("JPEG", "L")
    yield "a picture of a palette", encoded("PNG", "P")
    yield "a picture with holes", encoded("PNG", "RGBA")
    yield "an archive", zipped(1)
    yield "a picture that is text", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "a picture that is a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    for name in ("GIF", "BMP", "TIFF", "WEBP", "ICO", "PDF", "PPM"):
        yield f"a {name}", encoded(name)


def damaged(rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield good pictures with seeded damage, and every kind of cut."""
    good = [encoded("PNG"), encoded("JPEG"), encoded("PNG", "P"), encoded("JPEG", "L"), encoded("JPEG", "CMYK")]
    for number in range(count):
        raw = rng.choice(good)
        if number % 4 == 0:
            yield f"cut {number}", raw[: rng.randrange(len(raw))]
        elif number % 4 == 1 and raw.startswith(PNG_START):
            yield f"resealed {number}", _resealed(raw, rng)
        else:
            yield f"damaged {number}", damage_bytes(raw, rng)


def _resealed(raw: bytes, rng: random.Random) -> bytes:
    """Damage the inside of a PNG's chunks and make their checksums right again, so that a decoder looks inside."""
    rebuilt, at = PNG_START, len(PNG_START)
    while at + 12 <= len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        kind, data = raw[at + 4 : at + 8], bytearray(raw[at + 8 : at + 8 + length])
        if data and rng.random() < 0.5:
            data[rng.randrange(len(data))] = rng.randrange(256)
        rebuilt += chunk(kind, bytes(data))
        at += 12 + length
    return rebuilt
