"""Connected components on hand-drawn label maps."""

import numpy as np
import pytest

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


def test_both_rules_together() -> None:
    plan = PostprocessingPlan(largest_component=("liver", "spleen"), minimum_volume_ml={"liver": 5.0})
    found = postprocess(drawn(), LABELS, plan, 1.0)
    assert np.count_nonzero(found == 1) == 0
    assert np.count_nonzero(found == 2) == 3


def test_volumes() -> None:
    assert organ_volumes_ml(drawn(), LABELS, 0.5) == {"liver": 3.0, "spleen": 2.0, "pancreas": 0.5}
    assert organ_volumes_ml(np.zeros((2, 3, 4), np.uint8), LABELS, 0.5) == {"liver": 0, "spleen": 0, "pancreas": 0}
