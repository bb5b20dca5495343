"""Which scans a folder holds and where their label maps go; DICOM series, too."""

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from app.cases import find_cases, prepare_output_folder, single_case
from app.errors import CaseError, FolderError, UsageError
from app.volume_io import read_volume
from tests.conftest import ras_affine, read_label_map, run_app, tiny_label_map, tissue, write_scan

OUT = Path("/somewhere/labels")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def found(folder: Path) -> dict[str, str]:
    """Input name -> output name of the cases that are not refused."""
    cases = find_cases(folder, OUT)
    assert all(case.output_path.parent == OUT for case in cases)
    return {case.input_path.name: case.output_path.name for case in cases if not case.refusal}


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("liver_0000.nii.gz", "liver.nii.gz"),
        ("FLARETs_0001_0000.nii.gz", "FLARETs_0001.nii.gz"),
        ("FLARETs_0001.nii.gz", "FLARETs_0001.nii.gz"),
        ("x_0001.nii.gz", "x_0001.nii.gz"),  # no x_0000 beside it: a name like any other
        ("scan.nii", "scan.nii.gz"),
        ("scan_0000.nii", "scan.nii.gz"),
        ("SCAN.NII.GZ", "SCAN.nii.gz"),
        ("a.b.c.nii.gz", "a.b.c.nii.gz"),
        ("with space_0000.mha", "with space.nii.gz"),
        ("x.mhd", "x.nii.gz"),
        ("x_0000.nrrd", "x.nii.gz"),
        ("x.nhdr", "x.nii.gz"),
        ("_0000.nii.gz", "_0000.nii.gz"),
        ("ünï_0000.nii.gz", "ünï.nii.gz"),
    ],
)
def test_names(tmp_path: Path, name: str, output: str) -> None:
    assert found(touch(tmp_path, name)) == {name: output}


def test_cases_are_sorted_and_other_files_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "b_0000.nii.gz", "a.nii.gz", "c.mhd", "c.raw", ".hidden.nii.gz", "notes.txt", ".nii.gz")
    (tmp_path / "folder").mkdir()
    assert list(found(tmp_path)) == ["a.nii.gz", "b_0000.nii.gz", "c.mhd"]
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"{tmp_path}/folder: not a scan; passed over",
        f"{tmp_path}/notes.txt: not a scan; passed over",
    ]


@pytest.mark.parametrize("others", [("x_0001.nii.gz",), ("x_0001.nii.gz", "x_0002.nii.gz"), ("x_0001.nrrd",)])
def test_a_second_channel_is_refused(tmp_path: Path, others: tuple[str, ...]) -> None:
    touch(tmp_path, "x_0000.nii.gz", "y_0000.nii.gz", *others)
    refused, fine = find_cases(tmp_path, OUT)
    assert refused.case_id == "x"
    assert refused.refusal
    for word in ("x_0000.nii.gz", *others, "several channels", "expected one CT image per case", "Remove"):
        assert word in refused.refusal
    assert (fine.case_id, fine.refusal) == ("y", None)


@pytest.mark.parametrize(
    "names", [("a.nii.gz", "a_0000.nii.gz"), ("a.nii", "a.nii.gz"), ("a.mha", "a.nrrd", "a_0000.nii")]
)
def test_two_inputs_for_one_output_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    (case,) = find_cases(touch(tmp_path, *names), OUT)
    assert case.refusal
    for word in (*names, "for one output a.nii.gz", "expected one", "Rename or remove"):
        assert word in case.refusal


def test_a_folder_without_scans_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(
        FolderError, match=r"found 1 entries, none of them a scan; expected \*\.nii\.gz, \*\.nii.*DICOM"
    ):
        find_cases(tmp_path, OUT)
    with pytest.raises(FolderError, match=r"nowhere: no input folder \(No such file or directory\); expected a folder"):
        find_cases(tmp_path / "nowhere", OUT)
    with pytest.raises(FolderError, match="Not a directory"):
        find_cases(tmp_path / "notes.txt", OUT)


def test_label_maps_must_not_lie_among_the_scans(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="is the input folder itself; choose another"):
        find_cases(tmp_path, tmp_path / "link")


def test_a_single_case(tmp_path: Path) -> None:
    scan = touch(tmp_path, "a_0000.nii.gz") / "a_0000.nii.gz"
    case = single_case(scan, tmp_path / "labels.nii")
    assert (case.case_id, case.input_path, case.refusal) == ("labels", scan, None)
    with pytest.raises(UsageError, match=r"labels\.png: expected a name that ends in \.nii\.gz or \.nii"):
        single_case(scan, tmp_path / "labels.png")
    with pytest.raises(FolderError, match=r"nothing\.nii: no such file; expected a scan"):
        single_case(tmp_path / "nothing.nii", tmp_path / "labels.nii")
    with pytest.raises(UsageError, match="is the input itself; choose another name"):
        single_case(scan, tmp_path / "a_0000.nii.gz")
    with pytest.raises(UsageError, match=r"notes\.txt: expected \.nii\.gz, \.nii, \.mha"):
        single_case(touch(tmp_path, "notes.txt") / "notes.txt", tmp_path / "labels.nii")


def test_the_output_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    prepare_output_folder(tmp_path / "deep" / "labels")
    assert list((tmp_path / "deep" / "labels").iterdir()) == []
    touch(tmp_path, "file")
    for folder in (tmp_path / "file", tmp_path / "file" / "labels", Path("/proc/labels")):
        with pytest.raises(FolderError, match=r"cannot be written \(.+\); choose another output folder"):
            prepare_output_folder(folder)


# --- DICOM ------------------------------------------------------------------------------------------------


def write_series(
    folder: Path,
    slices: int = 8,
    uid: str = "1.2.3.4",
    skip: tuple[int, ...] = (),
    tilt_mm: float = 0.0,
    more_tags: dict[str, str] | None = None,
) -> Path:
    """A CT series of ``tissue``: 2 mm rows, 1 mm columns, slices 3 mm apart and named from head to feet.

    The writer stores (HU + 1000) / 2, as the rescale tags say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in sorted(set(range(slices)) - set(skip)):
        image = sitk.GetImageFromArray(tissue((slices, 11, 12))[index])
        image.SetSpacing((1.0, 2.0))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{index}",
            "0008|0060": "CT",
            "0018|0050": "3",
            "0020|000d": "1.2.9",
            "0020|000e": uid,
            "0020|0013": str(index + 1),
            "0020|0032": f"-30\\{20 + tilt_mm * index}\\{10 + 3 * index}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0052": "1.2.8",
            "0028|1052": "-1000",
            "0028|1053": "2",
        }
        for tag, value in {**tags, **(more_tags or {})}.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}_{slices - index:03d}.dcm"))
        writer.Execute(image)
    return folder


def simpleitk_series(folder: Path) -> sitk.Image:
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


def test_a_series_is_segmented_where_simpleitk_sees_it(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "scans").mkdir()
    folder = write_series(tmp_path / "scans" / "patient")
    expected = simpleitk_series(folder)
    volume = read_volume(folder)
    np.testing.assert_allclose(
        ras_affine(volume.geometry), [[-1, 0, 0, 30], [0, -2, 0, -20], [0, 0, 3, 10], [0, 0, 0, 1]]
    )
    assert np.array_equal(volume.voxels * volume.slope + volume.intercept, tissue((8, 11, 12)))
    assert volume.warnings == ()
    outputs = tmp_path / "labels"
    assert run_app("--input-dir", tmp_path / "scans", "--output-dir", outputs, "--bundle", tiny_bundle) == 0
    labels = sitk.ReadImage(str(outputs / "patient.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(labels), tiny_label_map(tissue((8, 11, 12))))
    for property_of in (sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection):
        np.testing.assert_allclose(property_of(labels), property_of(expected), atol=1e-6)


@pytest.mark.parametrize("way", ["--input-dir", "--input"])
def test_the_input_may_be_the_series_itself(tmp_path: Path, tiny_bundle: Path, way: str) -> None:
    folder = write_series(tmp_path / "patient")
    target = (
        ("--output-dir", tmp_path / "out") if way == "--input-dir" else ("--output", tmp_path / "out/patient.nii.gz")
    )
    assert run_app(way, folder, *target, "--bundle", tiny_bundle) == 0
    label_map = read_label_map(tmp_path / "out" / "patient.nii.gz")
    assert np.array_equal(label_map, tiny_label_map(tissue((8, 11, 12))))


def test_two_series_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "patient", uid="1.2.3.4")
    write_series(tmp_path / "patient", uid="1.2.3.5")
    with pytest.raises(
        CaseError, match=r"patient: found 2 DICOM series; expected one\. Give each series its own folder"
    ):
        read_volume(tmp_path / "patient")


@pytest.mark.parametrize(("skip", "tilt_mm"), [((3,), 0.0), ((1,), 0.0), ((), 1.0)])
def test_a_missing_slice_or_a_tilted_gantry_is_refused(tmp_path: Path, skip: tuple[int, ...], tilt_mm: float) -> None:
    folder = write_series(tmp_path / "patient", skip=skip, tilt_mm=tilt_mm)
    with pytest.raises(CaseError, match=r"mm from an even stack \(missing slices or a tilted gantry\)"):
        read_volume(folder)


def test_a_damaged_slice_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "patient")
    last = sorted(folder.iterdir())[0]  # named from head to feet: the topmost, which leaves no gap
    last.write_bytes(last.read_bytes()[:-20])
    with pytest.raises(CaseError, match=rf"{last.name} \(of 1\) cannot be read as slices of the series; expected all"):
        read_volume(folder)


def test_files_that_are_not_dicom_are_counted(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "patient")
    (folder / "README.txt").write_text("from the scanner")
    volume = read_volume(folder)
    assert volume.voxels.shape == (8, 11, 12)
    assert volume.warnings == ("1 of 9 files in the folder are not DICOM; passed over",)


def test_a_series_may_begin_with_files_that_are_not_dicom(tmp_path: Path) -> None:
    write_series(tmp_path / "scans" / "patient", slices=1)
    (tmp_path / "scans" / "patient" / "0_CONTENTS.txt").write_text("from the archive")
    (tmp_path / "scans" / "notes").mkdir()
    (tmp_path / "scans" / "notes" / "a.txt").write_text("no series")
    assert found(tmp_path / "scans") == {"patient": "patient.nii.gz"}
    assert found(tmp_path / "scans" / "patient") == {"patient": "patient.nii.gz"}


def test_a_series_in_a_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_series(tmp_path / "patient").rename(folder)
    with pytest.raises(CaseError, match="the name is not UTF-8"):
        read_volume(folder)


@pytest.mark.parametrize(
    ("option", "path"),
    [("--output", "x" * 300 + ".nii.gz"), ("--output", "y" * 300 + "/x.nii.gz"), ("--report", "z" * 300)],
)
def test_names_that_no_file_system_takes_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, path: str
) -> None:
    scan = write_scan(tmp_path / "a.nii.gz", tissue())
    arguments = {"--input": scan, "--output": tmp_path / "labels.nii.gz", option: tmp_path / path}
    assert run_app(*(word for pair in arguments.items() for word in pair)) == 2
    assert "expected at most 255" in capsys.readouterr().err
