"""Augmentation against scipy, hand-worked numbers and phantoms whose image is made from their label map."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from app.plan import Plan
from app.volume import Float32Array, LabelArray, Shape
from tools.train import ct_effects
from tools.train.augmentation import NNUNET_2D, NNUNET_3D, SMALL_DATA, WITHOUT, AugmentationPlan
from tools.train.presets import make_plan
from tools.train.spatial import ReadBox, box_margin
from tools.train.transforms import Augmenter

PATCH = (16, 24, 28)
LOW, HIGH, PER_HU = -250 / 110, 250 / 110, 1 / 110  # compact-3d: clip [-200, 300], subtract 50, divide by 110


def app_plan(mirror_axes: tuple[Any, ...] = (), padding: Literal["constant", "edge"] = "constant") -> Plan:
    plan = make_plan("compact-3d").app
    return replace(plan, sliding_window=replace(plan.sliding_window, mirror_axes=mirror_axes, padding=padding))


def reader(image: npt.NDArray[Any], label: npt.NDArray[Any] | None, air: float = LOW) -> ReadBox:
    """Boxes of a scan in memory, padded by NumPy."""

    def read(start: Shape, shape: Shape) -> tuple[Float32Array, LabelArray | None]:
        def box(values: npt.NDArray[Any], outside: float) -> npt.NDArray[Any]:
            around = [(max(0, -s), max(0, s + n - m)) for s, n, m in zip(start, shape, values.shape, strict=True)]
            padded = np.pad(values, around, constant_values=outside)
            first = [s + before for s, (before, _) in zip(start, around, strict=True)]
            return padded[tuple(slice(f, f + n) for f, n in zip(first, shape, strict=True))].copy()

        return box(image, air).astype(np.float32), None if label is None else box(label, 0).astype(np.uint8)

    return read


def two_kidneys() -> tuple[Float32Array, LabelArray]:
    """Air around a body at 50 HU; right kidney (2) at small x, left kidney (13) at large x, 100 and 150 HU."""
    label = np.zeros((40, 48, 56), dtype=np.uint8)
    label[10:30, 14:34, 10:22] = 2
    label[12:28, 16:36, 34:46] = 13
    image = np.full(label.shape, LOW, dtype=np.float32)
    image[4:36, 4:44, 4:52] = 0.0
    image[label == 2] = 50 / 110
    image[label == 13] = 100 / 110
    return image, label


def augment(plan: AugmentationPlan, seed: int, **changes: Any) -> tuple[Float32Array, LabelArray | None]:
    image, label = two_kidneys()
    app = app_plan(changes.get("mirror_axes", ()), changes.get("padding", "constant"))
    augmenter = Augmenter(plan, app, changes.get("patch_size", (40, 48, 56)))
    read = reader(image, label if changes.get("labelled", True) else None)
    start = changes.get("start", (0, 0, 0))
    result, moved = augmenter(read, start, changes.get("spacing_mm", 2.5), np.random.default_rng(seed))
    return result.numpy(), None if moved is None else moved.numpy()


def test_without_augmentation_the_patch_is_the_scan() -> None:
    image, label = two_kidneys()
    found, moved = augment(WITHOUT, 0, start=(5, -3, 11), patch_size=PATCH)
    expected, expected_label = reader(image, label)((5, -3, 11), PATCH)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(moved, expected_label)


@pytest.mark.parametrize("plan", [NNUNET_3D, SMALL_DATA], ids=["nnunet", "small data"])
def test_same_generator_same_patch_and_global_generators_untouched(plan: AugmentationPlan) -> None:
    np.random.seed(3)  # noqa: NPY002 - the library's generator is what is tested
    torch.manual_seed(3)
    patches = [augment(plan, seed, mirror_axes=(0, 1, 2)) for seed in (5, 6, 5)]
    np.testing.assert_array_equal(patches[0][0], patches[2][0])
    np.testing.assert_array_equal(patches[0][1], patches[2][1])
    assert not np.array_equal(patches[0][0], patches[1][0])
    after = np.random.random(), torch.rand(1).item()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    assert after == (np.random.random(), torch.rand(1).item())  # noqa: NPY002


def test_left_stays_left_unless_x_is_mirrored() -> None:
    for seed in range(8):
        moved = augment(SMALL_DATA, seed, mirror_axes=(0, 1))[1]
        assert moved is not None
        right, left = (np.argwhere(moved == organ) for organ in (2, 13))
        if len(right) and len(left):
            assert right[:, 2].mean() < left[:, 2].mean()


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), (0, 1, 2)])
def test_mirroring_is_along_the_allowed_axes_only(axes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(8, 10, 12)).astype(np.float32), rng.integers(0, 14, (8, 10, 12))
    augmenter = Augmenter(WITHOUT, app_plan(axes), (8, 10, 12))
    flips = [tuple(a for a, chosen in zip(axes, np.binary_repr(n, len(axes)), strict=False) if chosen == "1")
             for n in range(2 ** len(axes))] if axes else [()]  # fmt: skip
    seen = set()
    for seed in range(40):
        found, moved = augmenter(reader(image, label), (0, 0, 0), 2.5, np.random.default_rng(seed))
        assert moved is not None
        matches = [flip for flip in flips if np.array_equal(found.numpy(), np.flip(image, flip))]
        assert len(matches) == 1
        np.testing.assert_array_equal(moved.numpy(), np.flip(label, matches[0]))
        seen.add(matches[0])
    assert seen == set(flips)


SPATIAL = replace(
    WITHOUT, rotation_probability=1, scaling_probability=1, scaling_per_axis_probability=0.5, elastic_probability=0.3
)


@pytest.mark.parametrize("seed", range(4))
def test_image_and_label_move_together(seed: int) -> None:
    """An image that *is* the label: away from edges (where linear and nearest differ) they stay equal."""
    _, label = two_kidneys()
    augmenter = Augmenter(SPATIAL, app_plan((0, 1, 2)), (40, 48, 56))
    read = reader(label.astype(np.float32), label, air=0)
    found, moved = augmenter(read, (0, 0, 0), 2.5, np.random.default_rng(seed))
    assert moved is not None
    inside = ndimage.maximum_filter(moved.numpy(), 5) == ndimage.minimum_filter(moved.numpy(), 5)
    assert inside.mean() > 0.5
    assert len(np.unique(moved)) == 3
    np.testing.assert_allclose(found.numpy()[inside], moved.numpy()[inside], atol=1e-4)
    # At an edge they are one voxel apart at most: rounding the image at half height gives the label.
    right = (found.numpy() >= 1) & (found.numpy() < 3)
    assert 2 * np.count_nonzero(right & (moved.numpy() == 2)) > 1.6 * np.count_nonzero(moved == 2)


def test_spatial_transform_is_that_of_scipy() -> None:
    """Scaling by 1.4 alone: the same voxels as scipy.ndimage.affine_transform about the same centre, read from a box
    larger than the patch."""
    rng = np.random.default_rng(1)
    image = ndimage.gaussian_filter(rng.normal(size=(60, 70, 80)), 2).astype(np.float32)
    plan = replace(WITHOUT, scaling_probability=1, scaling=(1.4, 1.4))
    boxes = []

    def read(start: Shape, shape: Shape) -> tuple[Float32Array, LabelArray | None]:
        boxes.append((start, shape))
        return reader(image, None)(start, shape)

    found, moved = Augmenter(plan, app_plan(), PATCH)(read, (20, 21, 22), 2.5, np.random.default_rng(0))
    assert moved is None
    centre = np.array([20, 21, 22]) + (np.array(PATCH) - 1) / 2
    offset = centre - 1.4 * (np.array(PATCH) - 1) / 2
    expected = ndimage.affine_transform(image, np.full(3, 1.4), offset, output_shape=PATCH, order=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    # 7.5 * 1.4 = 10.5 from the centre along z is 3 voxels more than the patch's 7.5; along y and x 4.6 and 5.4.
    assert boxes == [((17, 16, 16), (22, 34, 40))]


@given(
    st.lists(st.floats(0.5, 2.0), min_size=3, max_size=3),
    st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_box_holds_all_corners_and_no_more(scales: list[float], angles: list[float]) -> None:
    z, y, x = (np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles)
    about_z, about_y, about_x = np.eye(3), np.eye(3), np.eye(3)
    about_z[1:, 1:], about_x[:2, :2] = z, x
    about_y[np.ix_([0, 2], [0, 2])] = y
    affine = about_z @ about_y @ about_x @ np.diag(scales)
    sides = np.array(PATCH)
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1)
    looked_at = np.abs(affine @ (signs * (sides[:, None] - 1) / 2)).max(axis=1)
    reach = (sides - 1) / 2 + np.array(box_margin(affine, None, PATCH))
    assert np.all(reach >= looked_at - 1e-5)
    assert np.all(reach < looked_at + 1 + 1e-5)


def test_organ_shift_touches_only_its_organ_and_one_voxel_around() -> None:
    image, label = two_kidneys()
    shifts = np.zeros(14)
    shifts[13] = 40 * PER_HU
    shifted = ct_effects.shift_organs(torch.tensor(image), torch.tensor(label), shifts, LOW, PER_HU).numpy()
    change = (shifted - image) / PER_HU
    organ = label == 13
    core = ndimage.binary_erosion(organ, np.ones((3, 3, 3)))
    around = ndimage.binary_dilation(organ, np.ones((3, 3, 3)))
    np.testing.assert_allclose(change[core], 40, atol=1e-3)
    assert np.abs(change[~around]).max() == 0
    # A face: 40 * 3/4 inside, 40 * 1/4 outside, and nothing else.
    np.testing.assert_allclose(change[20, 26, 44:48], [40, 30, 10, 0], atol=1e-3)


def test_gas_in_an_organ_stays_gas() -> None:
    image, label = two_kidneys()
    image[18:22, 22:26, 38:42] = LOW
    shifts = np.full(14, 200 * PER_HU)
    shifted = ct_effects.shift_organs(torch.tensor(image), torch.tensor(label), shifts, LOW, PER_HU).numpy()
    np.testing.assert_array_equal(shifted[18:22, 22:26, 38:42], np.float32(LOW))


def test_contrast_curves() -> None:
    organs = ("liver", "right kidney", "stomach", "aorta", "postcava")
    np.testing.assert_allclose(ct_effects.phase_hu(organs, 0), [58, 32, np.nan, 42, 42])
    np.testing.assert_allclose(ct_effects.phase_hu(organs, 1.5), [89, 170, np.nan, 227.5, 112.5])


def test_contrast_phase_brings_organs_to_the_curve() -> None:
    """Both kidneys follow one curve (32 to 190 HU, give or take 4 standard deviations of 10 HU); the body stays."""
    plan = replace(WITHOUT, contrast_phase_probability=1)
    image, _ = two_kidneys()
    for seed in range(5):
        found, moved = augment(plan, seed)
        assert moved is not None
        right, left = (np.median(found[moved == organ]) * 110 + 50 for organ in (2, 13))
        assert 32 - 50 < right < 190 + 50
        assert abs(right - left) < 80
        body = (image == 0) & ~ndimage.binary_dilation(moved > 0, np.ones((3, 3, 3)))
        np.testing.assert_array_equal(found[body], image[body])


def test_gas_and_fat_do_not_count_in_an_organs_mean() -> None:
    image = torch.tensor([[[40.0, -200, 50, -100]], [[60, -200, -200, -200]]])
    label = torch.tensor([[[1, 1, 1, 1]], [[2, 2, 3, 0]]], dtype=torch.uint8)
    np.testing.assert_array_equal(ct_effects.tissue_means(image, label, 5, -30)[1:], [45, 60, np.nan, np.nan])


def test_contrast_brings_the_wall_of_a_hollow_organ_to_the_curve() -> None:
    """Half of the right kidney is gas here: what is not ends on the curve, as the left one does, which shares its
    patient's spread."""
    plan = replace(WITHOUT, contrast_phase_probability=1)
    image, label = two_kidneys()
    gas = (label == 2) & (np.indices(label.shape).sum(axis=0) % 2 == 0)
    image[gas] = LOW
    augmenter = Augmenter(plan, app_plan(), (40, 48, 56))
    shifts = augmenter._draw_organ_shifts(
        torch.tensor(image), torch.tensor(label), True, False, np.random.default_rng(0)
    )
    right, left = (image[(label == organ) & ~gas].mean() + shifts[organ] for organ in (2, 13))
    assert right == pytest.approx(left, abs=0.02)


def test_unlabelled_scans_are_not_given_another_contrast() -> None:
    plan = replace(WITHOUT, contrast_phase_probability=1, organ_hu_probability=1)
    found, moved = augment(plan, 0, labelled=False)
    assert moved is None
    np.testing.assert_array_equal(found, two_kidneys()[0])


def test_thick_slices_by_hand() -> None:
    """Six voxels of 1 mm in slices of 2 mm at 1, 3 and 5 mm, and at -1 and 7 mm, of which one voxel is known each."""
    column = np.array([0, 2, 4, 8, 10, 14], dtype=np.float32)  # slice means 0 (of one voxel), 1, 6, 12, 14 (of one)
    matrix = ct_effects.slice_matrix(6, 1.0, 2.0, 2.0, 1.0)
    np.testing.assert_allclose(matrix @ column, [0.75, 2.25, 4.75, 7.5, 10.5, 12.5], rtol=1e-6)


def test_thick_slices_begin_before_the_patch() -> None:
    """Six voxels of 1 mm in slices of 3 mm at 2.5 and 5.5 mm, the latter cut to voxels 4 and 5, and at -0.5 mm, cut to
    voxel 0: means 7, 31 and 0. Voxel 0 (centre 0.5 mm) gets 2/3 of the first and 1/3 of the second, voxel 3 (3.5 mm)
    2/3 of the second and 1/3 of the third."""
    column = np.array([0, 3, 6, 12, 24, 38], dtype=np.float32)
    matrix = ct_effects.slice_matrix(6, 1.0, 3.0, 3.0, 2.5)
    np.testing.assert_allclose(matrix @ column, [7 / 3, 14 / 3, 7, 15, 23, 31], rtol=1e-6)


@given(st.integers(1, 40), st.floats(0.5, 5), st.floats(0.5, 20), st.floats(0.6, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_thick_slices_are_weighted_means(depth: int, spacing: float, thickness: float, step: float, at: float) -> None:
    matrix = ct_effects.slice_matrix(depth, spacing, thickness, step * thickness, at * step * thickness)
    assert matrix.shape == (depth, depth)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    assert matrix.min() >= 0


def test_thick_slices_change_z_only() -> None:
    """A pattern along y and x survives, one along z of 2 voxels vanishes in slices of 2 voxels (5 mm at 2.5 mm)."""
    plan = replace(WITHOUT, slice_thickness_probability=1, slice_thickness_mm=(10.0, 10.0))
    z, y, x = np.indices((16, 24, 28))
    for pattern, survives in (((y + x) % 2, True), (z % 2, False)):
        image = pattern.astype(np.float32)
        found, _ = Augmenter(plan, app_plan(), PATCH)(reader(image, None), (0, 0, 0), 2.5, np.random.default_rng(0))
        if survives:
            np.testing.assert_allclose(found, image, atol=1e-5)
        else:
            assert found[3:-3].max() - found[3:-3].min() < 0.5


def test_thin_slices_show_no_more_than_the_grid() -> None:
    plan = replace(WITHOUT, slice_thickness_probability=1, slice_thickness_mm=(1.0, 2.5))
    np.testing.assert_array_equal(augment(plan, 1)[0], two_kidneys()[0])


@pytest.mark.parametrize("sharpening", [-1.0, 0.7])
def test_kernel_is_unsharp_masking(sharpening: float) -> None:
    image = np.random.default_rng(2).normal(size=(3, 20, 25)).astype(np.float32)
    blurred = ndimage.gaussian_filter(image, (0, 0.8, 0.8), mode="nearest")
    found = ct_effects.change_kernel(torch.tensor(image), sharpening).numpy()
    np.testing.assert_allclose(found, image + sharpening * (image - blurred), atol=1e-5)


@pytest.mark.parametrize("grain", [0.0, 0.9])
def test_noise_has_the_standard_deviation_asked_for(grain: float) -> None:
    image = torch.zeros((20, 64, 64))
    image[:, :, 32:] = LOW
    noisy = ct_effects.add_noise(image, 0.3, grain, LOW, HIGH, PER_HU, torch.Generator().manual_seed(1)).numpy()
    assert noisy[:, 6:-6, 6:26].std() == pytest.approx(0.3, rel=0.03)
    assert np.all(noisy[:, :, 32:] == np.float32(LOW))


def test_noise_is_as_strong_at_the_edges_of_a_slice() -> None:
    """The mean over 20,000 slices of 8 x 9 voxels: 0.5 % is one standard error of the deviation of a voxel."""
    image = torch.zeros((20_000, 8, 9))
    noisy = ct_effects.add_noise(image, 0.2, 0.9, LOW, HIGH, PER_HU, torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(noisy.std(axis=0), 0.2, rtol=0.03)


def test_shift_of_the_scan_leaves_what_is_clipped() -> None:
    image = torch.tensor([LOW, 0.0, 1.0, HIGH]).reshape(1, 1, 4)
    shifted = ct_effects.shift_all(image, -0.25, LOW, HIGH, PER_HU)
    np.testing.assert_allclose(shifted[0, 0], [LOW, -0.25, 0.75, HIGH], rtol=1e-6)


def test_field_of_view_cut_is_padded_with_air() -> None:
    plan = replace(WITHOUT, field_of_view_probability=1, field_of_view_part=(0.5, 0.5))
    image, label = two_kidneys()
    axes = set()
    for seed in range(12):
        found, moved = augment(plan, seed)
        assert moved is not None
        same = found == image
        changed_axis = [axis for axis in range(3) if not same.all(axis=tuple(a for a in range(3) if a != axis)).all()]
        outside = ~same
        assert np.all(found[outside] == np.float32(LOW))
        assert np.all(moved[outside] == 0)
        # Half of one axis is kept as it was, the other half is air throughout.
        planes = [np.all(found == np.float32(LOW), axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        axis = max(changed_axis, key=lambda a: planes[a].mean())
        kept = ~planes[axis]
        taken = np.take(moved, np.flatnonzero(kept), axis)
        np.testing.assert_array_equal(taken, np.take(label, np.flatnonzero(kept), axis))
        assert kept.sum() <= image.shape[axis] / 2
        axes.add(axis)
    assert axes == {0, 1, 2}


def test_slab_is_surrounded_by_its_edges_if_inference_does_that() -> None:
    """Six slices of a scan whose every slice differs: as many different ones are left. In plane there comes air."""
    image = np.broadcast_to(np.linspace(0, 1, 40, dtype=np.float32)[:, None, None], (40, 48, 56))
    label = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], image.shape)
    plan = replace(WITHOUT, field_of_view_probability=1, field_of_view_part=(0.15, 0.15))
    different = set()
    for seed in range(12):
        augmenter = Augmenter(plan, app_plan(padding="edge"), (40, 48, 56))
        found, moved = (
            part.numpy()  # type: ignore[union-attr]
            for part in augmenter(reader(image, label), (0, 0, 0), 2.5, np.random.default_rng(seed))
        )
        slices = moved.max(axis=(1, 2))
        different.add(len(set(slices)))
        inside = found != np.float32(LOW)
        np.testing.assert_array_equal(found, np.where(inside, image[slices], np.float32(LOW)))
        np.testing.assert_array_equal(moved, np.where(inside, label[slices], 0))
        assert inside.all() == (len(set(slices)) == 6)
    assert different == {6, 40}


@pytest.mark.parametrize("air", [None, -7.0])
def test_what_lies_outside_of_a_box(air: float | None) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(6, 7, 8)).astype(np.float32), rng.integers(0, 4, (6, 7, 8)).astype(np.uint8)
    kept = (slice(2, 4), slice(0, 7), slice(3, 8))
    widths = [(part.start, length - part.stop) for part, length in zip(kept, image.shape, strict=True)]
    if air is None:
        expected = [np.pad(values[kept], widths, mode="edge") for values in (image, label)]
    else:
        expected = [np.pad(image[kept], widths, constant_values=air), np.pad(label[kept], widths)]
    for changed in (label, None):
        found = torch.tensor(image), None if changed is None else torch.tensor(changed)
        ct_effects.fill_outside(*found, kept, air)
        np.testing.assert_array_equal(found[0], expected[0])
        assert found[1] is None or np.array_equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("name", "bounds", "below"), [("brightness", (0.5, 0.8), 200), ("brightness", (0.75, 1.25), 100),
                                  ("brightness", (1.2, 1.5), 0), ("contrast", (0.5, 0.8), 200)],
)  # fmt: skip
def test_factors_lie_in_the_plans_range(name: str, bounds: tuple[float, float], below: int) -> None:
    """200 patches of one voxel at -1 and one at 1, whose mean is 0. Of [0.75, 1.25] half are below 1, give or take 4
    standard deviations of 7."""
    changes: dict[str, Any] = {f"{name}_probability": 1.0, name: bounds}
    plan = replace(WITHOUT, **changes)
    image = np.ones((16, 16, 16), dtype=np.float32)
    image[:, :, ::2] = -1
    augmenter = Augmenter(plan, app_plan(), image.shape)
    read = reader(image, None)
    factors = [float(augmenter(read, (0, 0, 0), 2.5, np.random.default_rng(seed))[0].max()) for seed in range(200)]
    assert bounds[0] <= min(factors)
    assert max(factors) <= bounds[1]
    assert abs(sum(factor < 1 for factor in factors) - below) <= (28 if below == 100 else 0)


def test_scaling_lies_in_the_plans_range() -> None:
    """A patch of 16 reaches 7.5 voxels from its centre; by 0.5 it looks at 3.75 of them and by 0.8 at 6, so the box has
    3 or 1 whole voxels less at each end. By more than 0.87 it would have none less."""
    plan = replace(WITHOUT, scaling_probability=1, scaling=(0.5, 0.8))
    sides = []

    def read(start: Shape, shape: Shape) -> tuple[Float32Array, LabelArray | None]:
        sides.append(shape)
        return np.zeros(shape, dtype=np.float32), None

    for seed in range(50):
        Augmenter(plan, app_plan(), (16, 16, 16))(read, (0, 0, 0), 2.5, np.random.default_rng(seed))
    assert {side for shape in sides for side in shape} == {10, 12, 14}


def test_values_stay_in_the_plans_range() -> None:
    for seed in range(12):
        found, _ = augment(SMALL_DATA, seed)
        assert found.dtype == np.float32
        assert np.all(np.isfinite(found))
        assert found.min() >= np.float32(LOW)
        assert found.max() <= np.float32(HIGH)


def test_a_2d_patch_is_turned_within_its_slice() -> None:
    plan = make_plan("compact-3d").app
    network = replace(plan.network, strides=((1, 1), *((2, 2),) * 4), kernel_sizes=((3, 3),) * 5)
    window = replace(plan.sliding_window, patch_size=(1, 128, 128), mirror_axes=(1, 2))
    flat = replace(plan, network=network, sliding_window=window)
    spatial = replace(NNUNET_2D, rotation_probability=1, scaling_probability=1, noise_probability=0)
    image, label = two_kidneys()
    boxes = []

    def read(start: Shape, shape: Shape) -> tuple[Float32Array, LabelArray | None]:
        boxes.append((start[0], shape[0]))
        return reader(image, label)(start, shape)

    found, moved = Augmenter(spatial, flat, (1, 48, 56))(read, (20, 0, 0), 2.5, np.random.default_rng(1))
    assert moved is not None
    assert found.shape == moved.shape == (1, 48, 56)
    assert boxes == [(20, 1)]
    assert set(np.unique(moved)) <= {0, 2, 13}
    with pytest.raises(ValueError, match="mirrored along y and x"):
        Augmenter(spatial, replace(flat, sliding_window=replace(window, mirror_axes=(0,))), (1, 48, 56))


def test_dummy_2d_moves_no_voxel_to_another_slice() -> None:
    image = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None] / 20 - 1, (40, 48, 56)).copy()
    plan = replace(SPATIAL, in_plane_only=True)
    read = reader(image, None)
    found, _ = Augmenter(plan, app_plan(), PATCH)(read, (5, 12, 14), 2.5, np.random.default_rng(3))
    inside = (slice(None), slice(10, 14), slice(12, 16))
    np.testing.assert_allclose(found.numpy()[inside], image[5:21, :4, :4], atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"noise_probability": 1.5}, {"gamma": (1.5, 0.7)}, {"field_of_view_part": (0.0, 0.5)}]
)
def test_impossible_plans_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        AugmentationPlan(**changes)
