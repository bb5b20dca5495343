"""Connected components on hand-drawn label maps."""

import numpy as np
import pytest
from scipy import ndimage

from app import components
from app.components import find_components, largest_component, opened_in_slices
from app.plan import PostprocessingPlan
from app.postprocessing import organ_volumes_ml, postprocess

LABELS = ("liver", "spleen", "pancreas")


def drawn() -> np.ndarray:
    """One slice: liver in two parts (4 and 2 voxels, touching at a corner), spleen 3 and 1, pancreas 1."""
    return np.array(
        [
            [
                [1, 1, 0, 0, 2, 2],
                [1, 1, 0, 0, 2, 0],
                [0, 0, 1, 1, 0, 0],
                [3, 0, 0, 0, 0, 2],
            ]
        ],
        dtype=np.uint8,
    )


def test_nothing_to_do_changes_nothing() -> None:
    assert np.array_equal(postprocess(drawn(), LABELS, PostprocessingPlan(), 1.0), drawn())


def test_a_scan_without_organs_is_cleaned_too() -> None:
    plan = PostprocessingPlan(largest_component=LABELS, minimum_volume_ml={"liver": 5.0})
    assert not postprocess(np.zeros((3, 4, 5), np.uint8), LABELS, plan, 1.0).any()


def test_largest_component_stays_and_a_corner_does_not_connect() -> None:
    expected = drawn()
    expected[0, 2, 2:4] = 0
    found = postprocess(drawn(), LABELS, PostprocessingPlan(largest_component=("liver",)), 1.0)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("voxel_ml", "spleen_voxels"), [(0.4, 3), (0.6, 4), (0.1, 0)])
def test_components_below_the_minimum_volume_go(voxel_ml: float, spleen_voxels: int) -> None:
    plan = PostprocessingPlan(minimum_volume_ml={"spleen": 0.5})
    found = postprocess(drawn(), LABELS, plan, voxel_ml)
    assert np.count_nonzero(found == 2) == spleen_voxels
    assert np.count_nonzero(found == 1) == 6
    assert np.count_nonzero(found == 3) == 1


@pytest.mark.parametrize(("share", "liver", "spleen"), [(0.3, 6, 4), (0.5, 6, 3), (0.51, 4, 3), (1.0, 4, 3)])
def test_large_components_stay_with_the_largest(share: float, liver: int, spleen: int) -> None:
    """Liver of 4 and 2 voxels, spleen of 3 and 1."""
    plan = PostprocessingPlan(largest_component=("liver", "spleen"), smallest_share=share)
    found = postprocess(drawn(), LABELS, plan, 1.0)
    assert np.count_nonzero(found == 1) == liver
    assert np.count_nonzero(found == 2) == spleen


def test_both_rules_together() -> None:
    plan = PostprocessingPlan(largest_component=("liver", "spleen"), minimum_volume_ml={"liver": 5.0})
    found = postprocess(drawn(), LABELS, plan, 1.0)
    assert np.count_nonzero(found == 1) == 0
    assert np.count_nonzero(found == 2) == 3


@pytest.mark.parametrize("seed", range(40))
def test_components_are_scipys(seed: int) -> None:
    """Noise of three labels on small grids, in which every kind of neighbour and edge occurs."""
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 12, 3))
    label_map = np.where(random.random(shape) < random.uniform(0.2, 0.9), random.integers(1, 4, shape), 0)
    label_map = label_map.astype(np.uint8)
    found = find_components(label_map, np.isin(np.arange(256), (1, 3)))
    for label in (1, 2, 3):
        expected, count = ndimage.label(label_map == label)
        voxels = found.voxels[found.label == label]
        assert voxels.tolist() == ([] if label == 2 else np.bincount(expected.ravel())[1 : count + 1].tolist())
    for number, label in enumerate(found.label):
        left = label_map.copy()
        found.erase(left, np.arange(len(found.label)) == number)
        gone = (left == 0) & (label_map != 0)
        assert np.count_nonzero(gone) == found.voxels[number]
        assert np.all(label_map[gone] == label)
        assert ndimage.label(gone)[1] == 1


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("diagonal", [False, True])
def test_masks_of_one_label_are_scipys(seed: int, diagonal: bool) -> None:
    random = np.random.default_rng(seed)
    mask = random.random(tuple(random.integers(1, 14, 3))) < random.uniform(0.1, 0.95)
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)) if diagonal else None)
    found = find_components(mask.astype(np.uint8), np.arange(256) == 1, diagonal)
    assert found.voxels.tolist() == np.bincount(parts.ravel())[1 : count + 1].tolist()
    expected = mask if count < 2 else parts == found.voxels.argmax() + 1
    assert np.array_equal(largest_component(mask, diagonal), expected)
    assert np.array_equal(opened_in_slices(mask), ndimage.binary_opening(mask, np.ones((1, 3, 3))))


def test_many_voxels_are_erased_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "_VOXELS_AT_ONCE", 50)
    label_map = np.zeros((9, 10, 11), dtype=np.uint8)
    label_map[1:8, 1:9, 1:10] = 1
    label_map[0, 0, 0] = 1
    label_map[8, 9, 5:] = 2
    found = find_components(label_map, np.ones(256, dtype=bool) & (np.arange(256) > 0))
    assert found.voxels.tolist() == [1, 7 * 8 * 9, 6]
    found.erase(label_map, np.array([False, True, False]))
    assert np.count_nonzero(label_map == 1) == 1
    assert np.count_nonzero(label_map == 2) == 6


def test_volumes() -> None:
    assert organ_volumes_ml(drawn(), LABELS, 0.5) == {"liver": 3.0, "spleen": 2.0, "pancreas": 0.5}
    assert organ_volumes_ml(np.zeros((2, 3, 4), np.uint8), LABELS, 0.5) == {"liver": 0, "spleen": 0, "pancreas": 0}
