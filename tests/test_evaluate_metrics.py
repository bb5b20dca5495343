"""DSC and NSD of masks: cases drawn by hand, the package's own search for distances, and MONAI's."""

import importlib
import math
from typing import Any

import numpy as np
import pytest
import surface_distance  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from surface_distance import lookup_tables

from app.volume import Shape, Vector
from tools.evaluate.metrics import LabelPair, Mask, dice, find_surfaces, surface_dice

# Areas of the three kinds of surface elements of a box of 1 mm voxels, by geometry: on a face the unit square around
# a corner; on an edge the chamfer between two midpoints of voxel edges, sqrt(1/2) x 1; at a corner the triangle
# through three midpoints, of side sqrt(1/2).
FACE_MM2 = 1.0
EDGE_MM2 = math.sqrt(0.5)
CORNER_MM2 = math.sqrt(3) / 8
UNIT: Vector = (1.0, 1.0, 1.0)


def box(shape_zyx: Shape, z: slice, y: slice, x: slice) -> Mask:
    mask = np.zeros(shape_zyx, dtype=np.bool_)
    mask[z, y, x] = True
    return mask


def nsd(prediction: Mask, reference: Mask, spacing_zyx_mm: Vector, tolerance_mm: float) -> float:
    return surface_dice(find_surfaces(prediction, reference, spacing_zyx_mm), tolerance_mm)


def blob(seed: int, shape_zyx: Shape = (14, 22, 18)) -> Mask:
    """A few smooth lumps, some of them cut by the border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape_zyx), 2.0)
    return np.asarray(noise > np.quantile(noise, 0.8), dtype=np.bool_)


def related_blobs(seed: int) -> tuple[Mask, Mask]:
    """Two masks like a prediction and its reference."""
    rng = np.random.default_rng(seed)
    noise, error = (ndimage.gaussian_filter(rng.normal(size=(30, 40, 36)), 4.0) for _ in range(2))
    reference, prediction = (np.pad(field > np.quantile(field, 0.8), 2) for field in (noise, noise + 0.35 * error))
    return prediction, reference


def package_distances(prediction: Mask, reference: Mask, spacing: Vector) -> dict[str, Any]:
    """The package's own answer, in the axis order of its arguments."""
    with pytest.warns(DeprecationWarning):  # SciPy names of old
        found: dict[str, Any] = surface_distance.compute_surface_distances(reference, prediction, spacing)
    return found


# --- DSC -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("11100000", "01111100", 0.5),  # 3 and 5 with 2 in common: 4 / 8
        ("11110000", "11110000", 1.0),
        ("11000000", "00110000", 0.0),
        ("11000000", "00000000", 0.0),
        ("00000000", "11000000", 0.0),
        ("00000000", "00000000", None),
    ],
)
def test_dice_of_rows_drawn_by_hand(prediction: str, reference: str, expected: float | None) -> None:
    masks = [np.array([[[char == "1" for char in row]]], dtype=np.bool_) for row in (prediction, reference)]
    assert dice(*masks) == expected


# --- NSD drawn by hand -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("tolerance_mm", "expected"), [(1.9, 0.0), (2.0, 0.5), (2.9, 0.5), (3.0, 1.0)])
def test_two_voxels_three_apart(tolerance_mm: float, expected: float) -> None:
    """Corners at x = 0, 1 and 3, 4: distances 3, 2 and 2, 3, all of one area."""
    prediction, reference = (box((1, 1, 4), slice(0, 1), slice(0, 1), slice(x, x + 1)) for x in (0, 3))
    assert nsd(prediction, reference, UNIT, tolerance_mm) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("axis", "tolerance_mm", "expected"),
    [(0, 4.9, 0.5), (0, 5.0, 1.0), (1, 1.9, 0.5), (1, 2.0, 1.0), (2, 0.9, 0.5), (2, 1.0, 1.0)],
)
def test_neighbouring_voxels_of_5_by_2_by_1_mm(axis: int, tolerance_mm: float, expected: float) -> None:
    """They share four corners; the other four of each are one spacing of that axis away."""
    reference = box((2, 2, 2), slice(0, 1), slice(0, 1), slice(0, 1))
    prediction = np.roll(reference, 1, axis)
    assert nsd(prediction, reference, (5.0, 2.0, 1.0), tolerance_mm) == pytest.approx(expected, abs=1e-12)


def test_surface_of_a_cube_has_the_area_of_its_parts() -> None:
    """Side 4: on each face 3 x 3 corners, on each edge 3, and 8."""
    cube = box((6, 6, 6), slice(1, 5), slice(1, 5), slice(1, 5))
    surfaces = find_surfaces(cube, cube, UNIT)
    assert surfaces.reference_mm2.sum() == pytest.approx(6 * 9 * FACE_MM2 + 12 * 3 * EDGE_MM2 + 8 * CORNER_MM2)
    assert len(surfaces.reference_mm2) == 5**3 - 3**3
    assert not surfaces.reference_mm.any()


def test_cube_shifted_by_one_voxel() -> None:
    """Side 4, from x = 0 to 4 and from 1 to 5.

    Distance 0: what lies around x = 1, 2, 3 (12 on faces, 4 on edges each) and the rim at x = 4 (12 on edges, 4
    corners). All else is 1 mm away.
    """
    reference = box((6, 6, 6), slice(1, 5), slice(1, 5), slice(0, 4))
    prediction = np.roll(reference, 1, axis=2)
    whole = 6 * 9 * FACE_MM2 + 12 * 3 * EDGE_MM2 + 8 * CORNER_MM2
    common = 3 * (12 * FACE_MM2 + 4 * EDGE_MM2) + 12 * EDGE_MM2 + 4 * CORNER_MM2
    assert nsd(prediction, reference, UNIT, 0.0) == pytest.approx(common / whole)
    assert nsd(prediction, reference, UNIT, 0.999) == pytest.approx(common / whole)
    assert nsd(prediction, reference, UNIT, 1.0) == 1.0
    assert dice(prediction, reference) == 2 * 48 / 128


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cube_shifted_along_each_axis_is_within_that_spacing(axis: int) -> None:
    spacing_zyx_mm = (3.0, 2.0, 1.0)
    reference = box((8, 8, 8), slice(2, 6), slice(2, 6), slice(2, 6))
    prediction = np.roll(reference, 1, axis)
    assert nsd(prediction, reference, spacing_zyx_mm, spacing_zyx_mm[axis]) == 1.0
    assert nsd(prediction, reference, spacing_zyx_mm, spacing_zyx_mm[axis] - 1e-6) < 1.0


def test_border_of_the_array_is_a_surface_like_any_other() -> None:
    """What is cut by the edge of the scan ends there: the same as with air around it."""
    prediction, reference = blob(1), blob(2)
    assert prediction[0].any() and prediction[:, -1].any() and reference[:, :, 0].any()
    inner = nsd(np.pad(prediction, 3), np.pad(reference, 3), (2.5, 0.8, 0.7), 2.0)
    assert nsd(prediction, reference, (2.5, 0.8, 0.7), 2.0) == pytest.approx(inner, abs=1e-12)


def test_single_slice_has_a_surface() -> None:
    """1 x 2 x 2 voxels: in each of the two planes one corner on a face, 4 on edges and 4 corners."""
    slab = box((1, 2, 2), slice(0, 1), slice(0, 2), slice(0, 2))
    surfaces = find_surfaces(slab, slab, UNIT)
    assert surfaces.reference_mm2.sum() == pytest.approx(2 * (FACE_MM2 + 4 * EDGE_MM2 + 4 * CORNER_MM2))


def test_distances_beyond_what_was_asked_for_are_infinite() -> None:
    prediction, reference = (box((1, 1, 9), slice(0, 1), slice(0, 1), slice(x, x + 1)) for x in (0, 8))
    assert set(find_surfaces(prediction, reference, UNIT).reference_mm) == {7.0, 8.0}
    assert set(find_surfaces(prediction, reference, UNIT, within_mm=7.5).reference_mm) == {7.0, math.inf}


def test_empty_mask_has_no_surface() -> None:
    with pytest.raises(ValueError, match="empty"):
        find_surfaces(np.zeros((2, 2, 2), np.bool_), np.ones((2, 2, 2), np.bool_), UNIT)


# --- the package, in the organisers' axis order ----------------------------------------------------------


@pytest.mark.parametrize("spacing_zyx_mm", [(1.0, 1.0, 1.0), (5.0, 0.5, 0.5), (2.3, 0.7, 0.68)])
@pytest.mark.parametrize("seed", range(4))
def test_distances_and_areas_equal_the_packages_in_xyz_order(seed: int, spacing_zyx_mm: Vector) -> None:
    """Distances exactly, since one of exactly the tolerance counts; areas but for the order of their sums.

    Spacings as a header has them, in float32.
    """
    prediction, reference = blob(seed), blob(seed + 100)
    z, y, x = (float(np.float32(length)) for length in spacing_zyx_mm)
    spacing: Vector = (z, y, x)
    expected = package_distances(prediction.transpose(), reference.transpose(), spacing[::-1])
    found = find_surfaces(prediction, reference, spacing)
    for ours_mm, ours_mm2, kind in (
        (found.reference_mm, found.reference_mm2, ("distances_gt_to_pred", "surfel_areas_gt")),
        (found.prediction_mm, found.prediction_mm2, ("distances_pred_to_gt", "surfel_areas_pred")),
    ):
        order = np.lexsort((ours_mm2.round(9), ours_mm))
        theirs_mm, theirs_mm2 = expected[kind[0]], expected[kind[1]]
        theirs = np.lexsort((theirs_mm2.round(9), theirs_mm))
        np.testing.assert_array_equal(ours_mm[order], theirs_mm[theirs])
        np.testing.assert_allclose(ours_mm2[order], theirs_mm2[theirs], rtol=1e-12)


def test_areas_depend_on_no_axis_order_and_no_direction() -> None:
    """Why arrays may be scored as zyx: each of the 256 neighbourhoods keeps its area when turned or mirrored."""
    kernel = np.asarray(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL)
    spacing = np.array([0.7, 1.1, 2.5])
    codes = np.arange(256).reshape(-1, 1, 1, 1)
    inside = (codes & kernel) > 0  # (code, 2, 2, 2)
    areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    reversed_axes = (inside.transpose(0, 3, 2, 1) * kernel).sum(axis=(1, 2, 3))
    reversed_areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing[::-1])
    np.testing.assert_allclose(reversed_areas[reversed_axes], areas, rtol=1e-12)
    for axis in (1, 2, 3):
        mirrored = (np.flip(inside, axis) * kernel).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(areas[mirrored], areas, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    shift=st.tuples(*[st.integers(-3, 3)] * 3),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.5])] * 3),
    tolerance_mm=st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0]),
)
def test_nsd_of_shifted_blobs_equals_the_packages(
    shift: tuple[int, int, int], spacing: Vector, tolerance_mm: float
) -> None:
    reference = np.pad(blob(7, (6, 9, 8)), 4)
    prediction = np.roll(reference, shift, (0, 1, 2))
    distances = package_distances(prediction.transpose(), reference.transpose(), spacing[::-1])
    expected = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    assert nsd(prediction, reference, spacing, tolerance_mm) == pytest.approx(expected, abs=1e-12)


def test_dice_equals_the_packages() -> None:
    prediction, reference = blob(1), blob(2)
    assert dice(prediction, reference) == surface_distance.compute_dice_coefficient(reference, prediction)


# --- MONAI -----------------------------------------------------------------------------------------------


def monai_surface_dice(
    prediction: Mask, reference: Mask, spacing: Vector, tolerance_mm: float, use_subvoxels: bool
) -> float:
    torch, metrics = importlib.import_module("torch"), importlib.import_module("monai.metrics")
    channels = [torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in (prediction, reference)]
    return float(
        metrics.compute_surface_dice(
            *channels, class_thresholds=[tolerance_mm], spacing=spacing, use_subvoxels=use_subvoxels
        )
    )


@pytest.mark.long  # importing MONAI and torch takes 10 s
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spacing_zyx_mm", [(1.0, 1.0, 1.0), (2.5, 0.8, 0.7)])
@pytest.mark.parametrize("seed", range(3))
def test_monai_agrees_on_subvoxel_surfaces(seed: int, spacing_zyx_mm: Vector) -> None:
    """With ``use_subvoxels`` MONAI weighs elements between voxels by area, as the package does; in float32."""
    prediction, reference = np.pad(blob(seed), 2), np.pad(blob(seed + 50), 2)
    for tolerance_mm in (1.0, 2.0, 3.0):
        theirs = monai_surface_dice(prediction, reference, spacing_zyx_mm, tolerance_mm, use_subvoxels=True)
        assert nsd(prediction, reference, spacing_zyx_mm, tolerance_mm) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.long  # importing MONAI and torch takes 10 s
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_monai_is_near_on_voxel_surfaces(seed: int) -> None:
    """By default MONAI's surface is the mask's outermost voxels, each of which counts one.

    That differs in two ways. Elements lie in the centres of voxels inside the mask, so of a voxel 3 mm away both sides
    are 3 mm away, where the near corners of the package's surface are 2 mm away. And a voxel counts the same on a flat
    face and on a sharp corner, where area weighs a corner less (0.22 against 1). Masks like a fair segmentation (DSC
    0.77 to 0.87) get less from MONAI, the less so the more voxels the tolerance has.
    """
    prediction, reference = related_blobs(seed)
    for tolerance_mm, apart in ((1.0, 0.05), (2.0, 0.025), (3.0, 0.015), (5.0, 0.005)):
        theirs = monai_surface_dice(prediction, reference, UNIT, tolerance_mm, use_subvoxels=False)
        assert nsd(prediction, reference, UNIT, tolerance_mm) == pytest.approx(theirs, abs=apart)


@pytest.mark.long  # importing MONAI and torch takes 10 s
@pytest.mark.filterwarnings("ignore")
def test_monai_measures_between_voxel_centres() -> None:
    prediction, reference = (np.pad(box((1, 1, 4), slice(0, 1), slice(0, 1), slice(x, x + 1)), 2) for x in (0, 3))
    assert monai_surface_dice(prediction, reference, UNIT, 2.0, use_subvoxels=False) == 0.0  # ours: 0.5, see above
    assert monai_surface_dice(prediction, reference, UNIT, 3.0, use_subvoxels=False) == 1.0


@pytest.mark.long  # importing MONAI and torch takes 10 s
@pytest.mark.filterwarnings("ignore")
def test_monai_agrees_on_dice() -> None:
    torch, metrics = importlib.import_module("torch"), importlib.import_module("monai.metrics")
    prediction, reference = blob(1), blob(2)
    channels = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (prediction, reference)]
    assert dice(prediction, reference) == pytest.approx(float(metrics.compute_dice(*channels)), abs=1e-6)


# --- LabelPair -------------------------------------------------------------------------------------------


def test_joint_box_holds_both_and_no_more() -> None:
    prediction, reference = np.zeros((2, 9, 10, 11), dtype=np.uint8)
    prediction[1:3, 2:5, 7:9] = 2
    reference[2:6, 1:3, 8:11] = 2
    reference[0, 0, 0] = 1
    pair = LabelPair(prediction, reference, 3)
    assert pair.joint_box(2) == (slice(1, 6), slice(1, 5), slice(7, 11))
    assert (pair.prediction_box(1), pair.reference_box(3)) == (None, None)
    masks = pair.masks(2, pair.joint_box(2))
    assert [int(mask.sum()) for mask in masks] == [2 * 3 * 2, 4 * 2 * 3]


def test_surfaces_are_kept_for_the_same_question_only() -> None:
    labels = np.stack([blob(1), blob(2)]).astype(np.uint8)
    pair = LabelPair(labels[0], labels[1], 1)
    whole, lower = pair.joint_box(1), (slice(0, 7), slice(0, 22), slice(0, 18))
    first = pair.surfaces(1, whole, UNIT, 2.0)
    assert pair.surfaces(1, whole, UNIT, 2.0) is first
    for other in (
        pair.surfaces(1, whole, UNIT, 3.0),
        pair.surfaces(1, whole, (2.0, 1.0, 1.0), 2.0),
        pair.surfaces(1, lower, UNIT, 2.0),
    ):
        assert other is not first


def test_unequal_shapes_and_unknown_labels_are_refused() -> None:
    empty = np.zeros((2, 2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="expected one 3-D shape"):
        LabelPair(empty, np.zeros((2, 2, 3), dtype=np.uint8), 13)
    with pytest.raises(ValueError, match="label 14: expected 0 to 13"):
        LabelPair(empty, np.full((2, 2, 2), 14, dtype=np.uint8), 13)
