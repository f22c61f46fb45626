"""A small summary of what was sent already, in the space of one release's embeddings."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from curate.contracts.document import Document
from curate.contracts.embedding import BYTES_PER_VALUE, pack_values, unpack_values, verify_values
from curate.contracts.ids import SafeName

SKETCH_DIM = 128
"""Embeddings are folded to this many values before they are compared; see `curate.answers.folding`."""
MAX_FLEET_CENTRES = 64
"""Of a fleet's sketch: 16 KiB of values, 29 KiB in a signed assignment."""
MAX_CENTRES = 256


class EmbeddingSketch(Document):
    """Centres of folded embeddings, unit length: `count` rows of `SKETCH_DIM` little-endian float16, base64."""

    space: SafeName
    """The release whose embeddings these are; those of another cannot be compared with them."""
    dim: int = Field(ge=1, le=4096)
    """Values of an embedding before it is folded."""
    count: int = Field(ge=0, le=MAX_CENTRES)
    radius: float = Field(default=0.0, ge=0.0, le=1.0)
    """What was sent lay within twice this distance of a centre when it came."""
    data: str = Field(max_length=4 * MAX_CENTRES * SKETCH_DIM * BYTES_PER_VALUE // 3 + 4)

    @classmethod
    def from_raw(cls, raw: bytes, *, space: str, dim: int, radius: float = 0.0) -> Self:
        """Wrap little-endian float16 bytes, `SKETCH_DIM` values a centre."""
        count = len(raw) // (SKETCH_DIM * BYTES_PER_VALUE)
        return cls(space=space, dim=dim, count=count, radius=radius, data=pack_values(raw))

    def raw(self) -> bytes:
        """Return the little-endian float16 bytes."""
        return unpack_values(self.data)

    @model_validator(mode="after")
    def _length_matches(self) -> Self:
        verify_values(self.data, self.count * SKETCH_DIM)
        return self
