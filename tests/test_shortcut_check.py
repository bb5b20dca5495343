"""What shortcuts save and change, on a scan of which both are known."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.bundle import load_bundle
from tests.conftest import ROOT, TINY_LABELS, tiny_plan, tissue, write_scan, write_tiny_bundle
from tools.convert.bundles import set_shortcuts
from tools.shortcut_check import main, markdown


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """80 planes of air, of which 20 to 40 hold a block of -100 HU with tissue in it, and a voxel of metal far away.

    The bundle is the tiny one with itself as its locator, which takes less than 1 ml (167 voxels of 6 mm3) for noise.
    """
    bundle = write_tiny_bundle(tmp_path / "bundle")
    set_shortcuts(bundle, "organs", 3.0, least_ml=0, locator=write_tiny_bundle(tmp_path / "locator"))
    scans, labels = tmp_path / "scans", tmp_path / "labels"
    for folder in (scans, labels):
        folder.mkdir()
    voxels = np.full((80, 40, 40), -1000, dtype=np.int16)
    voxels[20:40, 10:30, 10:30] = tissue((20, 20, 20))
    voxels[75, 20, 20] = 300
    reference = np.zeros(voxels.shape, dtype=np.int16)
    reference[24:30, 12:20, 12:20] = 1
    reference[70:72, 20, 20] = 3
    write_scan(scans / "a_0000.nii.gz", voxels)
    write_scan(labels / "a.nii.gz", reference)
    return ["--bundle", str(bundle), "--scans", str(scans), "--labels", str(labels), "--precision", "fp32", "--out",
            str(tmp_path / "check.json")]  # fmt: skip


def test_what_is_saved_changed_and_cut(files: list[str], tmp_path: Path) -> None:
    assert main(files) == 0
    record = json.loads((tmp_path / "check.json").read_text())
    rows = {row["shortcut"]: row for row in record["rows"]}
    assert list(rows) == ["none", "air", "body", "organs"]
    assert rows["air"]["windows"] < rows["none"]["windows"]
    assert rows["organs"]["windows"] < rows["none"]["windows"]
    for organ in TINY_LABELS:
        change = rows["air"]["organs"][organ]
        assert change["dsc"] == 1
        assert change["before_ml"] == change["after_ml"] > 1
    metal = rows["organs"]["organs"]["third"]
    assert metal["before_ml"] - metal["after_ml"] == pytest.approx(0.006)
    assert metal["dsc"] < 1
    assert rows["none"]["outside_ml"] == dict.fromkeys(TINY_LABELS, 0.0)
    assert rows["organs"]["outside_ml"] == {"first": 0.0, "second": 0.0, "third": pytest.approx(0.012)}
    assert rows["organs"]["mean_dsc"] == pytest.approx(rows["none"]["mean_dsc"], abs=0.01)
    text = markdown(record)
    assert f"| a | {rows['none']['windows']}, DSC {rows['none']['mean_dsc']:.4f} | {rows['air']['windows']}, " in text
    assert text == (tmp_path / "check.md").read_text()


def test_a_folder_without_scans_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--scans", str(tmp_path), "--out", str(tmp_path / "check.json")]) == 3
    assert main(["--scans", str(tmp_path), "--only", "b", "--out", str(tmp_path / "check.json")]) == 3
    errors = capsys.readouterr().err
    assert f"{tmp_path}: no *_0000.nii.gz; expected scans" in errors
    assert f"{tmp_path}: no b_0000.nii.gz; expected scans" in errors


def test_what_was_mistyped_is_not_left_out(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*files, "--only", "a", "typo"]) == 3
    assert "no typo_0000.nii.gz" in capsys.readouterr().err
    assert main([*files, "--labels", str(tmp_path / "nowhere")]) == 3
    assert "nowhere: no such folder; expected label maps" in capsys.readouterr().err
    uncroppable = write_tiny_bundle(tmp_path / "uncroppable", tiny_plan() | {"crop_to_nonzero": True})
    assert main([*files, "--bundle", str(uncroppable)]) == 2
    assert "without crop_to_nonzero" in capsys.readouterr().err
    assert not (tmp_path / "check.json").exists()


def test_a_bad_scan_does_not_lose_the_others(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans" / "b_0000.nii.gz").write_bytes(b"no scan")
    write_scan(tmp_path / "scans" / "c_0000.nii.gz", tissue())
    write_scan(tmp_path / "labels" / "c.nii.gz", tissue((10, 11, 13)))
    assert main(files) == 1
    errors = capsys.readouterr().err
    assert "b_0000.nii.gz: " in errors
    assert "c.nii.gz: " in errors
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    assert {row["scan"] for row in rows} == {"a"}


def test_the_recorded_run_is_of_the_bundle_that_is_shipped() -> None:
    """And its table is as the tool writes it. What it cuts off is in README and the locator's card."""
    record = json.loads((ROOT / "tools" / "shortcut_check.json").read_text(encoding="utf-8"))
    assert markdown(record) == (ROOT / "tools" / "shortcut_check.md").read_text(encoding="utf-8")
    bundle = load_bundle(ROOT / "weights" / "default")
    assert record["sha256"]["network.onnx"] == bundle.sha256["network.onnx"]
    rows = [row for row in record["rows"] if row["shortcut"] == bundle.plan.shortcuts.crop]
    assert len(rows) == 10
    outside = {
        (row["scan"], organ): round(ml, 1) for row in rows for organ, ml in (row["outside_ml"] or {}).items() if ml > 0
    }
    assert outside == {("ct_004", "esophagus"): 2.1, ("ct_008", "left kidney"): 0.7}
