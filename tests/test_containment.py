"""Nothing is written outside the output folder, and no scan's header makes the app read outside its own.

Whoever sends scans chooses their names; whoever shares the output folder may have put links there.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from app.cases import find_cases
from app.errors import CaseError
from app.log_format import OneLineFormatter
from app.volume_io import read_header, read_volume
from tests.conftest import read_label_map, run_app, tiny_label_map, tissue, write_scan
from tests.test_cases import write_series

NAMES = (
    "x\\..\\..\\up_0000.nii.gz",
    "x%2F..%2F..%2Fup.nii.gz",
    "~root.nii.gz",
    "-rf.nii.gz",
    "$(touch up).nii.gz",
    "`touch up`;.nii.gz",
    "a\n05:00:00 ERROR b.nii.gz",
    "\x1b[2J\x1b]0;title\x07.nii.gz",
    "\u202egnp.nii.gz",
    "C:\\up.nii.gz",
    " .nii.gz",
    "x\udce9.nii.gz",  # not UTF-8
)


def everything_under(folder: Path) -> set[str]:
    return {os.fsencode(path.relative_to(folder)).decode("latin-1") for path in folder.rglob("*")}


def test_names_stay_in_the_output_folder_and_in_their_line_of_the_log(
    tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scans, labels = tmp_path / "in" / "scans", tmp_path / "out" / "labels"
    scans.mkdir(parents=True)
    for name in NAMES:
        write_scan(scans / name, tissue())
    before = everything_under(tmp_path)
    bundle = ("--bundle", tiny_bundle, "--backend", "openvino", "--device", "cpu")
    assert run_app("--input-dir", scans, "--output-dir", labels, *bundle, "-v") == 0
    names = {os.fsencode(name.replace("_0000", "")).decode("latin-1") for name in NAMES}
    assert everything_under(tmp_path) - before == {"out", "out/labels", *(f"out/labels/{name}" for name in names)}
    log = capfd.readouterr().err
    assert all(line[2] == line[5] == ":" and line.split()[1] == "INFO" for line in log.splitlines())
    assert not set(log) & {"\x1b", "\x07", "\u202e"}
    assert "a\\n05:00:00 ERROR b: write" in log


def test_a_line_of_the_log_is_one_line() -> None:
    record = logging.LogRecord("app", logging.INFO, "", 0, "%s: é ok", ("a\r\nb\x9b\u2028\udcff",), None)
    assert OneLineFormatter("%(message)s").format(record) == "a\\r\\nb\\x9b\\u2028\\udcff: é ok"


def test_a_series_is_named_by_its_folder_alone(tmp_path: Path) -> None:
    """Not by what DICOM says about patient, study or series."""
    (tmp_path / "scans").mkdir()
    write_series(tmp_path / "scans" / "a..b", uid="1.2.3")
    (case,) = find_cases(tmp_path / "scans", tmp_path / "labels")
    assert case.output_path == tmp_path / "labels" / "a..b.nii.gz"


LINKS: dict[str, Callable[[Path], object]] = {
    "to a file": lambda victim: victim.write_bytes(b"precious"),
    "to nothing": lambda victim: None,
}


@pytest.mark.parametrize("skip", [(), ("--skip-existing",)])
@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_place_of_a_label_map_is_replaced_and_not_followed(
    tmp_path: Path, tiny_bundle: Path, name: str, skip: tuple[str, ...]
) -> None:
    """Also with --skip-existing: what lies elsewhere is no label map of this folder."""
    scans, labels, victim = tmp_path / "scans", tmp_path / "labels", tmp_path / "victim"
    scans.mkdir()
    labels.mkdir()
    LINKS[name](victim)
    before = victim.read_bytes() if victim.exists() else None
    write_scan(scans / "a.nii.gz", tissue())
    (labels / "a.nii.gz").symlink_to(victim)
    (labels / "report.json").symlink_to(victim)
    files = ("--input-dir", scans, "--output-dir", labels, "--report", labels / "report.json")
    assert run_app(*files, "--bundle", tiny_bundle, "--device", "cpu", *skip) == 0
    assert not (labels / "a.nii.gz").is_symlink()
    assert not (labels / "report.json").is_symlink()
    assert np.array_equal(read_label_map(labels / "a.nii.gz"), tiny_label_map(tissue()))
    assert (victim.read_bytes() if victim.exists() else None) == before


def test_a_file_is_skipped_and_a_folder_is_not(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}_0000.nii").touch()
    (tmp_path / "labels" / "b.nii.gz").mkdir(parents=True)
    (tmp_path / "labels" / "a.nii.gz").touch()
    assert [case.has_label_map for case in find_cases(tmp_path, tmp_path / "labels")] == [True, False]


# --- what a header may name -------------------------------------------------------------------------------

META = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
ELSEWHERE = {
    "up.mhd": META + "ElementDataFile = ../secret.raw\n",
    "up.mha": META + "ElementDataFile = ../secret.raw\n",
    "absolute.mhd": META + "ElementDataFile = {folder}/secret.raw\n",
    "colon.mhd": META + "ElementDataFile : ../secret.raw\n",
    "one_line.mhd": META.replace("NDims = 3\n", "NDims = 3 ElementDataFile = ../secret.raw\n"),
    "comment.mha": META + "Comment = ElementDataFile = LOCAL\nElementDataFile = ../secret.raw\n",
    "list.mhd": META + "ElementDataFile = LIST\n" + "a.raw\n" * 3 + "../secret.raw\n",
    "whole_list.mhd": META + "ElementDataFile = LIST 3D\n../secret.raw\n",
    "pattern.mhd": META + "ElementDataFile = ../secret%01d.raw 0 3 1\n",
    "up.nhdr": NRRD + "data file: ../secret.raw\n",
    "up.nrrd": NRRD + "data file: ../secret.raw\n\n",
    "old.nhdr": NRRD + "datafile: ../secret.raw\n",
    "loud.nhdr": NRRD + "DATA FILE: ../secret.raw\n",
    "absolute.nhdr": NRRD + "data file: {folder}/secret.raw\n",
    "list.nhdr": NRRD + "data file: LIST 3\n../secret.raw\n",
    "device.nhdr": NRRD + "data file: /dev/zero\n",
}


@pytest.mark.parametrize("read", [read_header, read_volume])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_voxels_in_another_folder_are_refused(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(64))
    (tmp_path / "scans").mkdir()
    scan = tmp_path / "scans" / name
    scan.write_text(ELSEWHERE[name].format(folder=tmp_path))
    with pytest.raises(CaseError, match="names a file outside its own folder for its voxels; expected one beside it"):
        read(scan)


@pytest.mark.parametrize("filler", ["", "Comment = x\n" * 100_000])
@pytest.mark.parametrize("array", ["Offset", "CenterOfRotation"])
def test_a_place_that_is_swallowed_by_an_array_is_refused(tmp_path: Path, array: str, filler: str) -> None:
    """SimpleITK would read ../secret.raw: MetaIO takes the first ElementDataFile for the array's numbers."""
    text = f"{META}{array} =\nElementDataFile = LOCAL\n{filler}ElementDataFile = ../secret.raw\n"
    (tmp_path / "a.mha").write_text(text)
    with pytest.raises(CaseError, match="says twice where its voxels are"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_header_without_end_is_refused(tmp_path: Path, suffix: str) -> None:
    head = META if suffix == ".mha" else NRRD
    line = ("Comment = " if suffix == ".mha" else "# ") + "x" * 1000 + "\n"
    (tmp_path / f"a{suffix}").write_text(head + line * 1100 + "ElementDataFile = ../secret.raw\n")
    with pytest.raises(CaseError, match="its header does not end within 1048576 bytes"):
        read_volume(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".mhd", ".nrrd", ".nhdr"])
def test_voxels_within_the_file_or_beside_it_are_read(tmp_path: Path, suffix: str) -> None:
    """Whatever the voxels spell."""
    voxels = np.zeros((64, 128, 128), np.uint8)
    spelled = b"\nElementDataFile = ../secret.raw\ndata file: ../secret.raw\n"
    voxels.reshape(-1)[: len(spelled)] = np.frombuffer(spelled, np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / f"a{suffix}"))
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}").voxels, voxels)
    assert read_header(tmp_path / f"a{suffix}") is not None
