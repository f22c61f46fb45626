"""Folds an embedding to few values that keep its distances: what a sketch of thousands of frames can afford.

Feature hashing with signs (Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning",
arXiv:0902.2206, section 2): value i goes with a fixed sign to place i modulo `SKETCH_DIM`. It is linear and keeps
squared distances in expectation over the signs, with a relative standard deviation of at most sqrt(2 / SKETCH_DIM), an
eighth. What many embeddings have in common is off by one common factor, which ranks nothing anew. An
embedding of no more values keeps its distances exactly.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Final

import numpy as np

from curate.answers.base import Floats
from curate.contracts.sketch import SKETCH_DIM

_SIGN_SEED: Final = b"gleaner embedding sketch 1"


def fold_embedding(embedding: Floats) -> Floats:
    """Return the folded embedding, float32 [SKETCH_DIM] of unit length, of one [D]; zeros of one without length.

    The same on every machine and in every version: a fleet's sketch and a device's can be compared.
    """
    folded = fold(embedding)
    length = math.sqrt(np.vecdot(folded, folded))
    return folded / length if 0.0 < length < math.inf else np.zeros(SKETCH_DIM, np.float32)


def fold(embedding: Floats) -> Floats:
    """Return the folded embedding, float32 [SKETCH_DIM], not scaled to unit length."""
    dim = embedding.shape[0]
    signs = _signs(dim)
    if dim < signs.size:
        embedding = np.concatenate((embedding, np.zeros(signs.size - dim, np.float32)))
    folded: Floats = np.vecdot(embedding.reshape(-1, SKETCH_DIM).T, signs)  # a row of the transposed is one place
    return folded


def fold_rows(embeddings: Floats) -> Floats:
    """Return the folded embeddings, float32 [N, SKETCH_DIM] of unit length, of [N, D]; those without a
    length are left out."""
    count, dim = embeddings.shape
    signs = _signs(dim)
    padded = np.zeros((count, signs.size), np.float32)
    padded[:, :dim] = embeddings
    folded = np.vecdot(padded.reshape(count, -1, SKETCH_DIM).transpose(0, 2, 1), signs)
    lengths = np.sqrt(np.vecdot(folded, folded))
    usable = (lengths > 0.0) & np.isfinite(lengths)
    return np.asarray(folded[usable] / lengths[usable, None], np.float32)


@lru_cache(maxsize=4)
def _signs(dim: int) -> Floats:
    """Return +1 and -1, [SKETCH_DIM, folds], for `dim` values: the bits of SHAKE-256, no generator's."""
    whole = -(-dim // SKETCH_DIM) * SKETCH_DIM
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(_SIGN_SEED).digest(whole // 8), np.uint8))
    signs = (bits.astype(np.float32) * 2.0 - 1.0).astype(np.float32)
    return np.ascontiguousarray(signs.reshape(-1, SKETCH_DIM).T)
