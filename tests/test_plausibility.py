"""Wrong but valid input is segmented, and said: no HU, no abdomen, turned. Phantoms can be turned, too."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from app.plan import Plan, parse_plan
from app.plausibility import (
    LEAST_COMPACTNESS,
    LEAST_ORGANS_ML,
    LEAST_TISSUE_SHARE,
    TURNED_MM,
    Findings,
    examine,
    find_warnings,
    look_at,
)
from app.volume import LabelArray, Volume
from app.volume_io import read_volume
from tests.conftest import ROOT, read_label_map, run_app, tiny_plan, write_scan, write_tiny_bundle
from tools.phantom import make_phantom

GOOD = Findings(0.1, 2000.0, 0.9, 60.0, 50.0, 60.0, 40.0)
LABELS = ("liver", "right kidney", "spleen")


@pytest.fixture(scope="module")
def plan(default_bundle: Path) -> Plan:
    return parse_plan((default_bundle / "plan.json").read_text(), "plan.json")


@pytest.fixture(scope="module")
def phantom() -> tuple[Volume, LabelArray]:
    made = make_phantom(seed=0)
    return made.volume, made.label_map


def warnings_about(volume: Volume, label_map: LabelArray, labels: tuple[str, ...]) -> list[str]:
    organs_ml = float(np.count_nonzero(label_map)) * volume.geometry.voxel_volume_ml
    return find_warnings(examine(look_at(volume), label_map, labels, organs_ml), labels)


def turned(volume: Volume, label_map: LabelArray, axes: str) -> tuple[Volume, LabelArray]:
    """Voxels and organs turned under an unchanged header."""
    places = tuple("zyx".index(axis) for axis in axes)
    return replace(volume, voxels=np.flip(volume.voxels, places)), np.flip(label_map, places)


def test_nothing_is_said_about_a_phantom(phantom: tuple[Volume, LabelArray], plan: Plan) -> None:
    assert warnings_about(*phantom, plan.labels) == []


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ("z", ["right kidney lies"]),
        ("y", ["spine lies"]),
        ("x", ["to the left of the spine; are left and right swapped, or is this situs inversus?"]),
        ("zx", ["right kidney lies", "left and right swapped"]),
        ("yx", ["spine lies", "left and right swapped"]),
        ("zyx", ["right kidney lies", "spine lies", "left and right swapped"]),
    ],
)
def test_a_turned_phantom_is_said_to_be(
    phantom: tuple[Volume, LabelArray], plan: Plan, axes: str, words: list[str]
) -> None:
    found = warnings_about(*turned(*phantom, axes), plan.labels)
    assert len(found) == len(words)
    for text, word in zip(found, words, strict=True):
        assert word in text
        assert text.endswith("Check the scan's orientation")


def test_evidence_is_in_millimetres_and_changes_its_sign_with_the_turn(
    phantom: tuple[Volume, LabelArray], plan: Plan
) -> None:
    """Liver and kidney of the phantom: their centres on the full grid, which the coarse one has to come close to."""
    volume, label_map = phantom
    liver, kidney = (np.argwhere(label_map == label)[:, 0].mean() for label in (1, 2))
    slice_mm = volume.geometry.spacing_zyx_mm[0]
    straight = examine(look_at(volume), label_map, plan.labels, 2000.0)
    over = examine(look_at(turned(*phantom, "z")[0]), turned(*phantom, "z")[1], plan.labels, 2000.0)
    assert straight.liver_above_kidney_mm == pytest.approx((liver - kidney) * slice_mm, abs=4)
    assert over.liver_above_kidney_mm == pytest.approx((kidney - liver) * slice_mm, abs=4)


def test_lungs_are_told_from_air_table_and_skin(phantom: tuple[Volume, LabelArray]) -> None:
    """A body of blocks on a grid of 8 mm: lungs in slices 14 to 19, liver in 4 to 9, so ten slices or 80 mm apart.

    Below lie a table of foam, which has the HU of lung, and the blur of the skin, one voxel thick.
    """
    voxels = np.full((24, 40, 40), -1000, np.int16)
    voxels[:, 5:25, 5:35] = 40
    voxels[14:20, 10:20, 8:18] = voxels[14:20, 10:20, 22:32] = -800  # 1200 voxels, 614 ml
    voxels[:, 5, 5:35] = -700
    voxels[:, 30:35, 2:38] = -800
    voxels[:, 36:39, 2:38] = 300  # shell
    label_map = np.zeros(voxels.shape, np.uint8)
    label_map[4:10, 10:20, 8:16] = 1  # 480 voxels, 246 ml
    geometry = replace(phantom[0].geometry, shape_zyx=(24, 40, 40), spacing_zyx_mm=(8.0, 8.0, 8.0))
    volume = replace(phantom[0], voxels=voxels, geometry=geometry)
    assert examine(look_at(volume), label_map, LABELS, 246.0).lungs_above_liver_mm == pytest.approx(80)
    over = turned(volume, label_map, "z")
    assert examine(look_at(over[0]), over[1], LABELS, 246.0).lungs_above_liver_mm == pytest.approx(-80)


def test_stored_axes_do_not_matter(phantom: tuple[Volume, LabelArray], plan: Plan, tmp_path: Path) -> None:
    """The same phantom stored (x, z, y) and from head to feet, and said to be so, is in order."""
    volume, label_map = phantom
    z, y, x = volume.geometry.spacing_zyx_mm
    affine = np.array([[0, 0, -x, 0], [-y, 0, 0, 0], [0, -z, 0, 0], [0, 0, 0, 1]], dtype=float)  # from (y, z, x)
    voxels = np.ascontiguousarray(volume.voxels.transpose(1, 0, 2)[:, ::-1])
    path = write_scan(tmp_path / "a.nii", np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine=affine)
    other = np.ascontiguousarray(label_map.transpose(1, 0, 2)[:, ::-1]).transpose(2, 1, 0)
    assert warnings_about(read_volume(path), other, plan.labels) == []


SPOILT: dict[str, Callable[[Any], Any]] = {
    "MR": lambda hu: np.interp(hu, [-1000, -100, 50, 300], [3, 900, 300, 60]),  # fat is bright, air and bone are dark
    "stored from 0": lambda hu: np.maximum(hu, -1024) + 1024,
    "shifted twice": lambda hu: hu - 1024,
    "8 bits": lambda hu: np.clip((hu + 160) * 255 / 400, 0, 255),
    "0 to 1": lambda hu: (hu + 1000) / 2000,
    "all air": lambda hu: np.full_like(hu, -1000),
}


@pytest.mark.parametrize("name", SPOILT)
def test_voxels_that_are_no_hu_are_said_to_be(phantom: tuple[Volume, LabelArray], plan: Plan, name: str) -> None:
    volume, label_map = phantom
    spoilt = SPOILT[name](volume.voxels.astype(np.float32)).astype(np.float32)
    (found,) = warnings_about(replace(volume, voxels=spoilt), label_map, plan.labels)
    assert found.startswith("the voxels do not look like Hounsfield units: ")
    assert found.endswith("Is this CT, and calibrated? If not, the label map means nothing")


def test_a_scaled_scan_is_judged_by_its_hu(phantom: tuple[Volume, LabelArray], plan: Plan) -> None:
    volume, label_map = phantom
    stored = replace(volume, voxels=(volume.voxels.astype(np.float32) + 1024) / 2, slope=2.0, intercept=-1024.0)
    assert warnings_about(stored, label_map, plan.labels) == []


def test_too_few_voxels_are_not_judged(phantom: tuple[Volume, LabelArray]) -> None:
    volume = replace(phantom[0], voxels=np.zeros((4, 4, 4), np.int16))
    assert examine(look_at(volume), np.ones((4, 4, 4), np.uint8), LABELS, 1.0).tissue_share is None


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (GOOD, ()),
        (replace(GOOD, tissue_share=None), ()),
        (replace(GOOD, tissue_share=0.011), ()),
        (replace(GOOD, tissue_share=0.009), ("0.9% of them are fat (-150 to -30) or soft tissue (0 to 150)", "1%")),
        (replace(GOOD, organs_ml=0.0), ("no organ was found; the label map is empty",)),
        (replace(GOOD, organs_ml=299.0), ("only 299 ml of organs were found, expected at least 300",)),
        (replace(GOOD, compactness=0.69), ("holds only 69% of their volume", "does the scan show the abdomen")),
        (replace(GOOD, lungs_above_liver_mm=-9.0), ()),
        (replace(GOOD, lungs_above_liver_mm=-11.0), ("the lungs lie 11 mm below the liver",)),
        (replace(GOOD, lungs_above_liver_mm=None, liver_above_kidney_mm=-40.0), ("kidney lies 40 mm above the liver",)),
        (replace(GOOD, liver_above_kidney_mm=-40.0), ()),  # the lungs say otherwise, and they are surer
        (replace(GOOD, spine_behind_liver_mm=-30.4), ("the spine lies 30 mm in front of the liver",)),
        (replace(GOOD, liver_right_of_spine_mm=-30.0), ("the liver lies 30 mm to the left of the spine",)),
        (replace(GOOD, compactness=0.1, spine_behind_liver_mm=-30.0), ("holds only 10%",)),
    ],
)
def test_limits(findings: Findings, words: tuple[str, ...]) -> None:
    found = find_warnings(findings, LABELS)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_without_a_liver_among_the_labels_only_hu_and_emptiness_are_judged() -> None:
    odd = Findings(0.1, 20.0, 0.1)
    assert find_warnings(odd, ("tumour",)) == []
    assert len(find_warnings(replace(odd, tissue_share=0.0, organs_ml=0.0), ("tumour",))) == 2


def test_warnings_are_in_the_log_and_the_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Uncalibrated, and nothing found: still segmented, exit code 0, an empty label map."""
    scan = write_scan(tmp_path / "a.nii", np.full((9, 8, 8), -900, np.int16), (20.0, 20.0, 20.0))
    plan = tiny_plan()
    plan["spacing"]["target_zyx_mm"] = [20, 20, 20]
    bundle = write_tiny_bundle(tmp_path / "bundle", plan)
    files = ("--input", scan, "--output", tmp_path / "labels.nii", "--report", tmp_path / "report.json")
    assert run_app(*files, "--bundle", bundle, "--device", "cpu") == 0
    (case,) = json.loads((tmp_path / "report.json").read_text())["cases"]
    assert case["status"] == "segmented"
    assert [text.split(":")[0].split(";")[0] for text in case["warnings"]] == [
        "the voxels do not look like Hounsfield units",
        "no organ was found",
    ]
    assert case["plausibility"]["tissue_share"] == 0
    log = capfd.readouterr().err
    assert all(f"WARNING labels: {text}" in log for text in case["warnings"])
    assert not read_label_map(tmp_path / "labels.nii").any()


def test_what_was_measured_on_real_scans_is_in_order_and_every_limit_lies_in_a_gap() -> None:
    """The recorded run of ``python -m tools.plausibility_check``."""
    recorded = json.loads((ROOT / "tools" / "plausibility_check.json").read_text())
    summary, limits = recorded["summary"], recorded["limits"]
    assert limits == {
        "tissue_share": LEAST_TISSUE_SHARE,
        "organs_ml": LEAST_ORGANS_ML,
        "compactness": LEAST_COMPACTNESS,
        "position_mm": TURNED_MM,
    }
    real = summary["as_is"]
    assert (len(real["silent"]), real["warned"]) == (10, [])
    assert real["tissue_share"][0] > 5 * limits["tissue_share"]
    assert real["organs_ml"][0] > 1.2 * limits["organs_ml"]
    # ct_002 shows hardly any lung, and upside down its liver is found all the same.
    assert [summary[turn]["silent"] for turn in ("z", "y")] == [["ct_002"], []]
    assert [len(summary[turn]["warned"]) for turn in ("z", "y")] == [9, 10]
    for change in ("stored from 0", "shifted twice", "8 bits of a soft-tissue window", "0 to 1"):
        assert summary[change]["silent"] == []
        assert summary[change]["tissue_share"][1] < limits["tissue_share"] / 5


@pytest.mark.long
@pytest.mark.parametrize("reference", ["ct_001", "ct_003", "ct_004", "ct_005", "ct_006", "ct_008"])
@pytest.mark.parametrize("axes", ["", "z", "y"])
def test_reference_labels_of_real_scans(shared_data: Path, plan: Plan, reference: str, axes: str) -> None:
    """Straight: nothing. Turned, organs and all: said, by other label maps than those that the limits were set on."""
    volume = read_volume(shared_data / "images" / f"{reference}_0000.nii.gz")
    label_map = np.asarray(nib.load(shared_data / "labels" / f"{reference}.nii.gz").dataobj).transpose()
    found = warnings_about(*turned(volume, label_map, axes), plan.labels)
    expected = {"z": "the lungs lie", "y": "the spine lies"}.get(axes)
    assert bool(found) == bool(expected)
    assert expected is None or any(expected in text for text in found)
