"""From stored voxels to the network's input."""

from dataclasses import replace

import numpy as np
import pytest

from app.plan import InterpolationPlan, Plan
from app.preprocessing import interpolation_orders, preprocess
from app.spacing import NetworkGrid
from app.volume import Geometry, Matrix, Shape, Vector, Volume
from tests.conftest import default_plan

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
UPSIDE_DOWN: Matrix = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -1.0))


@pytest.fixture
def plan() -> Plan:
    plan = default_plan()
    return replace(plan, spacing=replace(plan.spacing, target_zyx_mm=(2.0, 2.0, 2.0)))


def volume(voxels: np.ndarray, spacing: Vector = (2.0, 2.0, 2.0), direction: Matrix = IDENTITY) -> Volume:
    depth, height, width = voxels.shape
    return Volume(voxels, Geometry((depth, height, width), spacing, direction, (0.0, 0.0, 0.0)))


def test_clip_subtract_divide(plan: Plan) -> None:
    voxels = np.array([-1024, -200, 0, 50, 160, 300, 3071], dtype=np.int16).reshape(1, 1, 7)
    image, _ = preprocess(volume(voxels), plan, "off")
    expected = [-2.2727273, -2.2727273, -0.4545455, 0, 1, 2.2727273, 2.2727273]
    np.testing.assert_allclose(image[0, 0], expected, rtol=1e-6)
    assert image.dtype == np.float32
    assert plan.intensity.normalised(-1024) == pytest.approx(-2.2727273)


def test_lps_turns_the_scan_and_remembers_how(plan: Plan) -> None:
    voxels = np.random.default_rng(0).integers(-200, 300, (3, 4, 5)).astype(np.int16)
    straight, _ = preprocess(volume(voxels), plan, "off")
    turned, record = preprocess(volume(voxels[::-1, :, ::-1], direction=UPSIDE_DOWN), plan, "off")
    assert turned.tobytes() == straight.tobytes()
    assert np.array_equal(record.axis_map.undo(voxels), voxels[::-1, :, ::-1])


def test_as_stored_turns_nothing(plan: Plan) -> None:
    voxels = np.random.default_rng(0).integers(-200, 300, (3, 4, 5)).astype(np.int16)
    scan = volume(voxels, direction=UPSIDE_DOWN)
    image, record = preprocess(scan, replace(plan, orientation="as_stored"), "off")
    assert record.oriented == scan.geometry
    np.testing.assert_allclose(image * 110 + 50, voxels, atol=1e-3)


def test_spline_overshoot_is_clipped(plan: Plan) -> None:
    voxels = np.full((1, 1, 20), -200, dtype=np.int16)
    voxels[..., 10:] = 300
    cubic = replace(plan, interpolation=InterpolationPlan(image_order=3))
    image, _ = preprocess(volume(voxels, spacing=(2.0, 2.0, 3.0)), cubic, "off")
    assert image.max() == pytest.approx(250 / 110)
    assert image.min() == pytest.approx(-250 / 110)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ((5.0, 0.8, 0.8), (2.0, 2.0, 2.0), (0, 3, 3)),  # the scan decides first
        ((2.0, 0.8, 0.8), (5.0, 1.0, 1.0), (0, 3, 3)),  # then the target
        ((2.4, 0.8, 0.8), (2.0, 2.0, 2.0), (3, 3, 3)),  # three times is not more than three times
        ((0.8, 0.8, 5.0), (2.0, 2.0, 2.0), (3, 3, 0)),
        ((5.0, 5.0, 0.8), (2.0, 2.0, 2.0), (3, 3, 3)),  # two coarse axes: none is separate
    ],
)
def test_separate_z(source: Vector, target: Vector, expected: Shape) -> None:
    grid = NetworkGrid(source_zyx_mm=source, target_zyx_mm=target, shape_zyx=(1, 1, 1))
    assert interpolation_orders(grid, InterpolationPlan(image_order=3, separate_z_above=3.0), 3) == expected
    assert interpolation_orders(grid, InterpolationPlan(image_order=3), 3) == (3, 3, 3)
