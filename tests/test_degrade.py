"""Degraded scans: what each effect must do to a scan whose answer is known by hand."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.volume import Geometry, LabelArray, Matrix, Shape, Vector
from app.volume_io import write_label_map
from tools.ct import Ct, read_ct, write_ct
from tools.degrade.__main__ import main
from tools.degrade.effects import (
    NotApplicable,
    cut_slab,
    cut_to_chest,
    noise_hu,
    reduce_dose,
    shift_hu,
    slice_means,
    thicken_slices,
    turn,
)
from tools.degrade.kinds import KINDS, degrade
from tools.phantom import make_phantom

LPS: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
ORIGIN: Vector = (100.0, -50.0, 20.0)
LABELS = tuple(f"organ {label}" for label in range(1, 14))


def ct(shape: Shape, spacing: Vector = (2.0, 1.0, 1.0), direction: Matrix = LPS, hu: int = 0) -> Ct:
    voxels = np.full(shape, hu, dtype=np.int16)
    return Ct(voxels, Geometry(shape, spacing, direction, ORIGIN), np.zeros(shape, dtype=np.uint8))


def labels_of(scan: Ct) -> LabelArray:
    assert scan.label_map is not None
    return scan.label_map


def place(scan: Ct, index: tuple[float, float, float]) -> list[float]:
    """World (z, y, x) mm of a voxel, by the definition of Geometry."""
    grid = scan.geometry
    edges = np.asarray(grid.direction) @ np.diag(grid.spacing_zyx_mm)
    found: list[float] = (edges @ np.asarray(index) + grid.origin_zyx_mm).tolist()
    return found


# --- slices -----------------------------------------------------------------------------------------------


def test_five_slices_of_2_mm_make_two_of_5() -> None:
    expected = [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]]
    np.testing.assert_allclose(slice_means(5, 2.0, 5.0), expected, atol=1e-7)
    scan = ct((5, 3, 4))
    scan.voxels_hu[:] = np.array([0, 100, 200, 300, 400])[:, None, None]
    labels_of(scan)[:] = np.arange(1, 6, dtype=np.uint8)[:, None, None]
    thick = thicken_slices(scan, 5.0)
    assert thick.voxels_hu[:, 0, 0].tolist() == [80, 320]
    assert labels_of(thick)[:, 0, 0].tolist() == [2, 4]  # centres at 2.5 and 7.5 mm lie in slices 1 and 3
    assert thick.geometry.spacing_zyx_mm == (5.0, 1.0, 1.0)
    # The first old slice begins 1 mm below its centre; the first new centre lies 2.5 mm above that.
    assert place(thick, (0, 0, 0)) == pytest.approx([101.5, -50, 20])


def test_the_mean_of_all_slices_stays() -> None:
    scan = ct((30, 4, 4), (1.0, 1.0, 1.0))
    scan.voxels_hu[:] = np.random.default_rng(0).integers(-1000, 1000, scan.voxels_hu.shape)
    thick = thicken_slices(scan, 7.5)
    assert thick.voxels_hu.shape == (4, 4, 4)
    np.testing.assert_allclose(thick.voxels_hu.mean(axis=0), scan.voxels_hu.mean(axis=0), atol=0.51)


@pytest.mark.parametrize(("spacing", "words"), [(5.0, "slices of 5 mm; expected thinner"), (2.0, "4 mm high")])
def test_thick_slices_need_thin_ones(spacing: float, words: str) -> None:
    with pytest.raises(NotApplicable, match=words):
        thicken_slices(ct((2, 3, 3), (spacing, 1.0, 1.0)), 5.0)


# --- noise and values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [8.0, 25.0])
def test_the_noise_of_water_is_found_and_doubled(sigma: float) -> None:
    scan = ct((12, 80, 80))
    white = np.random.default_rng(1).normal(50, sigma, scan.voxels_hu.shape)
    scan.voxels_hu[:] = np.rint(white)
    assert noise_hu(scan) == pytest.approx(sigma, rel=0.08)
    noisier = reduce_dose(scan, 0.25, np.random.default_rng(2))
    assert noisier.voxels_hu.astype(float).std() == pytest.approx(2 * sigma, rel=0.08)
    assert noisier.voxels_hu.mean() == pytest.approx(50, abs=1)


def test_the_noise_of_a_patient_is_told_from_his_organs() -> None:
    shape, spacing = (48, 96, 96), (4.0, 4.0, 4.0)
    for noise in (10.0, 30.0):
        phantom = make_phantom(0, shape, spacing, noise_hu=noise)
        found = noise_hu(Ct(phantom.voxels_hu, phantom.geometry))
        assert found == pytest.approx(noise, rel=0.2)


def test_noise_of_air_cannot_be_told() -> None:
    with pytest.raises(NotApplicable, match="no soft tissue"):
        noise_hu(ct((4, 9, 9), hu=-1000))


@pytest.mark.parametrize("padding", [-2000, 0, 1, 50])
def test_padding_shows_no_noise(padding: int) -> None:
    """Three quarters of the slice are of one value that soft tissue could have."""
    scan = ct((4, 120, 120), hu=padding)
    scan.voxels_hu[:, 30:90, 30:90] = np.rint(np.random.default_rng(1).normal(50, 14, (4, 60, 60)))
    assert noise_hu(scan) == pytest.approx(14, rel=0.08)


def test_a_scan_without_noise_has_none_to_double() -> None:
    """A body of one value in air; its edges are no noise."""
    scan = ct((4, 80, 80), hu=-1000)
    scan.voxels_hu[:, 20:60, 20:60] = 50
    with pytest.raises(NotApplicable, match="no soft tissue with noise in it"):
        degrade(scan, "quarter-dose")


def test_a_seed_decides_the_noise() -> None:
    scan = ct((4, 40, 40), hu=40)
    scan.voxels_hu[:] += np.random.default_rng(0).integers(-20, 20, scan.voxels_hu.shape).astype(np.int16)
    one, again, other = (degrade(scan, "quarter-dose", seed).voxels_hu for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_values_shift_and_nothing_wraps_around() -> None:
    scan = ct((1, 1, 3))
    scan.voxels_hu[0, 0] = [-1024, 0, 32767]
    assert shift_hu(scan, 40).voxels_hu.tolist() == [[[-984, 40, 32767]]]
    assert shift_hu(scan, -40).voxels_hu.tolist() == [[[-1064, -40, 32727]]]


# --- what is cut ------------------------------------------------------------------------------------------


def test_the_slab_shows_the_most_of_the_organs() -> None:
    """45 mm are nine slices of 5 mm; organs fill 20 to 28, and a smaller one 2 to 8."""
    scan = ct((40, 4, 4), (5.0, 1.0, 1.0))
    labels_of(scan)[20:29, :3] = 1
    labels_of(scan)[2:9, :1] = 2
    slab = cut_slab(scan, 45.0)
    assert slab.geometry.shape_zyx == (9, 4, 4)
    assert place(slab, (0, 0, 0)) == place(scan, (20, 0, 0))
    assert labels_of(slab)[:, 0, 0].tolist() == [1] * 9
    middle = cut_slab(ct((41, 4, 4), (5.0, 1.0, 1.0)), 45.0)
    assert place(middle, (0, 0, 0)) == place(scan, (16, 0, 0))
    with pytest.raises(NotApplicable, match="9 slices; expected more than 9, which are 45 mm"):
        cut_slab(slab, 45.0)


def test_the_chest_begins_above_the_abdomen_and_vessels_do_not_count() -> None:
    """The liver ends in slice 10, the aorta in 35; 10 mm are four slices of 3 mm, so slice 15 is the first.

    Nine voxels of 3 x 20 x 20 mm are 10.8 ml; a kidney of three, 3.6 ml, in the chest is nobody's.
    """
    scan = ct((40, 3, 3), (3.0, 20.0, 20.0))
    labels_of(scan)[20:23, 2, 2] = 13
    labels_of(scan)[2:11, 0, 0] = 1
    labels_of(scan)[0:36, 1, 1] = 5
    chest = cut_to_chest(scan)
    assert place(chest, (0, 0, 0)) == place(scan, (15, 0, 0))
    assert chest.geometry.shape_zyx == (25, 3, 3)
    assert np.unique(labels_of(chest)).tolist() == [0, 5]


def test_there_is_not_always_a_chest() -> None:
    scan = ct((20, 3, 3), (3.0, 100.0, 100.0))
    with pytest.raises(NotApplicable, match="no organ of the abdomen"):
        cut_to_chest(scan)
    labels_of(scan)[8, 0, 0] = 1
    with pytest.raises(NotApplicable, match="21 mm of chest above the organs; expected 30 mm"):
        cut_to_chest(scan)
    with pytest.raises(NotApplicable, match="no label map"):
        cut_to_chest(Ct(scan.voxels_hu, scan.geometry))


# --- turned -----------------------------------------------------------------------------------------------


def test_a_quarter_turn_is_numpys() -> None:
    scan = ct((2, 5, 8), (2.0, 1.5, 1.5))
    random = np.random.default_rng(0)
    scan.voxels_hu[:] = random.integers(-1000, 1000, scan.voxels_hu.shape)
    labels_of(scan)[:] = random.integers(0, 14, scan.voxels_hu.shape)
    turned = turn(scan, 90.0)
    assert np.array_equal(turned.voxels_hu, np.rot90(scan.voxels_hu, axes=(1, 2)))
    assert np.array_equal(labels_of(turned), np.rot90(labels_of(scan), axes=(1, 2)))
    middle, before = place(turned, (0.5, 3.5, 2.0)), place(scan, (0.5, 2.0, 3.5))
    assert middle == pytest.approx(before)


def test_a_point_goes_where_trigonometry_says() -> None:
    """40 mm to the left and 10 mm to the back; the left side comes up, on voxels of 2 x 1 mm."""
    scan = ct((1, 61, 121), (2.0, 2.0, 1.0), hu=-1024)
    scan.voxels_hu[0, 30 + 4 : 30 + 7, 60 + 37 : 60 + 44] = 100
    labels_of(scan)[0, 30 + 4 : 30 + 7, 60 + 37 : 60 + 44] = 3
    turned = turn(scan, 15.0)
    height, width = labels_of(turned).shape[1:]
    _, y, x = np.argwhere(labels_of(turned) == 3).mean(axis=0)
    left, back = x - (width - 1) / 2, 2 * (y - (height - 1) / 2)
    assert left == pytest.approx(40 * np.cos(np.pi / 12) + 10 * np.sin(np.pi / 12), abs=0.7)
    assert back == pytest.approx(10 * np.cos(np.pi / 12) - 40 * np.sin(np.pi / 12), abs=0.7)
    assert np.count_nonzero(labels_of(turned)) == pytest.approx(21, abs=4)
    # 122 x 121 mm: 122 cos 15 + 121 sin 15 = 149.2 mm high, 75 voxels of 2 mm; 121 cos 15 + 122 sin 15 = 148.5 wide.
    assert (height, width) == (75, 149)
    assert turned.voxels_hu[0, 0, 0] == -1024


def test_an_oblique_grid_turns_about_its_own_middle() -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    oblique: Matrix = ((float(c), float(-s), 0.0), (float(s), float(c), 0.0), (0.0, 0.0, 1.0))
    scan = ct((3, 10, 20), (2.0, 1.0, 1.0), oblique)
    turned = turn(scan, 15.0)
    _, height, width = turned.voxels_hu.shape
    assert place(turned, (1, (height - 1) / 2, (width - 1) / 2)) == pytest.approx(place(scan, (1, 4.5, 9.5)))
    assert turned.geometry.direction == oblique


# --- files ------------------------------------------------------------------------------------------------


def test_every_kind_keeps_scan_and_label_map_together() -> None:
    phantom = make_phantom(2, (90, 40, 40), (4.0, 8.0, 8.0))
    scan = Ct(phantom.voxels_hu, phantom.geometry, phantom.label_map)
    for kind in KINDS:
        found = degrade(scan, kind)
        assert found.voxels_hu.shape == labels_of(found).shape == found.geometry.shape_zyx
        assert found.voxels_hu.dtype == np.int16
        assert labels_of(found).dtype == np.uint8
        liver = labels_of(found) == 1
        if kind != "chest":
            assert 60 < np.median(found.voxels_hu[liver]) < 170  # 110 HU, 40 more or less


def test_the_command_line_writes_both_where_they_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom = make_phantom(3, (24, 32, 32), (5.0, 12.0, 12.0))
    write_ct(tmp_path / "scan.nii.gz", phantom.voxels_hu, phantom.geometry)
    write_label_map(tmp_path / "labels.nii.gz", phantom.label_map, phantom.volume)
    files = [str(tmp_path / name) for name in ("scan.nii.gz", "out.nii.gz", "labels.nii.gz", "labels_out.nii.gz")]
    labels = ["--labels", files[2], "--labels-out", files[3]]
    assert main([*files[:2], "--kind", "slices-7.5mm", *labels]) == 0
    image, label_map = nib.load(files[1]), nib.load(files[3])
    assert image.shape == label_map.shape == (32, 32, 16)
    np.testing.assert_allclose(image.affine, label_map.affine)
    np.testing.assert_allclose(image.affine[:3, :3], np.diag([-12, -12, 7.5]))
    source = nib.load(files[0])
    np.testing.assert_allclose(image.affine @ [0, 0, -0.5, 1], source.affine @ [0, 0, -0.5, 1], atol=1e-4)
    read = read_ct(Path(files[1]), Path(files[3]), LABELS)
    expected = degrade(Ct(phantom.voxels_hu, phantom.geometry, phantom.label_map), "slices-7.5mm")
    assert np.array_equal(read.voxels_hu, expected.voxels_hu)
    assert np.array_equal(labels_of(read), labels_of(expected))
    assert main([*files[:2], "--kind", "slices-5mm"]) == 1
    assert f"{files[0]}: slices of 5 mm; expected thinner ones" in capsys.readouterr().err
    assert main([*files[:2], "--kind", "hu+40", "--labels-out", files[3]]) == 2


@pytest.mark.parametrize("seed", ["-1", "0.5", "x"])
def test_a_seed_is_a_whole_number_from_0(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["scan.nii.gz", "out.nii.gz", "--kind", "quarter-dose", "--seed", seed])
    assert stopped.value.code == 2
    assert f"--seed: '{seed}': expected a whole number from 0" in capsys.readouterr().err


def test_no_file_is_written_over_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phantom = make_phantom(2, (20, 16, 16), (4.0, 8.0, 8.0))
    scan, labels, out = (tmp_path / f"{name}.nii.gz" for name in ("scan", "labels", "out"))
    write_ct(scan, phantom.voxels_hu, phantom.geometry)
    write_label_map(labels, phantom.label_map, phantom.volume)
    before = scan.read_bytes(), labels.read_bytes()
    kind = ["--kind", "hu+40", "--labels", str(labels), "--labels-out"]
    for first, second in ((scan, out), (out, labels), (out, tmp_path / "." / "out.nii.gz"), (labels, out)):
        assert main([str(scan), str(first), *kind, str(second)]) == 2
        assert "expected different files" in capsys.readouterr().err
    assert (scan.read_bytes(), labels.read_bytes()) == before
    assert not out.exists()


def test_a_flipped_scan_with_slope_is_read_as_hu_on_the_patients_axes(tmp_path: Path) -> None:
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)  # x, y, z; RAS
    image = nib.Nifti1Image(stored, np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "ras.nii.gz")
    found = read_ct(tmp_path / "ras.nii.gz", None, LABELS)
    assert found.label_map is None
    raw = np.asarray(nib.load(tmp_path / "ras.nii.gz").dataobj)  # nibabel applies slope and intercept
    assert np.array_equal(found.voxels_hu, np.rint(raw).astype(int).transpose(2, 1, 0)[:, ::-1, ::-1])
    assert found.geometry.spacing_zyx_mm == (4.0, 3.0, 2.0)
