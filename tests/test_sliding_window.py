"""Sliding window with oracle predictors: the whole sum's right answer is then known."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from scipy import ndimage

from app.errors import CaseError
from app.plan import SlidingWindowPlan
from app.running_sums import gaussian_importance_map
from app.sliding_window import (
    count_windows,
    stream_logits,
    streaming_axis,
    tile_starts,
)
from app.volume import Float32Array, Shape
from tests.conftest import Oracle

PLAN = SlidingWindowPlan(
    patch_size=(4, 6, 5),
    tile_step_size=0.5,
    gaussian_sigma_scale=0.125,
    average="logits",
    pad_hu=-1024,
    mirror_axes=(0, 1, 2),
)
PAD = -2.0


def identity(tile: Float32Array) -> Float32Array:
    return np.stack([tile, -tile])


def by_position(tile: Float32Array) -> Float32Array:
    """Depends on where in the tile a voxel lies, so that weights and overlaps matter."""
    ramp = np.arange(tile.size, dtype=np.float32).reshape(tile.shape) / tile.size
    return np.stack([tile + ramp, ramp * tile])


def image(shape: Shape) -> Float32Array:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def collect(scan: Float32Array, oracle: Oracle, plan: SlidingWindowPlan = PLAN, mirror: bool = False) -> Float32Array:
    """All slabs put together; checks that they follow each other without gap."""
    result = np.full((2, *scan.shape), np.nan, dtype=np.float32)
    position = 0
    for slab in stream_logits(scan, oracle, 2, plan, PAD, mirror):
        assert slab.start == position
        moved = np.moveaxis(result, slab.axis + 1, 1)
        length = slab.logits.shape[slab.axis + 1]
        moved[:, position : position + length] = np.moveaxis(slab.logits, slab.axis + 1, 1)
        position += length
    assert not np.isnan(result).any()
    return result


def brute_force(scan: Float32Array, oracle: Oracle, plan: SlidingWindowPlan) -> Float32Array:
    """The same sum without streaming, in float64, on a padded copy."""
    missing = [max(0, side - length) for side, length in zip(plan.patch_size, scan.shape, strict=True)]
    widths = [(gap // 2, gap - gap // 2) for gap in missing]
    padded = np.pad(scan, widths, mode="edge") if plan.padding == "edge" else np.pad(scan, widths, constant_values=PAD)
    sums, weights = np.zeros((2, *padded.shape)), np.zeros(padded.shape)
    importance = gaussian_importance_map(plan.patch_size, plan.gaussian_sigma_scale).astype(np.float64)
    starts = [tile_starts(n, p, plan.tile_step_size) for n, p in zip(padded.shape, plan.patch_size, strict=True)]
    for corner in product(*starts):
        place = tuple(slice(c, c + p) for c, p in zip(corner, plan.patch_size, strict=True))
        sums[(slice(None), *place)] += oracle.predict(np.ascontiguousarray(padded[place])) * importance
        weights[place] += importance
    inner = tuple(slice(before, before + n) for (before, _), n in zip(widths, scan.shape, strict=True))
    return (sums / weights)[(slice(None), *inner)].astype(np.float32)


@pytest.mark.parametrize(
    ("length", "patch", "step", "expected"),
    [
        (110, 64, 0.5, [0, 23, 46]),
        (64, 64, 0.7, [0]),
        (50, 64, 0.7, [0]),
        (65, 64, 0.7, [0, 1]),
        (133, 64, 0.7, [0, 34, 69]),  # 69 / 44.8 -> 2 steps of 34.5, rounded to even
        (10, 10, 1.0, [0]),
        (20, 10, 1.0, [0, 10]),
        (5, 1, 0.7, [0, 1, 2, 3, 4]),  # a 2-D network looks at every slice once
    ],
)
def test_tile_starts(length: int, patch: int, step: float, expected: list[int]) -> None:
    assert tile_starts(length, patch, step) == expected


def test_gaussian_map_is_a_gaussian_about_the_middle_voxel() -> None:
    weights = gaussian_importance_map((16, 32, 64), 0.125)
    assert weights.dtype == np.float32
    assert weights[8, 16, 32] == weights.max() == 1
    assert weights[8, 16, 32 + 8] == pytest.approx(np.exp(-0.5), rel=1e-3)  # one sigma of 8 voxels
    assert weights[8, 16 + 8, 32] == pytest.approx(np.exp(-2), rel=1e-3)  # two sigmas of 4 voxels
    assert weights.min() > 0


@pytest.mark.parametrize("patch", [(16, 32, 64), (20, 7, 48), (1, 64, 96)])
def test_the_map_is_nnunets_to_the_bit(patch: Shape) -> None:
    """nnU-Net v1's ``_get_gaussian``: an impulse in three dimensions, blurred and scaled."""
    impulse = np.zeros(patch)
    impulse[tuple(length // 2 for length in patch)] = 1
    blurred = ndimage.gaussian_filter(impulse, [length / 8 for length in patch], 0, mode="constant", cval=0)
    expected = (blurred / np.max(blurred) * 1).astype(np.float32)
    expected[expected == 0] = expected[expected > 0].min()
    assert np.array_equal(gaussian_importance_map(patch, 0.125), expected)


@pytest.mark.parametrize(
    ("shape", "axis"), [((400, 155, 179), 0), ((70, 400, 179), 1), ((70, 155, 900), 2), ((10, 20, 30), 0)]
)
def test_streams_along_the_axis_with_the_smallest_slab(shape: Shape, axis: int) -> None:
    window = replace(PLAN, patch_size=(64, 128, 128))
    assert streaming_axis(shape, window) == axis
    assert streaming_axis(shape, replace(window, sum_order="by_axis")) == 0


SHAPES = [(11, 7, 6), (5, 17, 6), (4, 7, 23), (10, 11, 12), (3, 17, 4), (2, 3, 2), (1, 9, 31), (4, 6, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_comes_back(shape: Shape) -> None:
    scan = image(shape)
    np.testing.assert_allclose(collect(scan, Oracle(identity)), np.stack([scan, -scan]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_constant_and_plus_one(shape: Shape) -> None:
    scan = image(shape)
    constant = Oracle(lambda tile: np.stack([np.full(tile.shape, 7.0), tile + 1]).astype(np.float32))
    found = collect(scan, constant)
    np.testing.assert_allclose(found[0], 7, rtol=1e-5)
    np.testing.assert_allclose(found[1], scan + 1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0.3, 0.5, 0.7, 1.0])
def test_streaming_equals_the_whole_weighted_sum(shape: Shape, step: float) -> None:
    plan = replace(PLAN, tile_step_size=step)
    scan = image(shape)
    expected = brute_force(scan, Oracle(by_position), plan)
    np.testing.assert_allclose(collect(scan, Oracle(by_position), plan), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_surrounds_a_small_scan_is_what_the_plan_says(shape: Shape) -> None:
    """Seen by a network that, as instance normalisation does, takes the mean of all that it is shown."""
    scan, found = image(shape), []
    for padding in ("constant", "edge"):
        plan = replace(PLAN, padding=padding)
        oracle = Oracle(lambda tile: np.stack([tile - tile.mean(), tile]))
        found.append(collect(scan, oracle, plan))
        np.testing.assert_allclose(found[-1], brute_force(scan, oracle, plan), rtol=1e-4, atol=1e-5)
    is_small = any(length < side for length, side in zip(shape, PLAN.patch_size, strict=True))
    constant, edge = found
    assert np.array_equal(constant, edge) is not is_small


@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision_sums_are_handed_out_a_few_planes_at_a_time(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that their float32 copies stay small; the planes are those of a whole slab."""
    plan, scan = replace(PLAN, accumulator="float16"), image(shape)
    whole = collect(scan, Oracle(by_position), plan)
    monkeypatch.setattr("app.running_sums._WIDENED_PLANES", 2)
    assert np.array_equal(collect(scan, Oracle(by_position), plan), whole)
    slabs = stream_logits(scan, Oracle(by_position), 2, plan, PAD)
    assert max(slab.logits.shape[slab.axis + 1] for slab in slabs) <= 2


def test_mirroring_averages_all_flips() -> None:
    scan = image((4, 6, 5))
    oracle = Oracle(by_position)
    found = collect(scan, oracle, mirror=True)
    assert oracle.calls == 8
    flips = [axes for r in range(4) for axes in combinations((0, 1, 2), r)]
    expected = np.mean(
        [np.flip(by_position(np.flip(scan, axes)), tuple(a + 1 for a in axes)) for axes in flips], axis=0
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_no_mirroring_without_mirror_axes() -> None:
    oracle = Oracle(identity)
    collect(image((4, 6, 5)), oracle, replace(PLAN, mirror_axes=()), mirror=True)
    assert oracle.calls == 1


def test_probabilities_are_averaged_where_the_plan_says_so() -> None:
    scan = image((10, 11, 12))
    found = collect(scan, Oracle(identity), replace(PLAN, average="probabilities"))
    np.testing.assert_allclose(found[0], 1 / (1 + np.exp(-2 * scan.astype(np.float64))), rtol=1e-4, atol=1e-6)


def test_two_dimensional_patches_visit_every_slice() -> None:
    plan = replace(PLAN, patch_size=(1, 6, 5), mirror_axes=(1, 2))
    scan = image((7, 11, 12))
    oracle = Oracle(identity)
    np.testing.assert_allclose(collect(scan, oracle, plan)[0], scan, rtol=1e-5, atol=1e-6)
    assert oracle.calls == count_windows((7, 11, 12), plan) == 7 * 3 * 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_network_that_returns_no_numbers_fails_the_case(bad: float) -> None:
    oracle = Oracle(lambda tile: np.full((2, *tile.shape), bad, dtype=np.float32))
    with pytest.raises(CaseError, match="not finite"):
        collect(image((4, 6, 5)), oracle)


def test_a_network_that_returns_another_shape_fails_the_case() -> None:
    oracle = Oracle(lambda tile: np.zeros((3, *tile.shape), dtype=np.float32))
    with pytest.raises(CaseError, match="shape"):
        collect(image((4, 6, 5)), oracle)
