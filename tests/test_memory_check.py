"""Predicted against measured memory: real runs of a tiny network, each in a process of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.bundle import load_bundle
from tests.conftest import tissue, write_scan
from tools.memory_check import main


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}_0000.nii.gz" for name in "ab"]
    for path, side in zip(paths, (20, 30), strict=True):
        write_scan(path, tissue((side, 20, 20)))
    return paths


def run(bundle: Path, out: Path, *words: object) -> tuple[int, dict[str, Any], str]:
    code = main([*map(str, words), "--bundle", str(bundle), "--out", str(out / "check.json")])
    return code, json.loads((out / "check.json").read_text()), (out / "check.md").read_text()


def test_every_scan_is_compared_with_what_its_process_took(
    tiny_bundle: Path, tmp_path: Path, scans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, record, table = run(tiny_bundle, tmp_path, *scans)
    assert [found["scan"] for found in record["scans"]] == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert [found["shape_zyx"] for found in record["scans"]] == [[20, 20, 20], [30, 20, 20]]
    assert record["sha256"] == load_bundle(tiny_bundle).sha256
    assert record["command"].startswith("python -m tools.memory_check ")
    for found in record["scans"]:
        assert 50 < found["measured_mib"] < 1000  # an interpreter with OpenVINO
        assert found["predicted_mib"] == pytest.approx((1 + found["deviation"]) * found["measured_mib"])
        assert f"| {found['measured_mib']:.0f} | {100 * found['deviation']:+.1f} % |" in table
    assert code == int(any(abs(found["deviation"]) > 0.15 for found in record["scans"]))
    assert table in capsys.readouterr().out


def test_a_scan_that_cannot_be_segmented_does_not_stop_the_others(
    tiny_bundle: Path, tmp_path: Path, scans: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    scans[0].write_bytes(b"no scan")
    code, record, _ = run(tiny_bundle, tmp_path, *scans)
    assert code == 1
    assert [found["scan"] for found in record["scans"]] == ["b_0000.nii.gz"]
    assert "a_0000.nii.gz" in capfd.readouterr().err


def test_a_scan_that_is_not_there_ends_it_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    assert main([str(tmp_path / "x.nii.gz"), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "out.json")]) == 3
    assert not (tmp_path / "out.json").exists()
