"""The three planes: nibabel writes scans in several orientations, and the pixels tell where the organ went."""

import os
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from app.errors import CaseError
from app.volume import Geometry, LabelArray, Vector, Volume
from tools.figures.__main__ import main
from tools.figures.labelled_scan import LabelledScan, choose_planes, read_labelled_scan, visible_box
from tools.figures.organ_colours import ORGAN_COLOURS, organ_colour_rgb
from tools.figures.planes import lay_out, write_planes
from tools.figures.slices import render_slice

LEFT_KIDNEY = 13
NAMES = tuple(f"organ {label}" for label in range(1, 14))
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def save_kidney_scan(
    folder: Path, axes: str = "RAS", label: int = LEFT_KIDNEY, labels_moved_mm: float = 0.0
) -> tuple[Path, Path]:
    """A box of tissue, 100 x 120 x 160 mm, with an organ at the patient's left, back and head; stored along ``axes``.

    Made in nibabel's RAS+, where the axes run from left to right, from back to front and from foot to head: the
    organ, 24 x 30 x 32 mm, lies low on the first and second axis and high on the third.
    """
    hu, label_map = np.full((60, 50, 40), -1000, dtype=np.int16), np.zeros((60, 50, 40), dtype=np.uint8)
    hu[5:55, 5:45] = 40
    label_map[8:20, 8:18, 26:34] = label
    wanted = nib.orientations.axcodes2ornt(axes)
    paths = folder / "case_0000.nii.gz", folder / "case.nii.gz"
    for path, array, height_mm in zip(paths, (hu, label_map), (0.0, labels_moved_mm), strict=True):
        affine = np.diag([2.0, 3.0, 4.0, 1.0])
        affine[2, 3] = height_mm
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), wanted)
        image = nib.Nifti1Image(array, affine).as_reoriented(turn)
        assert "".join(nib.aff2axcodes(image.affine)) == axes
        nib.save(image, path)
    return paths


def labelled_scan(label_map: LabelArray, spacing_zyx_mm: Vector = (1.0, 1.0, 1.0)) -> LabelledScan:
    depth, height, width = label_map.shape
    geometry = Geometry((depth, height, width), spacing_zyx_mm, IDENTITY, (0.0, 0.0, 0.0))
    return LabelledScan(Volume(np.full(label_map.shape, 40, dtype=np.int16), geometry), label_map, NAMES)


def outline_pixels(image: npt.NDArray[np.uint8], label: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.all(np.abs(image.astype(int) - organ_colour_rgb(label)) <= 1, axis=2)
    return found


def read_pixels(path: Path, mode: str = "RGB") -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == mode
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR"])
def test_an_organ_at_the_left_back_and_head_lies_right_low_and_high_in_the_picture(tmp_path: Path, axes: str) -> None:
    scan, labels = save_kidney_scan(tmp_path, axes)
    out = tmp_path / "planes.png"
    write_planes(scan, labels, out, "title", labels=NAMES)
    picture = read_pixels(out)
    panels, _ = lay_out(read_labelled_scan(scan, labels, NAMES))
    found = []
    for panel in panels:
        rows = slice(panel.top_px, panel.top_px + panel.height_px)
        columns = slice(panel.left_px, panel.left_px + panel.width_px)
        row, column = (index.mean() for index in np.nonzero(outline_pixels(picture[rows, columns], LEFT_KIDNEY)))
        found.append(
            ("right" if column > panel.width_px / 2 else "left", "low" if row > panel.height_px / 2 else "high")
        )
    assert found == [("right", "low"), ("right", "high"), ("right", "high")]
    assert [panel.marks for panel in panels] == [tuple("RLAP"), tuple("RLHF"), tuple("APHF")]


def test_lengths_in_the_picture_follow_the_spacing(tmp_path: Path) -> None:
    panels, px_per_mm = lay_out(read_labelled_scan(*save_kidney_scan(tmp_path, "ASL"), NAMES))
    sizes_mm = []
    for panel in panels:
        inside = np.nonzero(outline_pixels(panel.image, LEFT_KIDNEY))
        sizes_mm.append([(np.ptp(index) + 1) / px_per_mm for index in inside])
    # Rows, columns: back x left, head x left, head x back.
    np.testing.assert_allclose(sizes_mm, [[30, 24], [32, 24], [32, 30]], atol=1.0)


def test_equal_inputs_give_equal_bytes_and_a_palette_keeps_the_colours(tmp_path: Path) -> None:
    scan, labels = save_kidney_scan(tmp_path)
    paths = [tmp_path / f"{name}.png" for name in ("first", "second", "palette")]
    for path in paths:
        write_planes(scan, labels, path, "title", labels=NAMES, palette=path.stem == "palette")
    first, second, palette = paths
    assert first.read_bytes() == second.read_bytes()
    assert palette.stat().st_size < first.stat().st_size
    full, reduced = read_pixels(first), read_pixels(palette, "P")
    assert np.all(outline_pixels(reduced, LEFT_KIDNEY)[outline_pixels(full, LEFT_KIDNEY)])
    assert np.abs(full.astype(int) - reduced).mean() < 4


def test_planes_show_many_organs_rather_than_much_of_one() -> None:
    label_map = np.zeros((12, 10, 10), dtype=np.uint8)
    label_map[0:3, 0:8, 0:8] = 1  # all of the largest organ's area, alone
    label_map[5:8, 0:8, 0:4] = 1  # half of it, which is enough, with a second organ,
    label_map[7, 9, 6:9] = 2  # which is in slice 7 only
    assert choose_planes(labelled_scan(label_map))[0] == 7


def test_of_equally_good_planes_the_middle_one_is_taken() -> None:
    label_map = np.zeros((9, 9, 9), dtype=np.uint8)
    assert choose_planes(labelled_scan(label_map)) == (4, 4, 4)
    label_map[1:4, 2:7, 0] = 5
    assert choose_planes(labelled_scan(label_map)) == (2, 4, 0)


def test_the_box_holds_the_body_without_the_table_and_the_organs_with_room() -> None:
    label_map = np.zeros((60, 80, 80), dtype=np.uint8)
    label_map[30:33, 40:44, 40:44] = 1
    scan = labelled_scan(label_map, (5.0, 2.0, 2.0))
    scan.scan.voxels[:] = -1000
    scan.scan.voxels[:, 20:60, 10:70] = 40
    scan.scan.voxels[:, 66:68] = 200  # 4 mm thin
    z, y, x = visible_box(scan)
    assert (z.start, z.stop) == (30 - 9, 33 + 9)  # 45 mm
    assert (y.start, y.stop, x.start, x.stop) == (16, 64, 6, 74)  # 8 mm


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 30, 200), (200, 8, 8)])
def test_flat_wide_and_long_scans_without_organs_are_drawn(shape: tuple[int, int, int]) -> None:
    panels, _ = lay_out(labelled_scan(np.zeros(shape, dtype=np.uint8)))
    for panel in panels:
        assert 1 <= panel.height_px <= 1900
        assert 1 <= panel.width_px <= 1500
        assert np.ptp(panel.image, axis=2).max() == 0  # grey


def test_a_slice_is_windowed_filled_and_outlined() -> None:
    hu = np.full((20, 40), -160.0, dtype=np.float32)  # level 40, width 400: black
    hu[:, 10:20], hu[:, 20:] = 40.0, 240.0  # mid-grey, white
    label_map = np.zeros((20, 40), dtype=np.uint8)
    label_map[5:15, 30:38] = 4
    image = render_slice(hu, label_map, (200, 400))
    assert image[100, 20].tolist() == [0, 0, 0]
    assert image[100, 150].tolist() in ([127] * 3, [128] * 3)
    assert image[100, 250].tolist() == [255, 255, 255]
    colour = np.array(organ_colour_rgb(4))
    assert image[100, 300].tolist() == colour.tolist()  # outline, just inside
    assert image[100, 298].tolist() == [255, 255, 255]
    inside = image[100, 340].astype(float)  # fill, half transparent: on the way from white to the colour
    assert np.all(inside <= 255 * 0.5 + colour * 0.5 + 1)
    assert np.all(inside >= colour * 0.5)


def test_colours_can_be_told_apart() -> None:
    rgb = np.array([organ_colour_rgb(label) for label in range(1, 14)])
    assert len(ORGAN_COLOURS) == 13
    lab = rgb2lab(rgb[None] / 255)[0]
    assert min(float(deltaE_ciede2000(one, other)) for one, other in combinations(lab, 2)) > 15
    assert np.hypot(lab[:, 1], lab[:, 2]).min() > 20  # none looks grey


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    scan, labels = save_kidney_scan(tmp_path, labels_moved_mm=7.5)
    with pytest.raises(CaseError, match=r"case\.nii\.gz: not on the grid of .* the first voxel lies 7\.5 mm away"):
        read_labelled_scan(scan, labels, NAMES)
    scan, labels = save_kidney_scan(tmp_path, label=14)
    with pytest.raises(CaseError, match="label 14; expected whole numbers from 0 to 13"):
        read_labelled_scan(scan, labels, NAMES)
    with pytest.raises(CaseError, match="label -1000, 40; expected whole numbers from 0 to 13"):
        read_labelled_scan(scan, scan, NAMES)
    scan, labels = save_kidney_scan(tmp_path)
    nib.save(nib.load(labels).slicer[:, :, 1:], labels)
    with pytest.raises(CaseError, match="shape 39x50x60 instead of 40x50x60"):
        read_labelled_scan(scan, labels, NAMES)


def test_a_label_map_is_no_scan(tmp_path: Path) -> None:
    scan, labels = save_kidney_scan(tmp_path)
    with pytest.raises(CaseError, match=r"case\.nii\.gz: whole numbers from 0 to 13; expected a CT scan in HU"):
        read_labelled_scan(labels, labels, NAMES)
    read_labelled_scan(scan, labels, NAMES)
    without_air = nib.load(scan)  # clipped to soft tissue, unsigned: a scan all the same
    nib.save(nib.Nifti1Image((np.asarray(without_air.dataobj) + 1000).astype(np.uint16), without_air.affine), scan)
    read_labelled_scan(scan, labels, NAMES)


def test_the_box_around_a_slice_needs_no_room_for_what_is_elsewhere() -> None:
    label_map = np.zeros((60, 80, 80), dtype=np.uint8)
    label_map[30:33, 40:44, 40:44] = 1
    scan = labelled_scan(label_map, (5.0, 2.0, 2.0))
    scan.scan.voxels[:] = -1000
    scan.scan.voxels[:, 20:60, 30:50] = 40
    scan.scan.voxels[45:, 20:60, 4:76] = 40  # shoulders
    slab = scan.slab(28, 36)
    assert slab.geometry.origin_zyx_mm[0] == scan.geometry.origin_zyx_mm[0] + 28 * 5
    assert visible_box(slab)[0] == slice(0, 8)
    assert visible_box(slab)[2] == slice(26, 54)
    assert visible_box(scan)[0] == slice(30 - 9, 33 + 9)
    assert visible_box(scan)[2] == slice(0, 80)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan, labels = save_kidney_scan(tmp_path)
    out = tmp_path / "planes.png"
    assert main(["planes", str(scan), str(labels), str(out), "--palette"]) == 0
    assert outline_pixels(read_pixels(out, "P"), LEFT_KIDNEY).any()
    not_utf8 = labels.rename(tmp_path / os.fsdecode(b"caf\xe9.nii.gz"))
    assert main(["planes", str(scan), str(not_utf8), str(out)]) == 0
    assert main(["planes", str(scan), str(tmp_path / "missing.nii.gz"), str(out)]) == 1
    assert "missing.nii.gz: cannot be read" in capsys.readouterr().err
