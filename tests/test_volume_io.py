"""Scans in, label maps out: geometry against nibabel and SimpleITK, every kind of voxel, and headers that lie."""

import errno
import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from app.errors import CaseError, FolderError
from app.volume import AIR_HU, Geometry, Vector, Volume
from app.volume_io import _replace_impossible, read_header, read_volume, write_label_map
from tests.conftest import Affine, ras_affine, rotated_affine, tissue, write_scan

SHAPE = (10, 11, 12)


def permuted_affine() -> Affine:
    """Columns run to the head, rows to the left, slices to the front."""
    return np.array([[0.0, -2.0, 0.0, 5.0], [0.0, 0.0, 3.0, 6.0], [1.5, 0.0, 0.0, 7.0], [0.0, 0.0, 0.0, 1.0]])


AFFINES = {
    "usual": np.diag([-1.0, -2.0, 3.0, 1.0]),
    "flipped": np.diag([1.0, -2.0, -3.0, 1.0]),
    "permuted": permuted_affine(),
    "oblique": rotated_affine(),
    "steep": rotated_affine(80.0),
}


def only(code: str) -> Callable[[Any], None]:
    """Leaves one of the two transforms in force."""

    def edit(header: Any) -> None:
        header["qform_code" if code == "sform_code" else "sform_code"] = 0

    return edit


def simpleitk_affine(path: Path) -> Affine:
    """4x4 to RAS as SimpleITK, whose world is LPS, sees the file."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def unit_grid(dtype: Any = np.uint8) -> Volume:
    identity = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return Volume(np.zeros((2, 3, 4), dtype), Geometry((2, 3, 4), (1.0, 1.0, 1.0), identity, (0.0, 0.0, 0.0)))


# --- geometry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["sform_code", "qform_code"])
@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_geometry_is_what_nibabel_and_simpleitk_read(tmp_path: Path, name: str, code: str, suffix: str) -> None:
    path = write_scan(tmp_path / f"scan{suffix}", tissue(), affine=AFFINES[name], edit=only(code))
    volume = read_volume(path)
    np.testing.assert_allclose(ras_affine(volume.geometry), nib.load(path).affine, atol=1e-5)
    np.testing.assert_allclose(ras_affine(volume.geometry), simpleitk_affine(path), atol=1e-5)
    assert volume.geometry.shape_zyx == SHAPE
    assert volume.warnings == ()
    assert np.array_equal(volume.voxels, tissue())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_versions_and_byte_orders_read_alike(tmp_path: Path, version: int, endianness: Literal["<", ">"]) -> None:
    path = write_scan(tmp_path / "a.nii", tissue(), affine=rotated_affine(), version=version, endianness=endianness)
    assert isinstance(nib.load(path), nib.Nifti2Image if version == 2 else nib.Nifti1Image)
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, tissue())
    assert volume.voxels.dtype.isnative
    np.testing.assert_allclose(ras_affine(volume.geometry), nib.load(path).affine, atol=1e-5)


def test_sheared_grid_keeps_its_shear(tmp_path: Path) -> None:
    affine = rotated_affine(shear=0.2)  # SimpleITK refuses it: its directions must be orthonormal
    path = write_scan(tmp_path / "a.nii", tissue(), affine=affine, edit=only("sform_code"))
    volume = read_volume(path)
    np.testing.assert_allclose(ras_affine(volume.geometry), affine, atol=1e-5)
    assert volume.geometry.voxel_volume_ml == pytest.approx(0.006)  # a shear of 1 x 2 x 3 mm keeps its volume
    assert volume.geometry.spacing_zyx_mm[0] == pytest.approx(3 * np.hypot(1, 0.2))


def test_without_codes_the_scan_lies_as_simpleitk_lays_it(tmp_path: Path) -> None:
    def edit(header: Any) -> None:
        header["sform_code"] = header["qform_code"] = 0

    path = write_scan(tmp_path / "a.nii", tissue(), affine=rotated_affine(), edit=edit)
    volume = read_volume(path)
    np.testing.assert_allclose(ras_affine(volume.geometry), simpleitk_affine(path), atol=1e-6)
    assert volume.geometry.spacing_zyx_mm == (3.0, 2.0, 1.0)
    assert any("nothing about orientation" in warning for warning in volume.warnings)


@pytest.mark.parametrize(("unit", "zooms_xyz"), [("meter", (0.001, 0.002, 0.003)), ("micron", (1e3, 2e3, 3e3))])
def test_lengths_in_other_units_become_millimetres(tmp_path: Path, unit: str, zooms_xyz: Vector) -> None:
    def edit(header: Any) -> None:
        header.set_xyzt_units(unit)

    path = write_scan(tmp_path / "a.nii", tissue(), affine=rotated_affine(zooms_xyz=zooms_xyz), edit=edit)
    volume = read_volume(path)
    assert volume.geometry.spacing_zyx_mm == pytest.approx((3, 2, 1))
    np.testing.assert_allclose(ras_affine(volume.geometry), simpleitk_affine(path), rtol=1e-5, atol=1e-6)
    assert any("not in mm" in warning for warning in volume.warnings)


def move_qform(header: Any) -> None:
    header["qoffset_x"] += 0.6  # of a voxel


def break_qform(header: Any) -> None:
    header["quatern_b"] = header["quatern_c"] = header["quatern_d"] = 0.9


def nan_qform(header: Any) -> None:
    header["quatern_c"] = np.nan


@pytest.mark.parametrize("edit", [move_qform, break_qform, nan_qform])
def test_the_sform_is_used_where_the_qform_disagrees(tmp_path: Path, edit: Callable[[Any], None]) -> None:
    volume = read_volume(write_scan(tmp_path / "a.nii", tissue(), affine=rotated_affine(), edit=edit))
    np.testing.assert_allclose(ras_affine(volume.geometry), rotated_affine(), atol=1e-5)
    assert volume.warnings == ("sform and qform disagree; the sform is used",)


def test_a_shift_of_less_than_half_a_voxel_is_no_disagreement(tmp_path: Path) -> None:
    def edit(header: Any) -> None:
        header["qoffset_x"] += 0.4

    assert read_volume(write_scan(tmp_path / "a.nii", tissue(), edit=edit)).warnings == ()


def test_spacing_of_pixdim_and_sform_may_differ(tmp_path: Path) -> None:
    def edit(header: Any) -> None:
        header["pixdim"][3] = 4.0

    volume = read_volume(write_scan(tmp_path / "a.nii", tissue(), edit=edit))
    assert volume.geometry.spacing_zyx_mm == (3.0, 2.0, 1.0)
    assert any("1 x 2 x 3 mm in the affine and 1 x 2 x 4 mm in pixdim" in warning for warning in volume.warnings)


@pytest.mark.parametrize("code", ["qform_code", "both"])
def test_qfac_of_zero_counts_as_one(tmp_path: Path, code: str) -> None:
    def edit(header: Any) -> None:
        if code != "both":
            only(code)(header)
        header["pixdim"][0] = 0

    path = write_scan(tmp_path / "a.nii", tissue(), affine=rotated_affine(), edit=edit)
    volume = read_volume(path)
    np.testing.assert_allclose(ras_affine(volume.geometry), simpleitk_affine(path), atol=1e-5)
    assert volume.warnings == ()


def test_a_qform_alone_must_be_a_rotation(tmp_path: Path) -> None:
    def edit(header: Any) -> None:
        only("qform_code")(header)
        break_qform(header)

    with pytest.raises(CaseError, match=r"a\.nii: .*affine.*expected three independent axes\. Repair"):
        read_volume(write_scan(tmp_path / "a.nii", tissue(), edit=edit))


def test_a_singular_sform_is_refused(tmp_path: Path) -> None:
    def edit(header: Any) -> None:
        header["srow_y"] = header["srow_x"]

    with pytest.raises(CaseError, match="singular or vast; expected three independent axes"):
        read_volume(write_scan(tmp_path / "a.nii", tissue(), edit=edit))


@pytest.mark.parametrize("extra", [(1,), (1, 1), (1, 1, 1, 1)])
def test_trailing_axes_of_length_one_are_dropped(tmp_path: Path, extra: tuple[int, ...]) -> None:
    path = write_scan(tmp_path / "a.nii", tissue().reshape(*extra, *SHAPE), affine=rotated_affine())
    assert nib.load(path).ndim == 3 + len(extra)
    volume = read_volume(path)
    assert volume.voxels.shape == SHAPE
    write_label_map(tmp_path / "labels.nii", volume.voxels.astype(np.uint8), volume)
    assert nib.load(tmp_path / "labels.nii").shape == SHAPE[::-1]


# --- voxels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_reads_as_nibabel_reads_it(tmp_path: Path, dtype: str, endianness: Literal["<", ">"]) -> None:
    values = np.random.default_rng(0).integers(0, 120, SHAPE).astype(dtype)
    path = write_scan(tmp_path / "a.nii.gz", values, endianness=endianness)
    volume = read_volume(path)
    assert volume.voxels.dtype == np.dtype(dtype)
    assert np.array_equal(volume.voxels.transpose(), np.asarray(nib.load(path).dataobj))


@pytest.mark.parametrize(
    ("slope", "intercept"), [(2.0, -1024.0), (0.5, 0.0), (0.0, 7.0), (np.nan, np.nan), (-1.0, 3.0)]
)
def test_scaling_is_nibabels(tmp_path: Path, slope: float, intercept: float) -> None:
    def edit(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = slope, intercept

    path = write_scan(tmp_path / "a.nii", tissue(), edit=edit)
    volume = read_volume(path)
    hu = volume.voxels.astype(np.float64) * volume.slope + volume.intercept
    np.testing.assert_allclose(hu.transpose(), nib.load(path).get_fdata())


def test_a_slope_with_a_nan_intercept_is_refused(tmp_path: Path) -> None:
    def edit(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 2, np.nan

    with pytest.raises(CaseError, match="scl_inter is nan; expected a number"):
        read_volume(write_scan(tmp_path / "a.nii", tissue(), edit=edit))


@pytest.mark.parametrize(("bad", "dtype"), [(np.nan, "f4"), (np.inf, "f4"), (-np.inf, "f8"), (-1e300, "f8")])
def test_voxels_without_a_value_become_air(tmp_path: Path, bad: float, dtype: str) -> None:
    """-1e300 is finite in the file and would be infinite in the network's float32."""

    def edit(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = 2, 100

    values = tissue().astype(dtype)
    values[3, 4, 5] = values[0, 0, 0] = bad
    volume = read_volume(write_scan(tmp_path / "a.nii", values, edit=edit))
    hu = volume.voxels * volume.slope + volume.intercept
    assert hu[3, 4, 5] == hu[0, 0, 0] == AIR_HU
    assert np.array_equal(hu[1], tissue()[1] * 2 + 100)
    assert volume.warnings == ("2 voxels are NaN or infinite or beyond 1e+06 HU; taken as air",)


@pytest.mark.parametrize(
    ("dtype", "slope", "bad", "air_hu"),
    [
        ("i4", 1.0, -(2**31), -1024),  # what software writes where there is no voxel
        ("f4", 1.0, -3.4e38, -1024),
        ("f4", 1.0, 1.1e6, -1024),
        ("u4", 1.0, 2**32 - 1, 0),  # this type cannot say less
        ("i2", 100.0, 30_000, -1000),  # -10 stored, the nearest to -1024
    ],
)
def test_voxels_beyond_hounsfield_units_become_air(
    tmp_path: Path, dtype: str, slope: float, bad: float, air_hu: float
) -> None:
    values = np.full((10, 11, 12), 7, dtype)
    values[3, 4, 5] = bad
    volume = read_volume(
        write_scan(tmp_path / "a.nii", values, edit=lambda header: header.__setitem__("scl_slope", slope))
    )
    assert volume.voxels[3, 4, 5] * volume.slope == air_hu
    assert np.count_nonzero(volume.voxels == 7) == values.size - 1
    assert volume.warnings == ("1 voxels are NaN or infinite or beyond 1e+06 HU; taken as air",)


@pytest.mark.parametrize(("field", "value"), [("scl_slope", -1e37), ("scl_inter", 3e38)])
def test_a_scaling_beyond_float32_is_refused(tmp_path: Path, field: str, value: float) -> None:
    def edit(header: Any) -> None:
        header["scl_slope"] = 1
        header[field] = value

    with pytest.raises(CaseError, match=rf"{field} is .*; expected a number that leads to HU\. Repair"):
        read_volume(write_scan(tmp_path / "a.nii", tissue(), edit=edit))


@pytest.mark.parametrize(("version", "slope"), [(2, 1e-300), (2, -1e-300), (2, 1e-40), (1, 1e-40)])
def test_a_slope_too_small_for_float32_is_refused(tmp_path: Path, version: int, slope: float) -> None:
    def edit(header: Any) -> None:
        header["scl_slope"], header["scl_inter"] = slope, 1e20

    with pytest.raises(CaseError, match=r"scl_slope is .*; expected a number that leads to HU\. Repair"):
        read_volume(write_scan(tmp_path / "a.nii", tissue(), version=version, edit=edit))


def test_air_beyond_any_number_is_the_nearest_voxel() -> None:
    """Reading refuses such a scaling; should one come through, it must not end the run."""
    volume = replace(unit_grid(np.int16), slope=1e-300, intercept=1e20)
    assert _replace_impossible(volume) == volume.voxels.size
    assert np.all(volume.voxels == -(2**15))


def test_a_single_slice_is_a_warning(tmp_path: Path) -> None:
    (warning,) = read_volume(write_scan(tmp_path / "a.nii", tissue((1, 11, 12)))).warnings
    assert "single slice" in warning


@pytest.mark.parametrize("side", [8, 64, 128])
def test_a_wrong_checksum_is_found_whatever_the_size(tmp_path: Path, side: int) -> None:
    """The voxels are all there; only the end of the stream, which need not be read for them, tells."""
    packed = bytearray(write_scan(tmp_path / "a.nii.gz", tissue((side, side, side))).read_bytes())
    packed[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(packed)
    with pytest.raises(CaseError, match=r"damaged gzip stream \(CRC check failed"):
        read_volume(tmp_path / "a.nii.gz")


def test_gzip_members_and_padding_are_one_stream(tmp_path: Path) -> None:
    raw = write_scan(tmp_path / "a.nii", tissue()).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]) + bytes(512))
    assert np.array_equal(read_volume(tmp_path / "b.nii.gz").voxels, tissue())


# --- label maps -------------------------------------------------------------------------------------------


def crowd_header(header: Any) -> None:
    """Fills every field that may or must not reach the label map; extension included (vox_offset)."""
    header["descrip"] = b"Jane Doe 1970-01-01"
    header["aux_file"] = b"private.txt"
    header["intent_name"] = b"secret"
    header["intent_code"] = 3
    if "db_name" in header:
        header["db_name"] = b"Doe^Jane"
        header["data_type"] = b"hush"
    header["cal_max"], header["cal_min"] = 300, -200
    header["scl_slope"], header["scl_inter"] = 2, -1024
    header["sform_code"], header["qform_code"] = 2, 4
    header.set_xyzt_units("mm", "sec")


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", AFFINES)
def test_label_map_has_the_scans_header_and_none_of_its_text(
    tmp_path: Path, name: str, version: int, endianness: Literal["<", ">"]
) -> None:
    path = write_scan(tmp_path / "a.nii", tissue(), (3, 2, 1), AFFINES[name], version, endianness, crowd_header)
    volume = read_volume(path)
    label_map = (tissue() > 0).astype(np.uint8)
    write_label_map(tmp_path / "labels.nii.gz", label_map, volume)
    scan, labels = nib.load(path), nib.load(tmp_path / "labels.nii.gz")
    assert type(labels) is type(scan)
    assert labels.header.endianness == "<"
    assert labels.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(labels.dataobj).transpose(), label_map)
    for transform in ("get_sform", "get_qform"):
        found, code = getattr(labels, transform)(coded=True)
        expected, expected_code = getattr(scan, transform)(coded=True)
        assert np.array_equal(found, expected)
        assert code == expected_code
    assert np.array_equal(labels.header["pixdim"][:4], scan.header["pixdim"][:4])
    assert labels.header.get_xyzt_units() == scan.header.get_xyzt_units() == ("mm", "sec")
    assert labels.shape == scan.shape
    raw = nib.load(tmp_path / "labels.nii.gz").header.__class__(
        gzip.decompress((tmp_path / "labels.nii.gz").read_bytes())[: labels.header.sizeof_hdr]
    )
    assert (float(raw["scl_slope"]), float(raw["scl_inter"])) == (1.0, 0.0)
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        assert field not in raw or raw[field].tobytes().strip(b"\0") == b""
    assert (float(raw["cal_max"]), float(raw["cal_min"]), int(raw["intent_code"])) == (0, 0, 0)


def test_extensions_are_not_copied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(tissue().transpose(), np.diag([-1.0, -2.0, 3.0, 1.0]))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.voxels, tissue())
    write_label_map(tmp_path / "labels.nii", np.zeros(SHAPE, np.uint8), volume)
    assert not nib.load(tmp_path / "labels.nii").header.extensions
    assert b"Jane" not in (tmp_path / "labels.nii").read_bytes()


@pytest.mark.parametrize("name", AFFINES)
def test_simpleitk_sees_the_label_map_where_it_sees_the_scan(tmp_path: Path, name: str) -> None:
    path = write_scan(tmp_path / "a.nii.gz", tissue(), affine=AFFINES[name])
    label_map = (tissue() > 0).astype(np.uint8)
    write_label_map(tmp_path / "labels.nii.gz", label_map, read_volume(path))
    assert np.array_equal(simpleitk_affine(tmp_path / "labels.nii.gz"), simpleitk_affine(path))
    labels = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(labels), label_map)


def test_equal_label_maps_are_equal_files_without_a_time_stamp(tmp_path: Path) -> None:
    volume = unit_grid()
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(tmp_path / name, volume.voxels, volume)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "b.nii.gz").read_bytes()
    assert content[:4] == b"\x1f\x8b\x08\x00"  # deflate; no flags, so no file name
    assert content[4:8] == bytes(4)  # no time
    assert len(gzip.decompress(content)) == 352 + volume.voxels.size


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_other_formats_keep_simpleitks_geometry(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(tissue())
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((-30.0, 20.0, 10.0))
    image.SetDirection((rotated_affine(zooms_xyz=(1, 1, 1))[:3, :3] * [-1, -1, 1]).ravel().tolist())
    path = tmp_path / f"scan.{suffix}"
    sitk.WriteImage(image, str(path))
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, tissue())
    write_label_map(tmp_path / "labels.nii.gz", (tissue() > 0).astype(np.uint8), volume)
    np.testing.assert_allclose(simpleitk_affine(tmp_path / "labels.nii.gz"), simpleitk_affine(path), atol=1e-5)
    for transform in ("get_sform", "get_qform"):
        found, code = getattr(nib.load(tmp_path / "labels.nii.gz"), transform)(coded=True)
        np.testing.assert_allclose(found, simpleitk_affine(path), atol=1e-5)
        assert code == 1


def write_meta(path: Path, matrix: str, spacing: str = "1 1 1") -> Path:
    """A MetaImage of ``tissue()`` with this matrix, which SimpleITK would not write."""
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"TransformMatrix = {matrix}\nOffset = -30 20 10\nElementSpacing = {spacing}\n"
        "DimSize = 12 11 10\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + tissue().astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    ("matrix", "spacing", "expected_zyx_mm"),
    [
        ("1 0 0 0 2 0 0 0 3", "1 1 1", (3.0, 2.0, 1.0)),
        ("0.5 0 0 0 -4 0 0 0 1", "2 0.5 3", (3.0, 2.0, 1.0)),
        ("0 2 0 -1 0 0 0 0 3", "1 1 1", (3.0, 1.0, 2.0)),
    ],
)
def test_scale_in_the_matrix_of_a_metaimage_is_spacing(
    tmp_path: Path, matrix: str, spacing: str, expected_zyx_mm: Vector
) -> None:
    path = write_meta(tmp_path / "a.mha", matrix, spacing)
    volume, header = read_volume(path), read_header(path)
    assert header is not None
    for geometry in (volume.geometry, header.geometry):
        np.testing.assert_allclose(np.linalg.norm(geometry.direction, axis=0), 1)
        assert geometry.spacing_zyx_mm == expected_zyx_mm
    np.testing.assert_allclose(ras_affine(volume.geometry), simpleitk_affine(path))
    write_label_map(tmp_path / "labels.nii.gz", (tissue() > 0).astype(np.uint8), volume)
    labels = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_allclose(labels.affine, simpleitk_affine(path))
    np.testing.assert_allclose(labels.header.get_zooms(), volume.geometry.spacing_zyx_mm[::-1])
    np.testing.assert_allclose(simpleitk_affine(tmp_path / "labels.nii.gz"), simpleitk_affine(path))


SHEARED = "the grid is sheared; programs that read the label map's qform (not its sform) place it elsewhere"


@pytest.mark.parametrize(
    ("matrix", "warnings"),
    [
        ("1 0 0 0.3 1 0 0.5 0 1", (SHEARED,)),
        ("1 0 0 0.01 1 0 0 0 1", ()),  # a tenth of a millimetre at the far corner
        ("0 2 0 -1 0 0 0 0 3", ()),
    ],
)
def test_shear_of_a_metaimage_is_kept_in_the_sform_and_said(
    tmp_path: Path, matrix: str, warnings: tuple[str, ...]
) -> None:
    """Without a qform SimpleITK would not open the label map."""
    path = write_meta(tmp_path / "a.mha", matrix)
    volume = read_volume(path)
    assert volume.warnings == warnings
    write_label_map(tmp_path / "labels.nii.gz", (tissue() > 0).astype(np.uint8), volume)
    np.testing.assert_allclose(nib.load(tmp_path / "labels.nii.gz").affine, simpleitk_affine(path), atol=1e-5)
    assert sitk.ReadImage(str(tmp_path / "labels.nii.gz")).GetSize() == (12, 11, 10)


def test_shear_of_an_nrrd_is_said(tmp_path: Path) -> None:
    header = (
        "NRRD0004\ntype: int16\ndimension: 3\nsizes: 12 11 10\nspace: left-posterior-superior\nencoding: raw\n"
        "endian: little\nspace directions: (1,0,0) (0.5,2,0) (0,0,3)\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + tissue().astype("<i2").tobytes())
    assert read_volume(tmp_path / "a.nrrd").warnings == (SHEARED,)


@pytest.mark.parametrize("read", [read_volume, read_header])
def test_scale_in_the_matrix_counts_for_the_extent(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = write_meta(tmp_path / "a.mha", "1e5 0 0 0 1 0 0 0 1")
    with pytest.raises(CaseError, match=r"the scan is 10 x 11 x 1\.2e\+06 mm .* large; expected a patient"):
        read(path)


@pytest.mark.parametrize("read", [read_volume, read_header])
def test_nearly_parallel_axes_of_a_metaimage_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = write_meta(tmp_path / "a.mha", "1 0 0 1 1e-8 0 0 0 1")
    with pytest.raises(CaseError, match=r"axes .* mm are not independent; expected three .* Repair the header"):
        read(path)


@pytest.mark.parametrize("matrix", ["1 0 0 1 0 0 0 0 1", "0 0 0 0 0 0 0 0 0", "nan 0 0 0 1 0 0 0 1"])
def test_a_singular_matrix_of_a_metaimage_is_refused(tmp_path: Path, matrix: str) -> None:
    path = write_meta(tmp_path / "a.mha", matrix)
    with pytest.raises(CaseError, match=r"axes .* mm are not independent"):
        read_header(path)
    with pytest.raises(CaseError, match=r"SimpleITK cannot read it .*determinant is 0"):
        read_volume(path)


@pytest.mark.parametrize("field", ["DimSize = 12 11 10\n", "ElementType = MET_SHORT\n"])
def test_a_malformed_metaimage_is_not_called_missing(tmp_path: Path, field: str) -> None:
    path = write_meta(tmp_path / "a.mha", "1 0 0 0 1 0 0 0 1")
    path.write_bytes(path.read_bytes().replace(field.encode(), b""))
    assert not (tmp_path / "b.mha").exists()  # leaves an errno behind
    with pytest.raises(CaseError, match=r"File cannot be read: .*a\.mha for reading\.\); expected a 3-D scan"):
        read_volume(path)


def test_a_fourth_axis_of_length_one_is_dropped_from_other_formats(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(tissue()[None], isVector=False)
    image.SetSpacing((1.0, 2.0, 3.0, 4.0))
    image.SetOrigin((-30.0, 20.0, 10.0, 1.0))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    volume = read_volume(tmp_path / "a.mha")
    assert np.array_equal(volume.voxels, tissue())
    assert volume.geometry.spacing_zyx_mm == (3.0, 2.0, 1.0)
    assert volume.geometry.origin_zyx_mm == (10.0, 20.0, -30.0)


def test_an_axis_too_long_for_nifti_1_is_written_as_nifti_2(tmp_path: Path) -> None:
    image = sitk.Image(2, 3, 40_000, sitk.sitkInt16)
    image.SetSpacing((0.1, 0.1, 0.1))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    volume = read_volume(tmp_path / "a.mha")
    write_label_map(tmp_path / "labels.nii.gz", volume.voxels.astype(np.uint8), volume)
    assert isinstance(nib.load(tmp_path / "labels.nii.gz"), nib.Nifti2Image)
    assert nib.load(tmp_path / "labels.nii.gz").shape == (2, 3, 40_000)


def test_a_label_map_of_another_shape_is_a_programmers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on a grid of"):
        write_label_map(tmp_path / "a.nii", np.zeros((3, 3, 4), np.uint8), unit_grid())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderError, match=rf"a{suffix}: cannot be written \(No space left on device\); free space"):
        write_label_map(path, unit_grid().voxels, unit_grid())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
