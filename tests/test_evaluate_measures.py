"""HD95 and volume error: drawn by hand, beside the package's own robust Hausdorff distance and MONAI's."""

import importlib

import numpy as np
import pytest
import surface_distance  # type: ignore[import-untyped]

from app.volume import LabelArray, Vector
from tests.test_evaluate_metrics import UNIT, blob, box, package_distances, related_blobs
from tools.evaluate.flare import CORRECTED, IN_NEITHER
from tools.evaluate.measures import ONLY_IN_PREDICTION, ONLY_IN_REFERENCE, Measures, measure_pair
from tools.evaluate.metrics import LabelPair, Mask, find_surfaces, hausdorff_95_mm

LIVER, AORTA = 1, 5
SPACING: Vector = (5.0, 2.0, 1.0)
VOXEL_ML = 0.01  # 5 x 2 x 1 mm


def hd95(prediction: Mask, reference: Mask, spacing_zyx_mm: Vector = UNIT) -> float:
    return hausdorff_95_mm(find_surfaces(prediction, reference, spacing_zyx_mm))


def measure(prediction: LabelArray, reference: LabelArray, organ: str) -> Measures:
    return measure_pair(LabelPair(prediction, reference, 13), SPACING, VOXEL_ML, CORRECTED)[organ]


def column(label: int, first: int, last: int) -> LabelArray:
    """2 x 2 voxels in slices ``first`` to ``last``."""
    labels = np.zeros((12, 6, 6), dtype=np.uint8)
    labels[first : last + 1, 2:4, 2:4] = label
    return labels


# --- HD95 drawn by hand ----------------------------------------------------------------------------------


def test_equal_masks_are_0_mm_apart() -> None:
    assert hd95(blob(0), blob(0), SPACING) == 0.0


def test_two_voxels_three_apart() -> None:
    """Half of each surface is 2 mm from the other and half 3 mm."""
    prediction, reference = (box((1, 1, 4), slice(0, 1), slice(0, 1), slice(x, x + 1)) for x in (0, 3))
    assert hd95(prediction, reference) == 3.0


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 5.0), (1, 2.0), (2, 1.0)])
def test_shift_by_a_voxel_is_the_spacing_of_its_axis(axis: int, expected_mm: float) -> None:
    """Of a cube of side 4 the face that moved is far more than 5 % of the surface."""
    reference = box((8, 8, 8), slice(2, 6), slice(2, 6), slice(2, 6))
    assert hd95(np.roll(reference, 1, axis), reference, SPACING) == expected_mm


def test_single_slices_two_apart() -> None:
    """Sheets of 8 x 8 voxels in slices 0 and 2 of 5 mm: near sides 5 mm apart, far sides 10 mm."""
    prediction, reference = (box((3, 8, 8), slice(z, z + 1), slice(0, 8), slice(0, 8)) for z in (0, 2))
    assert hd95(prediction, reference, SPACING) == 10.0


def test_mask_cut_by_the_border_ends_there() -> None:
    prediction, reference = blob(1), blob(2)
    assert prediction[0].any() and reference[:, :, 0].any()
    padded = hd95(np.pad(prediction, 3), np.pad(reference, 3), (2.5, 0.8, 0.7))
    assert hd95(prediction, reference, (2.5, 0.8, 0.7)) == pytest.approx(padded, abs=1e-12)


def test_one_voxel_far_away_is_not_seen_and_many_are() -> None:
    """A cube of side 6 has 150 mm2 of faces between its edges, a voxel's surface has 8 corners of 0.22 mm2."""
    reference = box((8, 8, 60), slice(1, 7), slice(1, 7), slice(1, 7))
    prediction = reference.copy()
    prediction[4, 4, 50] = True
    assert hd95(prediction, reference) == 0.0
    prediction[2:6, 2:6, 50:54] = True
    assert hd95(prediction, reference) == pytest.approx(54 - 7)  # its outer face


def test_the_worse_direction_counts() -> None:
    """A reference that lies within the prediction is near it everywhere; not the other way round."""
    reference = box((6, 6, 30), slice(1, 5), slice(1, 5), slice(1, 5))
    prediction = box((6, 6, 30), slice(1, 5), slice(1, 5), slice(1, 25))
    assert hd95(prediction, reference) == hd95(reference, prediction)
    assert 18 <= hd95(prediction, reference) <= 20  # of up to 20 mm beyond


# --- other packages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing_zyx_mm", [(1.0, 1.0, 1.0), (5.0, 0.5, 0.5), (2.3, 0.7, 0.68)])
@pytest.mark.parametrize("seed", range(4))
def test_hd95_equals_the_packages(seed: int, spacing_zyx_mm: Vector) -> None:
    prediction, reference = blob(seed), blob(seed + 100)
    distances = package_distances(prediction, reference, spacing_zyx_mm)
    expected = surface_distance.compute_robust_hausdorff(distances, 95)
    assert hd95(prediction, reference, spacing_zyx_mm) == pytest.approx(expected, abs=1e-12)


def monai_hd95(prediction: Mask, reference: Mask, spacing_zyx_mm: Vector) -> float:
    torch, metrics = importlib.import_module("torch"), importlib.import_module("monai.metrics")
    masks = [torch.from_numpy(np.pad(mask, 2)[None, None].astype(np.float32)) for mask in (prediction, reference)]
    found = metrics.compute_hausdorff_distance(
        *masks, include_background=True, percentile=95, spacing=list(spacing_zyx_mm)
    )
    return float(found)


@pytest.mark.long  # importing MONAI and torch takes 10 s
@pytest.mark.filterwarnings("ignore")
def test_monai_agrees_on_what_is_drawn_by_hand() -> None:
    """It measures between the centres of voxels: the same wherever whole faces moved."""
    voxels = [box((1, 1, 4), slice(0, 1), slice(0, 1), slice(x, x + 1)) for x in (0, 3)]
    sheets = [box((3, 8, 8), slice(z, z + 1), slice(0, 8), slice(0, 8)) for z in (0, 2)]
    cube = box((8, 8, 8), slice(2, 6), slice(2, 6), slice(2, 6))
    for prediction, reference in (voxels, sheets, *((np.roll(cube, 1, axis), cube) for axis in range(3))):
        assert hd95(prediction, reference, SPACING) == pytest.approx(monai_hd95(prediction, reference, SPACING))


@pytest.mark.long  # importing MONAI and torch takes 10 s
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_monai_is_within_a_voxel_on_blobs(seed: int) -> None:
    """Its surface is the outermost voxels, each of which counts one, where ours weighs by area between voxels."""
    prediction, reference = related_blobs(seed)
    assert hd95(prediction, reference) == pytest.approx(monai_hd95(prediction, reference, UNIT), abs=1.0)


# --- volume error, and what is not defined ---------------------------------------------------------------


def test_volume_error_is_relative_and_signed() -> None:
    """16 voxels of 0.01 ml; 12 and 24 of them."""
    assert measure(column(LIVER, 2, 4), column(LIVER, 2, 5), "liver").volume_error == -0.25
    found = measure(column(LIVER, 2, 7), column(LIVER, 2, 5), "liver")
    assert found.volume_error == 0.5
    assert [found.prediction_ml, found.reference_ml] == pytest.approx([0.24, 0.16])
    assert found.hd95_mm == 10.0  # two slices of 5 mm
    assert found.note is None


def test_equal_volumes_elsewhere_have_no_volume_error() -> None:
    found = measure(column(LIVER, 6, 8), column(LIVER, 1, 3), "liver")
    assert found.volume_error == 0.0
    assert found.hd95_mm == 25.0  # five slices


def test_what_is_empty_is_missing_and_not_0() -> None:
    empty = np.zeros((12, 6, 6), dtype=np.uint8)
    assert measure(empty, empty, "liver") == Measures(None, None, 0.0, 0.0, IN_NEITHER)
    assert measure(empty, column(LIVER, 2, 5), "liver") == Measures(None, -1.0, 0.0, 0.16, ONLY_IN_REFERENCE)
    assert measure(column(LIVER, 2, 5), empty, "liver") == Measures(None, None, 0.16, 0.0, ONLY_IN_PREDICTION)


def test_only_the_references_slices_of_the_aorta_count() -> None:
    """All of them, the top one too."""
    found = measure(column(AORTA, 0, 11), column(AORTA, 3, 7), "aorta")
    assert (found.hd95_mm, found.volume_error) == (0.0, 0.0)
    found = measure(column(AORTA, 0, 1), column(AORTA, 3, 7), "aorta")
    assert found == Measures(None, -1.0, 0.0, 0.2, ONLY_IN_REFERENCE)


def test_a_single_slice_of_the_aorta_has_measures() -> None:
    """Where the organisers' script stops."""
    found = measure(column(AORTA, 4, 5), column(AORTA, 4, 4), "aorta")
    assert (found.hd95_mm, found.volume_error) == (0.0, 0.0)
