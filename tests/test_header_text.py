"""What stands in a scan's header beside its geometry stays there: not in label maps, logs at -v or the report.

Secrets go into every field that can hold text, and into numbers that nothing here needs. A scan may be in order or
damaged: messages about damage must not quote the header either.
"""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tests.conftest import run_app, tissue, write_scan
from tests.test_cases import write_series

SECRET = b"Doe^Jane"  # 8 bytes: fits every text field but NIfTI's single characters
TEXT_FIELDS = ("descrip", "aux_file", "intent_name", "db_name", "data_type", "unused_str")
NUMBER_FIELDS = ("pixdim", "cal_max", "cal_min", "slice_duration", "toffset", "intent_p1", "intent_p2", "intent_p3")
DICOM_TAGS = {
    "0008|0050": "accession",
    "0008|0080": "institution",
    "0008|0090": "referring physician",
    "0008|1030": "study",
    "0008|103e": "series",
    "0010|0010": "patient's name",
    "0010|0020": "patient's number",
    "0010|1040": "address",
    "0010|4000": "comments",
    "0020|4000": "image comments",
    "0009|0010": "private creator",
}


def run_and_collect(
    scan: Path, tmp_path: Path, bundle: Path, capfd: pytest.CaptureFixture[str], code: int = 0
) -> bytes:
    """All that a run on one scan leaves: label map unpacked, report, both streams of the process."""
    folder = tmp_path / "outputs"
    files = ("--input", scan, "--output", folder / "labels.nii.gz", "--report", folder / "report.json")
    assert run_app(*files, "--bundle", bundle, "--backend", "openvino", "--device", "cpu", "-v") == code
    left = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert len(left) == (2 if code == 0 else 1)
    unpacked = [gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content for content in left]
    streams = capfd.readouterr()
    assert "0 skipped" in streams.err  # the log is among what is searched
    return b"".join(unpacked) + streams.out.encode() + streams.err.encode()


def assert_holds_no(secret: bytes, left: bytes) -> None:
    for form in (secret, secret.hex().encode(), secret[::-1], secret.decode().encode("utf-16-le")):
        assert form.lower() not in left.lower()


def crowd(header: Any) -> None:
    """The secret in every field of text, and as the bytes of every number that a label map does not need."""
    for field in TEXT_FIELDS:
        if field in header:
            header[field] = SECRET
    single, double = np.frombuffer(SECRET[:4], np.float32)[0], np.frombuffer(SECRET, np.float64)[0]
    for field in NUMBER_FIELDS:
        value = single if header[field].dtype.itemsize == 4 else double
        if field == "pixdim":
            header[field][4:] = value
        else:
            header[field] = value
    header["intent_code"] = int.from_bytes(SECRET[:2], "little")
    if "glmax" in header:
        header["glmax"] = header["glmin"] = header["extents"] = int.from_bytes(SECRET[:4], "little")


@pytest.mark.parametrize("version", [1, 2])
def test_nifti(tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str], version: int) -> None:
    scan = write_scan(tmp_path / "scan.nii", tissue(), version=version, edit=crowd)
    content = scan.read_bytes()
    assert content.count(SECRET) >= 4
    assert content.count(SECRET[:4]) >= 14
    left = run_and_collect(scan, tmp_path, tiny_bundle, capfd)
    assert_holds_no(SECRET, left)
    assert_holds_no(SECRET[:4], left)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_extensions(
    tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str], kind: type[nib.Nifti1Image]
) -> None:
    image = kind(tissue().transpose(), np.diag([-1.0, -2.0, 3.0, 1.0]))
    for code in ("comment", "dicom", "afni"):
        content = b"\x08\x00\x05\x00" + SECRET if code == "dicom" else SECRET  # a DICOM one has to start like a tag
        image.header.extensions.append(nib.nifti1.Nifti1Extension(4 if code == "afni" else 6, content))
    nib.save(image, tmp_path / "scan.nii")
    assert (tmp_path / "scan.nii").read_bytes().count(SECRET) == 3
    assert_holds_no(SECRET, run_and_collect(tmp_path / "scan.nii", tmp_path, tiny_bundle, capfd))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nhdr"])
def test_metaimage_and_nrrd(tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str], suffix: str) -> None:
    image = sitk.GetImageFromArray(tissue())
    image.SetSpacing((1.0, 2.0, 3.0))
    for key in ("PatientName", "PatientID", "Comment", "Anything"):
        image.SetMetaData(key, SECRET.decode())
    scan = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(scan))
    assert scan.read_bytes().count(SECRET) >= 3
    assert_holds_no(SECRET, run_and_collect(scan, tmp_path, tiny_bundle, capfd))


def write_secret_series(folder: Path) -> Path:
    write_series(folder, slices=4, uid="1.2.3", more_tags=dict.fromkeys(DICOM_TAGS, SECRET.decode()))
    assert min(path.read_bytes().count(SECRET) for path in folder.iterdir()) >= 8
    return folder


def test_dicom(tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_holds_no(SECRET, run_and_collect(write_secret_series(tmp_path / "scan"), tmp_path, tiny_bundle, capfd))


# --- damaged ----------------------------------------------------------------------------------------------

META = "ObjectType = Image\nNDims = 3\nPatientName = Doe^Jane\nDimSize = 4 4 4\nElementType = MET_SHORT\n"
NRRD = "NRRD0004\n# Doe^Jane\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
DAMAGED = {
    "scan.mha": META.replace("4 4 4", "4 4 Doe^Jane") + "ElementDataFile = LOCAL\n",
    "type/scan.mha": META.replace("MET_SHORT", "Doe^Jane") + "ElementDataFile = LOCAL\n",
    "data/scan.mhd": META + "ElementDataFile = Doe^Jane.raw\n",
    "away/scan.mhd": META + "ElementDataFile = /Doe^Jane/a.raw\n",
    "none/scan.mhd": META,
    "scan.nrrd": NRRD.replace("4 4 4", "4 4 Doe^Jane") + "\n",
    "type/scan.nrrd": NRRD.replace("short", "Doe^Jane") + "\n",
    "field/scan.nrrd": NRRD + "Doe^Jane: 1\n\n",
    "line/scan.nrrd": NRRD + "Doe^Jane\n\n",
    "quote/scan.nrrd": NRRD + '"Doe^Jane" | "Doe^Jane"\n\n',
    "data/scan.nhdr": NRRD + "data file: Doe^Jane.raw\n",
    "unit/scan.nhdr": NRRD + "space units: Doe^Jane\ndata file: a.raw\n",
    "magic/scan.nrrd": "Doe^Jane" * 40,
    "scan.nii": "Doe^Jane" * 99,
    "packed/scan.nii.gz": "Doe^Jane" * 99,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_messages_quote_nothing(
    tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    scan = tmp_path / name
    scan.parent.mkdir(exist_ok=True)
    scan.write_text(DAMAGED[name])
    assert_holds_no(SECRET, run_and_collect(scan, tmp_path, tiny_bundle, capfd, code=1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def cut_within_a_name(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(SECRET) + len(SECRET) - 1])


def copy_of_another_patient(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.dcm"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.2.3\x00", b"1.2.4\x00"))


@pytest.mark.parametrize("damage", [cut, cut_within_a_name, copy_of_another_patient])
def test_messages_about_dicom_quote_nothing(
    tmp_path: Path, tiny_bundle: Path, capfd: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    folder = write_secret_series(tmp_path / "scan")
    damage(sorted(folder.iterdir())[1])
    assert_holds_no(SECRET, run_and_collect(folder, tmp_path, tiny_bundle, capfd, code=1))
