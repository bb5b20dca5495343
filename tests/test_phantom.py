"""The phantom: deterministic, anatomically sensible, and readable by other libraries."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from app.bundle import load_bundle
from app.volume_io import read_volume
from tools.phantom import Phantom, main, make_phantom
from tools.phantom_anatomy import ORGANS

COARSE: dict[str, Any] = {"shape_zyx": (48, 64, 64), "spacing_zyx_mm": (6.0, 6.0, 6.0)}
LABELS = {organ.name: label for label, organ in enumerate(ORGANS, start=1)}


def centre_zyx_mm(phantom: Phantom, organ: str) -> npt.NDArray[np.float64]:
    voxels = np.argwhere(phantom.label_map == LABELS[organ]).mean(axis=0)
    return np.asarray(voxels * phantom.geometry.spacing_zyx_mm + phantom.geometry.origin_zyx_mm)


def median_hu(phantom: Phantom, organ: str) -> float:
    return float(np.median(phantom.voxels_hu[phantom.label_map == LABELS[organ]]))


def test_labels_are_those_of_the_default_bundle(default_bundle: Path) -> None:
    assert tuple(LABELS) == load_bundle(default_bundle).plan.labels


def test_a_seed_decides_everything() -> None:
    first, again, other = (make_phantom(seed, **COARSE) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.voxels_hu, again.voxels_hu)
    np.testing.assert_array_equal(first.label_map, again.label_map)
    assert np.mean(first.label_map != other.label_map) > 0.02


@pytest.mark.parametrize("seed", range(4))
def test_all_organs_are_there_in_plausible_sizes(seed: int) -> None:
    phantom = make_phantom(seed)
    volumes = np.bincount(phantom.label_map.ravel(), minlength=14)[1:] * 0.027  # ml
    assert phantom.label_map.max() == 13
    small, large = volumes.min(), volumes.max()
    assert small > 0.8
    assert volumes[LABELS["liver"] - 1] > 500
    assert large < 2500
    assert phantom.voxels_hu.dtype == np.int16
    assert phantom.label_map.dtype == np.uint8


@pytest.mark.parametrize("seed", range(4))
def test_organs_lie_where_they_belong(seed: int) -> None:
    phantom = make_phantom(seed, **COARSE)
    z, y, x = range(3)  # to the head, to the back, to the left
    places = {organ: centre_zyx_mm(phantom, organ) for organ in LABELS}
    assert places["left kidney"][x] > 20 > -20 > places["right kidney"][x]
    assert places["left adrenal gland"][x] > places["right adrenal gland"][x]
    assert places["left adrenal gland"][z] > places["left kidney"][z]
    assert places["spleen"][x] > 50 > -20 > places["liver"][x]
    assert places["inferior vena cava"][x] < places["aorta"][x]
    assert places["esophagus"][z] > places["stomach"][z] > places["duodenum"][z]
    assert places["gallbladder"][y] < places["right kidney"][y]


def test_phases_enhance_the_same_patient() -> None:
    native, arterial, portal = (
        make_phantom(3, contrast_phase=phase, **COARSE) for phase in ("native", "arterial", "portal")
    )
    np.testing.assert_array_equal(native.label_map, arterial.label_map)
    np.testing.assert_array_equal(native.label_map, portal.label_map)
    assert 25 < median_hu(native, "aorta") < 60
    assert median_hu(arterial, "aorta") > median_hu(portal, "aorta") + 80 > median_hu(native, "aorta") + 150
    assert median_hu(portal, "liver") > median_hu(arterial, "liver") + 20
    assert median_hu(portal, "gallbladder") < 30


def test_noise_has_the_size_asked_for_and_neighbours_share_it() -> None:
    quiet, noisy = (make_phantom(4, noise_hu=noise, **COARSE) for noise in (0.0, 20.0))
    np.testing.assert_array_equal(quiet.label_map, noisy.label_map)
    noise = (noisy.voxels_hu.astype(float) - quiet.voxels_hu)[quiet.voxels_hu > -900]
    assert abs(noise.mean()) < 1
    assert noise.std() == pytest.approx(20, rel=0.1)
    difference = (noisy.voxels_hu.astype(float) - quiet.voxels_hu)[20:28, 24:40, 20:44]
    assert np.corrcoef(difference[..., 1:].ravel(), difference[..., :-1].ravel())[0, 1] > 0.2


def test_edges_are_partial_volumes() -> None:
    phantom = make_phantom(5, noise_hu=0, organs=0, **COARSE)
    body_edge = (phantom.voxels_hu > -950) & (phantom.voxels_hu < -200)
    assert phantom.label_map.max() == 0
    assert 0.001 < body_edge.mean() < 0.2


def test_fewer_organs_leave_the_rest_of_the_patient_alone() -> None:
    few, all_organs = make_phantom(6, organs=3, **COARSE), make_phantom(6, **COARSE)
    assert np.unique(few.label_map).tolist() == [0, 1, 2, 3]
    kept = (all_organs.label_map >= 1) & (all_organs.label_map <= 3)
    np.testing.assert_array_equal(few.label_map[kept], all_organs.label_map[kept])


def test_a_cut_phantom_is_the_whole_one_without_some_slices() -> None:
    whole, cut = make_phantom(7, **COARSE), make_phantom(7, field_of_view=(0.25, 0.75), **COARSE)
    np.testing.assert_array_equal(cut.voxels_hu, whole.voxels_hu[12:36])
    np.testing.assert_array_equal(cut.label_map, whole.label_map[12:36])
    assert cut.geometry.shape_zyx == (24, 64, 64)
    assert cut.geometry.origin_zyx_mm[0] == whole.geometry.origin_zyx_mm[0] + 12 * 6


@pytest.mark.parametrize("arguments", [{"organs": 14}, {"field_of_view": (0.5, 0.5)}, {"field_of_view": (0.0, 1.1)}])
def test_impossible_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_phantom(0, **{**COARSE, **arguments})


@pytest.mark.parametrize(
    "arguments", [["--count", "0"], ["--seed", "-1"], ["--shape", "0", "9", "9"], ["--spacing", "1", "nan", "1"]]
)
def test_impossible_options_are_named(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "phantoms"), *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "phantoms").exists()


def test_command_line_writes_what_other_libraries_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--count", "1", "--seed", "5", "--phase", "arterial", "--labels"]) == 0
    image_path, label_path = tmp_path / "images" / "phantom_000_0000.nii.gz", tmp_path / "labels" / "phantom_000.nii.gz"
    assert capsys.readouterr().out.split() == [str(image_path)]
    expected = make_phantom(5, contrast_phase="arterial")
    image, labels = nib.load(image_path), nib.load(label_path)
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, expected.voxels_hu)
    np.testing.assert_array_equal(np.asarray(labels.dataobj).T, expected.label_map)
    np.testing.assert_allclose(labels.affine, image.affine)
    read = read_volume(image_path)
    assert read.geometry == expected.geometry
    assert read.warnings == ()
    first = image_path.read_bytes()
    assert main(["--out", str(tmp_path), "--seed", "5", "--phase", "arterial"]) == 0
    assert image_path.read_bytes() == first
