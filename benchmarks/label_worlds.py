"""Made-up fleets with real pictures: what cameras send, who took it when, and unseen pictures that judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from flows.sandbox.fashion_mnist import load_fashion_mnist

Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]

CLASSES = 10
START = 10
"""Labels, drawn at random, that every method begins with."""
CAMERAS = 4
BLOCK_S = 60.0
"""Frames of one camera within one such block are one group, as in `split.block_s`."""
UNIQUE, SCENES, COPIES = 600, 60, 100
UPLOAD_LABELS, UPLOAD_CHANCE, UPLOAD_DOUBTED = 200, 0.05, 0.15


@dataclass(frozen=True, eq=False)
class World:
    """One seed of a fleet: N captures in random order, of which `start` int64 [10] are labelled, and T test pictures.

    `embeddings` float32 [N, D], `labels` int64 [N]; `devices` and `groups` [N] and `captured_s` float64 [N] say who
    took a capture in which block and when; `random_probability` float64 [N] is NaN where the device sent it because it
    was unsure. No test picture, nor a copy of one, is among the captures.
    """

    embeddings: Matrix
    labels: Rows
    devices: tuple[str, ...]
    groups: tuple[str, ...]
    captured_s: NDArray[np.float64]
    random_probability: NDArray[np.float64]
    test_embeddings: Matrix
    test_labels: Rows
    start: Rows

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Frames:
    """What the cameras saw, before it is embedded: `scene` int64 [N] numbers what is shown, once or many times."""

    images: Matrix
    labels: Rows
    scene: Rows


@dataclass(frozen=True, eq=False)
class Pictures:
    """Distinct pictures float32 [n, side, side] in [0, 1] with their labels, and how to embed such pictures."""

    images: Matrix
    labels: Rows
    embed: Callable[[Matrix], Matrix]

    def frames(self, rows: Rows) -> Frames:
        """Return the given pictures, each seen once."""
        return Frames(self.images[rows], self.labels[rows], np.arange(len(rows)))

    def test(self, rows: Rows) -> tuple[Matrix, Rows]:
        """Return the given pictures' embeddings and labels."""
        return self.embed(self.images[rows]), self.labels[rows]


def plain(pictures: Pictures, pool: int, test: int, rng: np.random.Generator) -> World:
    """Every capture shows something else."""
    rows = rng.permutation(len(pictures.images))[: pool + test]
    return _assemble(pictures, pictures.frames(rows[:pool]), pictures.test(rows[pool:]), rng)


def camera_like(pictures: Pictures, test: int, max_shift: float, rng: np.random.Generator) -> World:
    """Fixed cameras: 600 things seen once, and 60 scenes of 100 frames each that shift by up to `max_shift` pixels."""
    rows = rng.permutation(len(pictures.images))[: UNIQUE + SCENES + test]
    once, often = pictures.frames(rows[:UNIQUE]), pictures.frames(rows[UNIQUE : UNIQUE + SCENES])
    copies = np.repeat(np.arange(SCENES), COPIES)
    frames = Frames(
        np.concatenate([once.images, see_again(often.images[copies], max_shift, rng)]),
        np.concatenate([once.labels, often.labels[copies]]),
        np.concatenate([once.scene, UNIQUE + copies]),
    )
    return _assemble(pictures, frames, pictures.test(rows[UNIQUE + SCENES :]), rng)


def imbalanced(pictures: Pictures, test: int, rng: np.random.Generator) -> World:
    """The commonest class is seen 1,000 times, the rarest 10 times, the others between; the test has all alike."""
    order = rng.permutation(len(pictures.images))
    judged, left = order[:test], order[test:]
    counts = np.geomspace(1000, 10, CLASSES).round().astype(int)
    common = rng.permutation(CLASSES)
    rows = [left[pictures.labels[left] == label][:count] for label, count in zip(common, counts, strict=True)]
    return _assemble(pictures, pictures.frames(np.concatenate(rows)), pictures.test(judged), rng)


def shifted(pictures: Pictures, pool: int, test: int, rng: np.random.Generator) -> World:
    """A quarter of the captures and half of the test were taken at dusk; the labels at the start are from daylight."""
    rows = rng.permutation(len(pictures.images))[: pool + test]
    frames, dark = pictures.frames(rows[:pool]), np.arange(pool) < pool // 4
    frames.images[dark] = dusk(frames.images[dark], rng)
    judged = pictures.images[rows[pool:]]
    judged[: test // 2] = dusk(judged[: test // 2], rng)
    return _assemble(pictures, frames, (pictures.embed(judged), pictures.labels[rows[pool:]]), rng, startable=~dark)


def uploads(pictures: Pictures, seen: int, test: int, rng: np.random.Generator) -> World:
    """What devices send of `seen` frames: one in twenty at random, and the 15 % that a model of 200 labels doubts most.

    The labels at the start are from the random arm; the test is like all frames.
    """
    rows = rng.permutation(len(pictures.images))[: UPLOAD_LABELS + seen + test]
    known, field = rows[:UPLOAD_LABELS], rows[UPLOAD_LABELS : UPLOAD_LABELS + seen]
    model = LogisticRegression(max_iter=500, tol=1e-3).fit(
        pictures.embed(pictures.images[known]), pictures.labels[known]
    )
    best = np.sort(model.predict_proba(pictures.embed(pictures.images[field])), axis=1)
    margin = best[:, -1] - best[:, -2]
    by_chance = rng.random(seen) < UPLOAD_CHANCE
    kept = by_chance | (margin <= np.quantile(margin, UPLOAD_DOUBTED))
    chance = np.where(by_chance, UPLOAD_CHANCE, np.nan)[kept]
    judged = pictures.test(rows[UPLOAD_LABELS + seen :])
    return _assemble(
        pictures, pictures.frames(field[kept]), judged, rng, startable=by_chance[kept], random_probability=chance
    )


def see_again(images: Matrix, max_shift: float, rng: np.random.Generator) -> Matrix:
    """Return the pictures as a fixed camera would see them again: shifted, in slightly other light, with noise."""
    down, right = rng.uniform(-max_shift, max_shift, (2, len(images), 1, 1)).astype(np.float32)
    moved = _slide(_slide(images, down, 1), right, 2)
    gain = rng.uniform(0.9, 1.1, (len(images), 1, 1)).astype(np.float32)
    noise = rng.normal(0, 0.03, images.shape).astype(np.float32)
    return np.clip(gain * moved + noise, 0, 1)


def dusk(images: Matrix, rng: np.random.Generator) -> Matrix:
    """Return the pictures with a quarter of the light and a sensor's noise."""
    noise = rng.normal(0, 0.04, images.shape).astype(np.float32)
    return np.clip(np.float32(0.25) * images + noise, 0, 1)


def _slide(images: Matrix, by: Matrix, axis: int) -> Matrix:
    """Shift each picture by a part of a pixel, between -1 and 1, along an axis; what comes in is black."""
    wide = np.pad(images, [(0, 0), *((1, 1) if axis == side else (0, 0) for side in (1, 2))])
    size = images.shape[axis]
    behind, ahead = wide.take(range(size), axis), wide.take(range(2, size + 2), axis)
    return np.asarray((1 - np.abs(by)) * images + np.maximum(by, 0) * ahead + np.maximum(-by, 0) * behind, np.float32)


def _assemble(
    pictures: Pictures,
    frames: Frames,
    test: tuple[Matrix, Rows],
    rng: np.random.Generator,
    *,
    startable: NDArray[np.bool_] | None = None,
    random_probability: NDArray[np.float64] | None = None,
) -> World:
    """Give every frame its camera and moment, embed it, shuffle, and draw the labels that all begin with."""
    order = rng.permutation(len(frames.labels))
    camera, captured_s = _when_and_where(frames.scene, rng)
    devices = [f"cam-{number}" for number in camera[order].tolist()]
    moments = captured_s[order]
    embeddings = pictures.embed(frames.images)[order]
    scale = np.float32(1 / np.sqrt((embeddings**2).mean()))
    may_start = np.flatnonzero(np.ones(len(order), np.bool_) if startable is None else startable[order])
    labels = frames.labels[order]
    return World(
        embeddings=embeddings * scale,
        labels=labels,
        devices=tuple(devices),
        groups=tuple(f"{d}/{block}" for d, block in zip(devices, (moments // BLOCK_S).tolist(), strict=True)),
        captured_s=moments,
        random_probability=np.ones(len(order)) if random_probability is None else random_probability[order],
        test_embeddings=test[0] * scale,
        test_labels=test[1],
        start=_draw_start(labels, may_start, rng),
    )


def _draw_start(labels: Rows, allowed: Rows, rng: np.random.Generator) -> Rows:
    """Draw until there are two classes: no learner can start with one."""
    while True:
        rows = rng.choice(allowed, START, replace=False)
        if len(np.unique(labels[rows])) > 1:
            return rows


def _when_and_where(scene: Rows, rng: np.random.Generator) -> tuple[Rows, NDArray[np.float64]]:
    """Each scene begins within its own two minutes of one camera, at two frames a second."""
    count = int(scene.max()) + 1
    turn = rng.permutation(count)
    begins = (turn // CAMERAS) * 2 * BLOCK_S + rng.uniform(0, BLOCK_S, count)
    first = np.unique(scene, return_index=True)[1]
    frame = np.arange(len(scene)) - first[scene]
    return (turn % CAMERAS)[scene], begins[scene] + 0.5 * frame


@cache
def digits() -> Pictures:
    """scikit-learn's 1,797 digits; 32 principal components of all of them, which needs no labels."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images / 16).astype(np.float32)
    components = PCA(32, random_state=0).fit(pixels)
    return Pictures(
        pixels.reshape(-1, 8, 8),
        labels.astype(np.int64),
        lambda seen: components.transform(seen.reshape(len(seen), -1)).astype(np.float32),
    )


@cache
def fashion(cache_dir: Path) -> Pictures:
    """The first 20,000 training pictures of Fashion-MNIST, embedded without labels: a layer of 64 random patches of
    other pictures as filters, rectified, added up in nine regions, and 64 principal components of that.
    """
    data = load_fashion_mnist(cache_dir)
    images, others = unit_range(data.train_images[:20_000]), unit_range(data.train_images[20_000:25_000])
    rng = np.random.default_rng(0)
    drawn = _patches(others[:1000])
    filters = drawn[rng.choice(np.flatnonzero(np.abs(drawn).sum(axis=1) > 1), 64, replace=False)].T
    components = PCA(64, random_state=0).fit(_respond(others, filters))
    return Pictures(
        images,
        data.train_labels[:20_000].astype(np.int64),
        lambda seen: components.transform(_respond(seen, filters)).astype(np.float32),
    )


def unit_range(images: NDArray[np.uint8]) -> Matrix:
    """Return bytes as numbers from 0 to 1."""
    return np.asarray(images, np.float32) / np.float32(255)


def _respond(images: Matrix, filters: Matrix) -> Matrix:
    """Return the filters' rectified responses in nine regions, float32 [n, 9 * filters]."""
    found = []
    for start in range(0, len(images), 500):
        block = images[start : start + 500]
        heard = np.maximum(_patches(block) @ filters - np.float32(0.5), 0)
        regions = heard.reshape(len(block), 3, 4, 3, 4, -1).mean(axis=(2, 4))
        found.append(regions.reshape(len(block), -1))
    return np.concatenate(found)


def _patches(images: Matrix) -> Matrix:
    """Return the 12 x 12 patches of 6 x 6 pixels of each picture without their mean, about of length 1 where there is
    contrast.
    """
    views: Matrix = np.lib.stride_tricks.sliding_window_view(images, (6, 6), axis=(1, 2))  # type: ignore[call-overload]
    windows = views[:, ::2, ::2]
    rows = windows.reshape(-1, 36) - windows.reshape(-1, 36).mean(axis=1, keepdims=True)
    return np.asarray(rows / np.sqrt((rows**2).sum(axis=1, keepdims=True) + np.float32(0.1)), np.float32)


Builder = Callable[[Path, np.random.Generator], World]
WORLDS: dict[str, Builder] = {
    "digits": lambda _, rng: plain(digits(), 1000, 797, rng),
    "digits, camera-like": lambda _, rng: camera_like(digits(), 1137, 0.25, rng),
    "fashion": lambda folder, rng: plain(fashion(folder), 3000, 2000, rng),
    "fashion, camera-like": lambda folder, rng: camera_like(fashion(folder), 2000, 0.5, rng),
    "fashion, 100:1": lambda folder, rng: imbalanced(fashion(folder), 2000, rng),
    "fashion, dusk": lambda folder, rng: shifted(fashion(folder), 3000, 2000, rng),
    "fashion, uploads": lambda folder, rng: uploads(fashion(folder), 12_000, 2000, rng),
}


def make_world(name: str, seed: int, cache_dir: Path) -> World:
    """Build one seed of a world; the same for every method."""
    return WORLDS[name](cache_dir, np.random.default_rng([*name.encode(), seed]))
