"""Enforced spacing against tables worked out by hand."""

import pytest

from app.plan import SliceCountRule, SpacingPlan
from app.spacing import bounded_spacing, header_spacing, network_grid

PAPER = SliceCountRule(in_plane_mm=0.75, slice_mm=0.5, few_slices=150, many_slices=600, smallest_factor=0.8)
PLAN = SpacingPlan(target_zyx_mm=(2.5, 2.0, 2.0), enforce="resample", largest_grid_zyx=(400, 320, 320), header=PAPER)


@pytest.mark.parametrize(
    ("slices", "expected_mm"),
    [
        (1, 5.0),
        (149, 5.0),
        (150, 0.5),
        (600, 0.5),
        (601, 0.49916805),
        (700, 0.42857143),
        (750, 0.4),
        (751, 0.4),
        (1500, 0.4),
    ],
)
def test_header_override_follows_the_slice_count(slices: int, expected_mm: float) -> None:
    z, y, x = header_spacing(slices, (5.0, 0.9, 0.8), 0, PAPER)
    assert z == pytest.approx(expected_mm, rel=1e-6)
    assert (y, x) == (0.75, 0.75)


@pytest.mark.parametrize(
    ("slices", "grid_z"),
    [(149, 298), (150, 30), (600, 120), (601, 120), (700, 120), (750, 120), (751, 120), (1500, 240)],
)
def test_header_override_bounds_the_grid_between_150_and_750_slices(slices: int, grid_z: int) -> None:
    grid = network_grid((slices, 512, 512), (5.0, 0.9, 0.8), 0, PLAN, "header")
    assert grid.shape_zyx == (grid_z, 192, 192)
    assert grid.target_zyx_mm == (2.5, 2.0, 2.0)


def test_header_override_counts_slices_along_the_cranio_caudal_axis() -> None:
    found = header_spacing(700, (0.8, 1.0, 0.8), 1, PAPER)
    assert found == pytest.approx((0.75, 0.42857143, 0.75))


@pytest.mark.parametrize("slices", [149, 150, 600, 601, 750, 751, 1500])
@pytest.mark.parametrize("spacing_mm", [0.4, 0.5, 0.8, 1.0, 1.25, 2.5, 3.0, 5.0, 7.5])
def test_resample_bounds_the_grid_and_keeps_ordinary_scans(slices: int, spacing_mm: float) -> None:
    grid = network_grid((slices, 512, 512), (spacing_mm, 0.8, 0.8), 0, PLAN, "resample")
    extent_mm = slices * spacing_mm
    if extent_mm <= 1000:  # 400 voxels of 2.5 mm
        assert grid == network_grid((slices, 512, 512), (spacing_mm, 0.8, 0.8), 0, PLAN, "off")
        assert grid.target_zyx_mm == (2.5, 2.0, 2.0)
    else:
        assert grid.shape_zyx[0] == 400
        assert grid.target_zyx_mm[0] == pytest.approx(extent_mm / 400)
    assert grid.shape_zyx[1:] == (205, 205)  # 409.6 mm at 2 mm
    assert grid.source_zyx_mm == (spacing_mm, 0.8, 0.8)


def test_resample_bounds_each_axis_by_itself() -> None:
    assert bounded_spacing((621, 512, 512), (2.0, 1.5, 0.5), PLAN) == (3.105, 2.4, 2.0)


def test_a_single_slice_keeps_one_voxel() -> None:
    assert network_grid((1, 10, 10), (0.5, 0.8, 0.8), 0, PLAN, "off").shape_zyx == (1, 4, 4)
