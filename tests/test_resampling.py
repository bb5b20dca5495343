"""The matrices against skimage's and scipy's own interpolation."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import resize

from app import resampling
from app.resampling import interpolation_matrix, linear_neighbours, nearest_indices, resample
from app.volume import Float32Array, Shape


def scan(shape: Shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


def test_two_voxels_to_four_by_hand() -> None:
    expected = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    np.testing.assert_allclose(interpolation_matrix(2, 4, 1), expected, atol=1e-7)
    assert nearest_indices(2, 4).tolist() == [0, 0, 1, 1]
    assert nearest_indices(6, 3).tolist() in ([0, 2, 4], [1, 3, 5])


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(7, 20, 9), (23, 11, 31), (12, 11, 12), (1, 5, 40), (30, 4, 5)])
def test_equals_skimage_resize_as_nnunet_uses_it(shape: Shape, order: int) -> None:
    voxels = scan((10, 11, 12))
    expected = resize(voxels.astype(np.float64), shape, order=order, mode="edge", anti_aliasing=False, clip=False)
    np.testing.assert_allclose(resample(voxels, shape, (order,) * 3), expected, rtol=0, atol=5e-3)  # of 3000 HU


@given(st.integers(2, 300), st.integers(1, 300), st.sampled_from([0, 1]))
@settings(max_examples=60, deadline=None)
def test_weights_that_are_written_down_are_scipys_to_the_bit(n_in: int, n_out: int, order: int) -> None:
    zoomed = [ndimage.zoom(line, n_out / n_in, order=order, mode="nearest", grid_mode=True) for line in np.eye(n_in)]
    expected = np.stack(zoomed, axis=1).astype(np.float32)
    assert np.array_equal(interpolation_matrix(n_in, n_out, order), expected)


@pytest.mark.parametrize(("order", "loaded"), [(0, False), (1, False), (3, True)])
def test_scipy_is_loaded_for_splines_alone_and_ahead(order: int, loaded: bool) -> None:
    script = (
        f"import sys; from app.resampling import load_splines; load_splines({order}); "
        "print('scipy.ndimage' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loaded)


def test_a_coarse_grid_picks_the_voxels_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels, seen = scan((40, 44, 48)), []
    picked = resample(voxels, (5, 6, 5), (1, 1, 1), lambda slab: seen.append(slab.shape))
    assert seen == [(10, 12, 10)]
    monkeypatch.setattr(resampling, "PICKED_PART", 1_000_000)
    np.testing.assert_allclose(resample(voxels, (5, 6, 5), (1, 1, 1)), picked, rtol=0, atol=2e-3)


def test_planes_between_those_with_weights_are_not_looked_at() -> None:
    stack = np.random.default_rng(1).normal(size=(40, 6, 7)).astype(np.float32)
    unused = interpolation_matrix(40, 10, 1).any(axis=0) == 0
    assert np.count_nonzero(unused) == 20
    spoilt = np.where(unused[:, None, None], np.float32(np.nan), stack)
    assert np.array_equal(resample(spoilt, (10, 6, 7), (1, 1, 1)), resample(stack, (10, 6, 7), (1, 1, 1)))


@pytest.mark.parametrize("orders", [(0, 3, 3), (1, 0, 3), (3, 1, 0)])
def test_orders_per_axis_equal_one_scipy_zoom_after_another(orders: Shape) -> None:
    voxels, shape = scan((10, 11, 12)), (25, 7, 30)
    expected = voxels.astype(np.float64)
    for axis, order in enumerate(orders):
        factors = [1.0, 1.0, 1.0]
        factors[axis] = shape[axis] / voxels.shape[axis]
        expected = ndimage.zoom(expected, factors, order=order, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resample(voxels, shape, orders), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_slabs_change_nothing(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = scan((10, 11, 12))
    whole = resample(voxels, (17, 8, 19), (order,) * 3)
    monkeypatch.setattr(resampling, "SLAB_BYTES", 4 * 11 * 12 * 3)
    np.testing.assert_allclose(resample(voxels, (17, 8, 19), (order,) * 3), whole, rtol=0, atol=2e-3)


def test_memory_order_and_sign_of_axes_change_nothing() -> None:
    voxels = scan((10, 11, 12))
    straight = resample(voxels, (17, 8, 19), (3, 3, 3))
    turned = np.asfortranarray(voxels)[::-1][::-1]
    assert resample(turned, (17, 8, 19), (3, 3, 3)).tobytes() == straight.tobytes()


def test_scaling_is_applied_before_interpolation() -> None:
    voxels = scan((10, 11, 12))
    expected = resample(voxels.astype(np.float64) * 0.5 - 1000, (17, 8, 19), (1, 1, 1))

    def to_hu(slab: Float32Array) -> None:
        slab *= 0.5
        slab -= 1000

    np.testing.assert_allclose(resample(voxels, (17, 8, 19), (1, 1, 1), to_hu), expected, rtol=0, atol=1e-3)


def test_same_shape_is_the_identity() -> None:
    voxels = scan((10, 11, 12))
    assert np.array_equal(resample(voxels, (10, 11, 12), (3, 3, 3)), voxels)


@settings(max_examples=60, deadline=None)
@given(n_in=st.integers(1, 60), n_out=st.integers(1, 60), order=st.sampled_from([0, 1, 3]))
def test_constants_stay_constant(n_in: int, n_out: int, order: int) -> None:
    np.testing.assert_allclose(interpolation_matrix(n_in, n_out, order).sum(axis=1), 1, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(n_in=st.integers(1, 60), n_out=st.integers(1, 60), order=st.sampled_from([0, 1]))
def test_neighbours_rebuild_the_matrix(n_in: int, n_out: int, order: int) -> None:
    lower, upper, weight = linear_neighbours(n_in, n_out, order)
    rebuilt = np.zeros((n_out, n_in), dtype=np.float32)
    np.add.at(rebuilt, (np.arange(n_out), lower), 1 - weight)
    np.add.at(rebuilt, (np.arange(n_out), upper), weight)
    np.testing.assert_allclose(rebuilt, interpolation_matrix(n_in, n_out, order), atol=1e-6)
    assert np.all(upper - lower <= 1)
    assert np.all(np.diff(upper) >= 0)
