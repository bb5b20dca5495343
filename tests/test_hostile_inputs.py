"""A folder full of scans that cannot be segmented, and of odd ones that can: one run, then case by case.

Every refusal names the file, what was found, what was expected and what to do; the others go on.
"""

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from tests.conftest import read_label_map, run_app, tiny_label_map, tissue, write_scan, write_tiny_bundle

ADVICE = ("Copy", "Repair", "Convert", "Split", "Stack", "Remove", "Rename", "Check", "Export", "Give")


def scan_bytes(
    voxels: npt.NDArray[Any] | None = None, edit: Callable[[Any], object] = lambda header: None, version: int = 1
) -> bytes:
    """An uncompressed NIfTI file."""
    voxels = tissue() if voxels is None else voxels
    with tempfile.TemporaryDirectory() as folder:
        return write_scan(Path(folder) / "a.nii", voxels, version=version, edit=edit).read_bytes()


def with_field(field: str, value: object, index: int | None = None) -> bytes:
    """A scan whose header says something else about one thing."""

    def edit(header: Any) -> None:
        if index is None:
            header[field] = value
        else:
            header[field][index] = value

    return scan_bytes(edit=edit)


def faint(header: Any) -> None:
    """A scaling that only doubles can hold: air would be stored as minus infinity."""
    header["scl_slope"], header["scl_inter"] = 1e-300, 1e20


def flipped(content: bytes) -> bytes:
    """One bit of one voxel altered; level 0 stores, so that only the checksum can tell."""
    packed = bytearray(gzip.compress(content, 0))
    packed[-200] ^= 1
    return bytes(packed)


def promising(*shape_xyz: int) -> bytes:
    """A small file whose header promises a huge scan."""

    def edit(header: Any) -> None:
        header["dim"][1:4] = shape_xyz

    return scan_bytes(edit=edit)


def image_bytes(suffix: str, image: sitk.Image) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        sitk.WriteImage(image, str(path))
        return path.read_bytes()


def image(*shape: int) -> sitk.Image:
    return sitk.GetImageFromArray(np.zeros(shape, np.int16), isVector=False)


COLOUR = np.zeros((10, 11, 12), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])

# file name -> (content, words of its message)
REFUSED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty.nii.gz": (b"", ("empty file", "expected a NIfTI scan", "Copy it again")),
    "empty_too.nii": (b"", ("empty file",)),
    "empty_meta.mha": (b"", ("SimpleITK cannot read it", "expected a 3-D scan")),
    "half.nii.gz": (gzip.compress(scan_bytes(), 1)[:300], ("damaged gzip stream", "truncated", "Copy it again")),
    "no_trailer.nii.gz": (gzip.compress(scan_bytes(), 1)[:-8], ("damaged gzip stream", "truncated")),
    "only_magic.nii.gz": (b"\x1f\x8b", ("damaged gzip stream",)),
    "bit_flip.nii.gz": (flipped(scan_bytes()), ("damaged gzip stream", "CRC", "altered", "Copy it again")),
    "garbage_after.nii.gz": (gzip.compress(scan_bytes()) + b"garbage" * 9, ("damaged gzip stream", "altered")),
    "half_plain.nii": (scan_bytes()[:-1000], ("cannot hold more than", "Copy it again")),
    "short_inside.nii.gz": (
        gzip.compress(scan_bytes()[:-1000], 1),
        ("found 1640 bytes of voxels, expected 2640", "truncated"),
    ),
    "text.nii.gz": (b"Dear colleague,\n" * 40, ("not a gzip file", "starts with b'De'", "expected compressed NIfTI")),
    "text_too.nii": (b"Dear colleague,\n" * 40, ("not NIfTI", "expected 348 or 540")),
    "packed_text.nii.gz": (gzip.compress(b"Dear colleague,\n" * 40), ("not NIfTI", "expected 348 or 540")),
    "packed_nothing.nii.gz": (gzip.compress(b""), ("not NIfTI",)),
    "not_packed.nii.gz": (scan_bytes(), ("not a gzip file",)),
    "stub.nii": (scan_bytes()[:100], ("not NIfTI",)),
    "stub2.nii": (b"\x1c\x02\x00\x00" + bytes(400), ("ends within its header", "404 bytes of 540")),
    "faint.nii": (
        scan_bytes(edit=faint, version=2),
        ("scl_slope is 1e-300", "expected a number that leads to HU", "Repair the header"),
    ),
    "pair.nii": (with_field("magic", b"ni1"), ("magic is b'ni1", "expected a single-file NIfTI")),
    "flat.nii.gz": (gzip.compress(scan_bytes(tissue()[0])), ("2-D image 12x11", "expected 3-D", "Stack the slices")),
    "line.nii": (scan_bytes(tissue()[0, 0]), ("1-D image 12", "expected 3-D")),
    "time.nii.gz": (
        gzip.compress(scan_bytes(np.stack([tissue()] * 2))),
        ("4-D image 12x11x10x2", "expected 3-D", "Split the channels or time points into files"),
    ),
    "five.nii": (scan_bytes(np.zeros((3, 1, 10, 11, 12), np.int16)), ("5-D image 12x11x10x1x3", "expected 3-D")),
    "no_axes.nii": (with_field("dim", 0, 0), ("dimensions", "impossible", "expected a 3-D scan")),
    "nine_axes.nii": (with_field("dim", 9, 0), ("dimensions", "impossible")),
    "no_slices.nii": (with_field("dim", 0, 3), ("dimensions", "impossible")),
    "minus_slices.nii": (with_field("dim", -5, 3), ("dimensions", "impossible")),
    "zero_spacing.nii": (with_field("pixdim", 0, 3), ("voxel spacing [1.0, 2.0, 0.0] mm", "expected three positive")),
    "minus_spacing.nii": (
        with_field("pixdim", -3, 3),
        ("voxel spacing [1.0, 2.0, -3.0] mm", "expected three positive"),
    ),
    "nan_spacing.nii": (with_field("pixdim", np.nan, 1), ("voxel spacing [nan, 2.0, 3.0] mm", "Repair the header")),
    "endless_spacing.nii": (with_field("pixdim", np.inf, 2), ("voxel spacing [1.0, inf, 3.0] mm",)),
    "giant.nii": (
        scan_bytes(edit=lambda header: header.set_sform(np.diag([1e6, 2.0, 3.0, 1.0]), code=1)),
        ("the scan is 30 x 22 x 1.2e+07 mm (z, y, x) large", "expected a patient", "Repair its spacing or unit"),
    ),
    "metres.nii": (with_field("xyzt_units", 1), ("the scan is 3e+04 x 2.2e+04 x 1.2e+04 mm", "spacing or unit")),
    "nan_sform.nii": (with_field("srow_x", np.nan, 3), ("the affine", "nan", "expected three independent axes")),
    "all_nan.nii.gz": (
        gzip.compress(scan_bytes(np.full((10, 11, 12), np.nan, np.float32))),
        ("every voxel is NaN or infinite", "expected Hounsfield units"),
    ),
    "colour.nii": (scan_bytes(COLOUR), ("voxels of type", "'R'", "expected real numbers (Hounsfield units)")),
    "complex.nii": (scan_bytes(tissue().astype(np.complex64)), ("voxels of type complex64", "expected real numbers")),
    "quadruple.nii": (with_field("datatype", 1536), ("voxels of type", "expected real numbers")),
    "no_type.nii": (with_field("datatype", 999), ("NIfTI data type code 999", "expected integers or real numbers")),
    "huge.nii": (
        promising(32767, 32767, 32767),
        ("header promises 32767x32767x32767 voxels (70362301923326 bytes)", "cannot hold more than 2992"),
    ),
    "huge_packed.nii.gz": (gzip.compress(promising(32767, 32767, 32767)), ("header promises 32767x32767x32767",)),
    "large_packed.nii.gz": (gzip.compress(promising(100, 100, 10)), ("found 2640 bytes of voxels, expected 200000",)),
    "early.nii": (with_field("vox_offset", 0), ("voxels start at byte 0", "expected after the header")),
    "late.nii": (with_field("vox_offset", 1e7), ("found 0 bytes of voxels, expected 2640",)),
    "never.nii": (with_field("vox_offset", np.nan), ("voxels start at byte nan",)),
    "a_0000.nii.gz": (gzip.compress(scan_bytes()), ("a_0000.nii.gz, a_0001.nii.gz: several channels", "Remove")),
    "b.nii": (scan_bytes(), ("b.nii, b.nii.gz: several inputs for one output b.nii.gz", "Rename or remove")),
    "c.nii.gz": (gzip.compress(scan_bytes()), ("c.nii.gz, c_0000.nii.gz: several inputs for one output",)),
    "text_meta.mha": (
        b"Dear colleague,\n" * 40,
        ("SimpleITK cannot read it", "Unable to determine", "expected a 3-D scan"),
    ),
    "half_nrrd.nrrd": (image_bytes(".nrrd", image(10, 11, 12))[:-99], ("SimpleITK cannot read it", "Copy it again")),
    "half_meta.mha": (
        image_bytes(".mha", image(10, 11, 12))[:-99],
        ("SimpleITK cannot read it", "File cannot be read"),
    ),
    "flat_meta.mha": (
        image_bytes(".mha", image(11, 12)),
        ("2-D image 12x11 with 1 components; expected 3-D", "Split it"),
    ),
    "time_meta.mha": (image_bytes(".mha", image(2, 10, 11, 12)), ("4-D image 12x11x10x2", "expected 3-D with one")),
    "vectors.nrrd": (
        image_bytes(".nrrd", sitk.Image([12, 11, 10], sitk.sitkVectorInt16, 3)),
        ("3-D image 12x11x10 with 3 components", "expected 3-D with one", "Split it into files"),
    ),
    "no_spacing.mha": (
        image_bytes(".mha", image(10, 11, 12)).replace(b"Spacing = 1 1 1", b"Spacing = 1 1 0"),
        ("SimpleITK cannot read it", "Zero-valued spacing"),
    ),
    os.fsdecode(b"latin\xfc.mha"): (image_bytes(".mha", image(10, 11, 12)), ("the name is not UTF-8", "Rename it")),
}
# Each becomes two cases' worth of trouble only together with its partner.
PARTNERS = {"a_0001.nii.gz": gzip.compress(scan_bytes()), "b.nii.gz": b"", "c_0000.nii.gz": b""}

# file name -> (voxels, words of its warning if it gets one)
SEGMENTED: dict[str, tuple[npt.NDArray[Any], str | None]] = {
    "good_0000.nii.gz": (tissue(), None),
    "no_suffix.nii.gz": (tissue(seed=1), None),
    "larger_than_the_patch.nii": (tissue((17, 33, 20)), None),
    "smaller_than_the_patch.nii": (tissue((3, 4, 5)), None),
    "one_slice.nii.gz": (tissue((1, 20, 21)), "single slice"),
    "one_column.nii.gz": (tissue((20, 1, 1)), "single slice"),
    "one_voxel.nii": (tissue((1, 1, 1)), "single slice"),
    "four_axes.nii.gz": (tissue((1, 10, 11, 12)), None),
    "seven_axes.nii": (tissue((1, 1, 1, 1, 5, 6, 7)), None),
    "nothing_in_it.nii": (np.full((10, 11, 12), -1000, np.int16), "no organ was found"),
    "floats_0000.nii": (tissue().astype(np.float64), None),
}


@dataclass(frozen=True)
class Run:
    inputs: Path
    outputs: Path
    exit_code: int
    report: dict[str, Any]

    def case(self, name: str) -> dict[str, Any]:
        """The record of the case of an input file."""
        (found,) = (case for case in self.report["cases"] if Path(case["input"]).name == name)
        return dict(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Run:
    """The one run over everything."""
    folder = tmp_path_factory.mktemp("hostile")
    inputs, outputs, report = folder / "inputs", folder / "outputs", folder / "report.json"
    inputs.mkdir()
    for name, (content, _) in REFUSED.items():
        (inputs / name).write_bytes(content)
    for name, content in PARTNERS.items():
        (inputs / name).write_bytes(content)
    for name, (voxels, _) in SEGMENTED.items():
        write_scan(inputs / name, voxels)
    os.mkfifo(inputs / "pipe.nii.gz")
    os.mkfifo(inputs / "pipe_too.mha")
    (inputs / "link_to_pipe.nrrd").symlink_to("pipe_too.mha")
    (inputs / "broken_link.nii.gz").symlink_to("nowhere.nii.gz")
    (inputs / "broken_link_too.mha").symlink_to("nowhere.mha")
    (inputs / "folder.nii.gz").mkdir()
    options = ("--bundle", tiny_bundle, "--device", "cpu", "--report", report, "-q")
    code = run_app("--input-dir", inputs, "--output-dir", outputs, *options)
    return Run(inputs, outputs, code, json.loads(report.read_text()))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_message_that_helps(run: Run, name: str) -> None:
    case = run.case(name)
    assert case["status"] == "failed"
    assert Path(name).stem.removesuffix(".nii") in case["error"]
    for word in REFUSED[name][1]:
        assert word in case["error"]
    assert any(word.lower() in case["error"].lower() for word in ADVICE), case["error"]
    assert not Path(case["output"]).exists()


@pytest.mark.parametrize("name", ["pipe.nii.gz", "pipe_too.mha", "link_to_pipe.nrrd"])
def test_a_pipe_is_refused_and_not_waited_for(run: Run, name: str) -> None:
    assert (
        run.case(name)["error"]
        == f"{run.inputs / name}: a pipe, socket or device; expected a file with a scan. Remove it"
    )


@pytest.mark.parametrize("name", ["broken_link.nii.gz", "broken_link_too.mha"])
def test_a_broken_link_is_refused(run: Run, name: str) -> None:
    assert f"{name}: cannot be read (No such file or directory); expected a scan. Check" in run.case(name)["error"]


@pytest.mark.parametrize("name", SEGMENTED)
def test_odd_scans_are_segmented_all_the_same(run: Run, name: str) -> None:
    voxels, warning = SEGMENTED[name]
    case = run.case(name)
    assert case["status"] == "segmented"
    assert case["error"] is None
    label_map = read_label_map(Path(case["output"]))
    assert np.array_equal(label_map, tiny_label_map(voxels.reshape(voxels.shape[-3:])))
    assert any(warning in found for found in case["warnings"]) if warning else case["warnings"] == []
    np.testing.assert_array_equal(nib.load(case["output"]).affine, nib.load(run.inputs / name).affine)


def test_the_run_ends_with_1_and_leaves_only_whole_label_maps(run: Run) -> None:
    assert run.exit_code == run.report["exit_code"] == 1
    expected = {name.removesuffix(".gz").removesuffix(".nii").removesuffix("_0000") + ".nii.gz" for name in SEGMENTED}
    assert {path.name for path in run.outputs.iterdir()} == expected
    failed = [case for case in run.report["cases"] if case["status"] == "failed"]
    assert len(failed) == len(REFUSED) + 5


def test_nothing_is_left_among_the_inputs(run: Run) -> None:
    assert len(list(run.inputs.iterdir())) == len(REFUSED) + len(PARTNERS) + len(SEGMENTED) + 6
    for name, (content, _) in REFUSED.items():
        assert (run.inputs / name).read_bytes() == content


@pytest.fixture
def as_ordinary_user() -> Iterator[Path]:
    """A folder of a user to whom file permissions apply; root gives up its rights for the test."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)
    else:
        yield folder
    shutil.rmtree(folder)


def test_unreadable_files_and_folders_fail_alone(as_ordinary_user: Path) -> None:
    bundle = as_ordinary_user / "bundle"
    inputs, outputs, report = (as_ordinary_user / name for name in ("inputs", "outputs", "report.json"))
    inputs.mkdir()
    for name in ("good", "locked"):
        write_scan(inputs / f"{name}.nii", tissue())
    (inputs / "locked.nii").chmod(0)
    (inputs / "closed").mkdir(mode=0)
    write_tiny_bundle(bundle)
    arguments = ("--input-dir", inputs, "--output-dir", outputs, "--bundle", bundle, "--device", "cpu")
    try:
        assert run_app(*arguments, "--report", report) == 1
    finally:
        (inputs / "closed").chmod(0o700)
    errors = {case["case_id"]: case["error"] for case in json.loads(report.read_text())["cases"]}
    assert errors["good"] is None
    for name in ("locked", "closed"):
        assert "cannot be read (Permission denied); expected a scan. Check" in errors[name]
    assert [path.name for path in outputs.iterdir()] == ["good.nii.gz"]


def test_an_unreadable_input_folder_ends_the_run_with_3(tiny_bundle: Path, as_ordinary_user: Path) -> None:
    (as_ordinary_user / "inputs").mkdir(mode=0)
    files = ("--input-dir", as_ordinary_user / "inputs", "--output-dir", as_ordinary_user / "outputs")
    assert run_app(*files, "--bundle", tiny_bundle) == 3


def test_a_single_pipe_is_refused_too(tmp_path: Path, tiny_bundle: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mha")
    files = ("--input", tmp_path / "pipe.mha", "--output", tmp_path / "labels.nii.gz")
    assert run_app(*files, "--bundle", tiny_bundle, "--device", "cpu") == 1
    assert not (tmp_path / "labels.nii.gz").exists()
