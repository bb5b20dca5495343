"""Restoration against brute force: all logits interpolated at full size by skimage, then arg max."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import resize

from app.restoration import most_likely_class, restore
from app.running_sums import Slab
from app.volume import Float32Array, Shape

CLASSES = 5


def smooth_logits(shape: Shape, sigma: float, seed: int = 0) -> Float32Array:
    noise = np.random.default_rng(seed).normal(size=(CLASSES, *shape))
    return np.stack([ndimage.gaussian_filter(field, sigma) * sigma**1.5 for field in noise]).astype(np.float32)


def slabs(logits: Float32Array, axis: int, thickness: int) -> Iterator[Slab]:
    """The logits as the sliding window hands them out: each slab overwritten when the next is asked for."""
    moved = np.moveaxis(logits, axis + 1, 1)
    for start in range(0, moved.shape[1], thickness):
        piece = moved[:, start : start + thickness].copy()
        yield Slab(axis=axis, start=start, logits=np.moveaxis(piece, 1, axis + 1))
        piece[:] = np.nan


def interpolated(logits: Float32Array, shape: Shape, orders: Shape) -> np.ndarray:
    """float64 (classes, z, y, x) at full size, axis by axis as the orders ask."""
    found = logits.astype(np.float64)
    for axis, order in enumerate(orders):
        step = list(found.shape[1:])
        step[axis] = shape[axis]
        found = np.stack([resize(c, step, order=order, mode="edge", anti_aliasing=False, clip=False) for c in found])
    return found


def assert_same_where_decided(label_map: np.ndarray, full: np.ndarray) -> None:
    """Equal wherever the two largest logits differ by more than float32 can blur."""
    ordered = np.sort(full, axis=0)
    decided = ordered[-1] - ordered[-2] > 1e-5
    assert decided.mean() > 0.999
    assert np.array_equal(label_map[decided], np.argmax(full, axis=0)[decided])


@pytest.mark.parametrize("sigma", [2.0, 4.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(45, 61, 70), (20, 80, 31), (15, 16, 14), (30, 32, 28), (130, 20, 30)])
def test_normal_equals_brute_force(sigma: float, axis: int, shape: Shape) -> None:
    logits = smooth_logits((30, 32, 28), sigma)
    found = restore(slabs(logits, axis, 7), (30, 32, 28), shape, (1, 1, 1), "normal")
    assert_same_where_decided(found.label_map, interpolated(logits, shape, (1, 1, 1)))
    if shape != (30, 32, 28):  # the identity interpolates nothing
        assert 0.30 <= found.shortcut_share <= 0.95
    assert len(np.unique(found.label_map)) == CLASSES


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("organs", [[], [(0, 0, 0)], [(29, 31, 27)], [(12, 9, 0), (14, 30, 20)]])
def test_what_lies_in_background_is_found(organs: list[Shape], axis: int) -> None:
    shape, logits = (61, 45, 70), np.zeros((CLASSES, 30, 32, 28), dtype=np.float32)
    logits[0] = 0.4
    for place in organs:
        logits[2, *place] = 1.0
    found = restore(slabs(logits, axis, 7), (30, 32, 28), shape, (1, 1, 1), "normal")
    assert_same_where_decided(found.label_map, interpolated(logits, shape, (1, 1, 1)))
    assert np.any(found.label_map) == bool(organs)
    assert found.shortcut_share >= (0.99 if organs else 1.0)


@pytest.mark.parametrize("orders", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_separate_axis_is_nearest_neighbour(orders: Shape, axis: int) -> None:
    logits = smooth_logits((12, 20, 28), 2.0)
    found = restore(slabs(logits, axis, 5), (12, 20, 28), (31, 33, 45), orders, "normal")
    assert_same_where_decided(found.label_map, interpolated(logits, (31, 33, 45), orders))


@pytest.mark.parametrize("along", [0, 2])
def test_half_precision_makes_close_logits_equal(along: int) -> None:
    """Between 1024 and 2048 a half is a whole number. Along x from 2 voxels to 6 the third result lies at 1/3.

    Class 0 is 1025 everywhere; class 1 is 1024 and 1028, at 1/3 1025.33: more than 1025, until it is rounded.
    """
    logits = np.zeros((2, 1, 1, 2), dtype=np.float32)
    logits[0], logits[1, 0, 0] = 1025, (1024, 1028)
    logits = np.moveaxis(logits, 3, along + 1)
    small, large = ((n, 1, 1) if along == 0 else (1, 1, n) for n in (2, 6))
    found = {
        precision: restore(slabs(logits, 0, 1), small, large, (1, 1, 1), "normal", precision).label_map.ravel()
        for precision in ("float32", "float16")
    }
    assert found["float32"].tolist() == [0, 0, 1, 1, 1, 1]
    assert found["float16"].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("thickness", [1, 2, 3, 11, 12])
def test_slab_thickness_changes_nothing(thickness: int) -> None:
    logits = smooth_logits((12, 13, 14), 2.0)
    whole = restore(slabs(logits, 0, 12), (12, 13, 14), (30, 9, 33), (1, 1, 1), "normal").label_map
    cut = restore(slabs(logits, 0, thickness), (12, 13, 14), (30, 9, 33), (1, 1, 1), "normal").label_map
    assert np.array_equal(whole, cut)


def test_ties_go_to_the_first_class_as_numpy_argmax() -> None:
    logits = np.random.default_rng(3).integers(0, 3, (CLASSES, 6, 7, 8)).astype(np.float32)  # full of ties
    found = restore(slabs(logits, 0, 4), (6, 7, 8), (12, 14, 16), (1, 1, 1), "normal").label_map
    weights = [np.zeros((2 * n, n)) for n in (6, 7, 8)]  # doubling: 3/4 of the near and 1/4 of the far voxel, exact
    for matrix in weights:
        n = matrix.shape[1]
        for i in range(2 * n):
            near, far = i // 2, min(max(i // 2 + (1 if i % 2 else -1), 0), n - 1)
            matrix[i, near] += 0.75
            matrix[i, far] += 0.25
    full = np.einsum("cabd,za,yb,xd->czyx", logits, *weights)
    assert np.array_equal(found, np.argmax(full, axis=0))


def test_one_voxel_and_one_plane() -> None:
    logits = smooth_logits((1, 9, 8), 2.0)
    found = restore(slabs(logits, 1, 4), (1, 9, 8), (3, 20, 8), (1, 1, 1), "normal").label_map
    assert_same_where_decided(found, interpolated(logits, (3, 20, 8), (1, 1, 1)))
    single = restore(slabs(logits[:, :, :1, :1], 0, 1), (1, 1, 1), (2, 3, 4), (1, 1, 1), "normal").label_map
    assert np.all(single == np.argmax(logits[:, 0, 0, 0]))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(45, 61, 70), (15, 16, 14), (30, 32, 28)])
def test_fastest_is_arg_max_then_nearest_neighbour(axis: int, shape: Shape) -> None:
    logits = smooth_logits((30, 32, 28), 2.0)
    labels = np.argmax(logits, axis=0).astype(np.float64)
    expected = resize(labels, shape, order=0, mode="edge", anti_aliasing=False)
    found = restore(slabs(logits, axis, 9), (30, 32, 28), shape, (1, 1, 1), "fastest")
    assert np.array_equal(found.label_map, expected)
    assert found.label_map.dtype == np.uint8


def test_most_likely_class_is_numpy_argmax() -> None:
    logits = np.random.default_rng(0).integers(0, 4, (9, 10, 11, 12)).astype(np.float32)
    assert np.array_equal(most_likely_class(logits), np.argmax(logits, axis=0))
