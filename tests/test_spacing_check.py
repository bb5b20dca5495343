"""What a grid costs: label maps of which it is known what survives."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, write_scan
from tools.spacing_check import main, markdown


def test_own_grid_keeps_all_and_a_coarse_one_loses_what_is_thin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A liver of 7.2 ml and an aorta of 1.15 ml that is one voxel of 1 mm wide, on voxels of 3 x 2 x 1 mm."""
    folder = tmp_path / "labels"
    folder.mkdir()
    labels = np.zeros((20, 20, 24), np.int16)
    labels[4:16, 3:13, 2:12] = 1
    labels[2:18, 2:14, 17] = 5
    write_scan(folder / "a.nii.gz", labels)
    labels[0, 0, 0] = 14
    write_scan(folder / "b.nii.gz", labels)
    out = tmp_path / "check.json"
    assert main(["--labels", str(folder), "--spacings", "3x2x1", "3x4x4", "--out", str(out)]) == 1
    assert "b.nii.gz: label 14; expected at most 13" in capsys.readouterr().err
    record = json.loads(out.read_text())
    own, coarse = record["rows"]
    assert (own["voxels"], coarse["voxels"]) == (9600, 20 * 10 * 6)
    assert own["organs"]["liver"] == {"dsc": 1, "nsd": 1, "reference_ml": pytest.approx(7.2)}
    assert own["organs"]["aorta"]["dsc"] == 1
    assert coarse["organs"]["liver"]["dsc"] > 0.8
    assert coarse["organs"]["aorta"]["dsc"] < 0.5
    table = out.with_suffix(".md").read_text()
    assert "| liver | 1.000, 1.000 (1) |" in table
    assert "| spleen | - | - |" in table
    assert "| voxels | 1.00 | 0.12 |" in table


def test_a_record_stays_if_nothing_can_be_measured(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "a.nii.gz").write_bytes(b"no label map")
    out = tmp_path / "check.json"
    out.write_text("earlier")
    assert main(["--labels", str(folder), "--spacings", "3x2x1", "--out", str(out)]) == 1
    assert out.read_text() == "earlier"


def test_wrong_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--spacings", "2x2", "--out", str(tmp_path / "x.json")])
    assert "expected ZxYxX in mm" in capsys.readouterr().err
    assert main(["--labels", str(tmp_path), "--spacings", "2x2x2", "--out", str(tmp_path / "x.json")]) == 3
    assert "no label maps; expected X.nii.gz" in capsys.readouterr().err


def test_the_table_is_of_the_record() -> None:
    record = json.loads((ROOT / "tools" / "spacing_check.json").read_text(encoding="utf-8"))
    assert markdown(record) == (ROOT / "tools" / "spacing_check.md").read_text(encoding="utf-8")
