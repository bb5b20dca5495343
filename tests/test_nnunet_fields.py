"""What nnU-Net v1 and v2 do differently from each other and from us, field by field, against skimage and PyTorch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.transform import resize

from app.options import Options
from app.pipeline import segment
from app.plan import IntensityPlan, Plan, SlidingWindowPlan
from app.preprocessing import nonzero_box, preprocess
from app.running_sums import gaussian_importance_map
from app.sliding_window import stream_logits, tile_starts
from app.volume import Float32Array, Geometry, Shape, Vector, Volume
from tests.conftest import Oracle, default_plan

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
INTENSITY = IntensityPlan(clip_hu=(-150.0, 250.0), subtract_hu=40.0, divide_hu=90.0)


@pytest.fixture
def plan() -> Plan:
    """nnU-Net v1's preprocessing at 2 mm."""
    plan = default_plan()
    return replace(
        plan,
        orientation="as_stored",
        labels=("low", "high"),
        intensity=INTENSITY,
        spacing=replace(plan.spacing, target_zyx_mm=(2.0, 2.0, 2.0), enforce="off"),
        interpolation=replace(plan.interpolation, image_order=3, separate_z_above=3.0, clip_overshoot=True),
        sliding_window=replace(plan.sliding_window, patch_size=(16, 16, 16)),
        crop_to_nonzero=True,
    )


def scan(shape: Shape, spacing: Vector, low: int = -1000, high: int = 1500) -> Volume:
    """Noise, so that splines overshoot everywhere."""
    voxels = np.random.default_rng(0).integers(low, high, shape).astype(np.int16)
    voxels[voxels == 0] = 1
    return Volume(voxels, Geometry(shape, spacing, IDENTITY, (0.0, 0.0, 0.0)))


def normalised(hu: np.ndarray) -> np.ndarray:
    return np.asarray((np.clip(hu, -150, 250) - 40) / 90)


def zoom(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(resize(array, shape, order=3, mode="edge", anti_aliasing=False))  # clips, as nnU-Net's call


def test_v1_normalises_after_resampling(plan: Plan) -> None:
    volume = scan((12, 14, 10), (3.0, 3.0, 3.0), -100, 200)
    image, _ = preprocess(volume, plan, "off")
    expected = normalised(zoom(volume.voxels.astype(np.float64), (18, 21, 15)))
    np.testing.assert_allclose(image, expected, atol=1e-4)


def test_v2_normalises_before_resampling(plan: Plan) -> None:
    volume = scan((12, 14, 10), (3.0, 3.0, 3.0))
    early = replace(plan, intensity=replace(INTENSITY, normalise="before_resampling"))
    image, _ = preprocess(volume, early, "off")
    expected = zoom(normalised(volume.voxels.astype(np.float64)), (18, 21, 15))
    np.testing.assert_allclose(image, expected, atol=1e-4)
    late, _ = preprocess(volume, plan, "off")
    assert np.abs(image - late).max() > 0.5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_separate_axis_is_clipped_slice_by_slice(plan: Plan, axis: int) -> None:
    """6 slices of 10 mm become 30 of 2 mm, each a copy; in plane 3 mm become 2 mm."""
    shape = tuple(6 if other == axis else 12 for other in range(3))
    spacing = tuple(10.0 if other == axis else 3.0 for other in range(3))
    volume = scan(shape, spacing, -120, 230)  # type: ignore[arg-type]
    slopes = np.linspace(0.2, 1, 6).reshape([-1 if other == axis else 1 for other in range(3)])
    voxels = np.rint(volume.voxels * slopes).astype(np.int16)
    voxels[voxels == 0] = 1
    image, record = preprocess(replace(volume, voxels=voxels), plan, "off")
    slices = [zoom(one.astype(np.float64), (18, 18)) for one in np.moveaxis(voxels, axis, 0)]
    nearest = np.floor((np.arange(30) + 0.5) * 6 / 30).astype(int)
    expected = np.moveaxis(normalised(np.stack(slices)[nearest]), 0, axis)
    np.testing.assert_allclose(image, expected, atol=1e-4)
    assert record.restoration_orders == tuple(0 if other == axis else 1 for other in range(3))


def test_overshoot_stays_without_the_clip(plan: Plan) -> None:
    volume = scan((12, 14, 10), (3.0, 3.0, 3.0), -100, 200)
    wild = replace(plan, interpolation=replace(plan.interpolation, clip_overshoot=False))
    clipped, _ = preprocess(volume, plan, "off")
    image, _ = preprocess(volume, wild, "off")
    assert image.max() > clipped.max() == pytest.approx((199 - 40) / 90, abs=1e-4)


def test_the_box_of_what_is_not_zero(plan: Plan) -> None:
    """A block inside of zeros, a hole in it: the hole stays, the margin goes and comes back as background."""
    volume = scan((20, 21, 22), (2.0, 2.0, 2.0), 60, 200)
    voxels = np.zeros_like(volume.voxels)
    voxels[3:17, 2:20, 5:22] = volume.voxels[3:17, 2:20, 5:22]
    voxels[8:10, 8:10, 8:10] = 0
    padded = replace(volume, voxels=voxels)
    assert nonzero_box(voxels, padded) == (slice(3, 17), slice(2, 20), slice(5, 22))
    above_water = Oracle(lambda tile: np.stack([0 * tile, tile * 90 + 40 - 30, tile * 0 - 1]))
    label_map, record, _ = segment(padded, above_water, plan, Options(mode="normal", spacing="off"))
    assert record.grid.shape_zyx == (14, 18, 17)
    assert np.array_equal(label_map, voxels > 0)


def test_zero_is_zero_hu_and_an_empty_scan_is_kept(plan: Plan) -> None:
    """Stored 1024 with an intercept of -1024 is 0 HU; a scan of nothing else is not cropped to nothing."""
    volume = scan((4, 5, 6), (2.0, 2.0, 2.0))
    stored = np.full((4, 5, 6), 1024, dtype=np.int16)
    shifted = replace(volume, voxels=stored, intercept=-1024.0)
    assert nonzero_box(stored, shifted) == (slice(0, 4), slice(0, 5), slice(0, 6))
    stored[2, 1:3, 4] = 0
    assert nonzero_box(stored, shifted) == (slice(2, 3), slice(1, 3), slice(4, 5))


def test_transposed_axes_come_back(plan: Plan) -> None:
    seen: list[Shape] = []

    def halves(tile: Float32Array) -> Float32Array:
        seen.append(tile.shape)
        return np.stack([0 * tile, tile, 2 * tile - 1])

    volume = scan((9, 20, 14), (2.0, 2.0, 2.0), -100, 200)
    straight, record, _ = segment(volume, Oracle(halves), plan, Options(mode="normal", spacing="off"))
    turned_plan = replace(plan, transpose_forward=(2, 0, 1))
    turned, turned_record, _ = segment(volume, Oracle(halves), turned_plan, Options(mode="normal", spacing="off"))
    assert np.array_equal(straight, turned)
    assert (record.grid.shape_zyx, turned_record.grid.shape_zyx) == ((9, 20, 14), (14, 9, 20))


def test_2d_networks_keep_the_spacing_between_slices(plan: Plan) -> None:
    flat = replace(plan, spacing=replace(plan.spacing, keep_first_axis=True))
    image, record = preprocess(scan((7, 10, 10), (5.0, 4.0, 4.0)), flat, "off")
    assert image.shape == (7, 20, 20)
    assert record.grid.target_zyx_mm == (5.0, 2.0, 2.0)


def test_float16_sums_are_pytorchs(plan: Plan) -> None:
    """nnU-Net v2's arithmetic in PyTorch: half-precision map with peak 10, sums and quotient."""
    patch = (8, 8, 8)
    window = SlidingWindowPlan(patch, 0.5, 0.125, "logits", -1024.0, (), "float16")
    rng = np.random.default_rng(1)
    answers = rng.normal(0, 8, (3 * 3 * 2, 3, *patch)).astype(np.float32)
    calls = iter(answers)
    image = rng.normal(size=(14, 15, 12)).astype(np.float32)
    slabs = stream_logits(image, Oracle(lambda tile: next(calls)), 3, window, 0.0)
    pieces = [(slab.axis, slab.start, slab.logits.copy()) for slab in slabs]
    found = np.concatenate([piece[2] for piece in pieces], axis=pieces[0][0] + 1)
    importance = torch.from_numpy(gaussian_importance_map(patch, 0.125, "float16").copy())
    assert importance.dtype == torch.half
    assert float(importance.max()) == 10
    total, count = torch.zeros((3, *image.shape), dtype=torch.half), torch.zeros(image.shape, dtype=torch.half)
    starts = [tile_starts(length, side, 0.5) for length, side in zip(image.shape, patch, strict=True)]
    order = _corners_in_calling_order(starts, pieces[0][0])
    for corner, answer in zip(order, answers, strict=True):
        place = tuple(slice(first, first + 8) for first in corner)
        prediction = torch.from_numpy(answer.copy())
        prediction *= importance
        total[:, *place] += prediction
        count[place] += importance
    expected = torch.div(total, count).float().numpy()
    assert np.array_equal(found, expected)


def _corners_in_calling_order(starts: list[list[int]], axis: int) -> list[tuple[int, ...]]:
    """Along the streaming axis first, then row by row."""
    corners = [(z, y, x) for z in starts[0] for y in starts[1] for x in starts[2]]
    return sorted(corners, key=lambda corner: corner[axis])
