"""What half precision changes: the tool on scans of which both label maps are known."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.bundle import load_bundle
from tests.conftest import TINY_LABELS, tissue, write_scan, write_tiny_bundle
from tools.precision_check import main


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "scans").mkdir()
    write_scan(tmp_path / "scans" / "a_0000.nii.gz", tissue((20, 20, 20)))
    bundle = write_tiny_bundle(tmp_path / "bundle")
    return ["--bundle", str(bundle), "--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "out" / "check.json")]


def pretend(monkeypatch: pytest.MonkeyPatch, shift: int, code: int = 0) -> None:
    """Label maps of 20 x 20 x 20 voxels of 6 mm3: of label 1 a block of 4 ml, in bf16 moved by some voxels."""
    import numpy as np

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        options = dict(zip(command[3::2], command[4::2], strict=True))
        out = Path(options["--output-dir"])
        out.mkdir()
        labels = np.zeros((20, 20, 20), np.int16)
        moved = shift if options["--precision"] == "bf16" else 0
        labels[moved : moved + 10, :10, :7] = 1
        labels[19, 19, 19 - moved] = 2
        write_scan(out / "a.nii.gz", labels)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)


def test_the_app_runs_in_both_precisions(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really, though both times in fp32: not every CPU has bf16."""
    commands: list[list[str]] = []
    run = subprocess.run

    def watch(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        if "app" not in command:
            return run(command, **options)  # git
        commands.append(command)
        return run(
            [argument.replace("bf16", "fp32") if argument == "bf16" else argument for argument in command], **options
        )

    monkeypatch.setattr(subprocess, "run", watch)
    assert main(arguments) == 0
    assert [command[command.index("--precision") + 1] for command in commands] == ["fp32", "bf16"]
    record = json.loads((tmp_path / "out" / "check.json").read_text())
    assert record["organs"] == list(TINY_LABELS)
    assert record["sha256"] == load_bundle(tmp_path / "bundle").sha256
    (row,) = record["rows"]
    assert (row["scan"], row["different_voxels"], row["worst"]["dsc"]) == ("a", 0, 1)


@pytest.mark.parametrize(("shift", "code", "expected"), [(0, 0, 0), (1, 0, 1), (0, 1, 1)])
def test_an_organ_of_over_1_ml_has_to_agree(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int, code: int, expected: int
) -> None:
    pretend(monkeypatch, shift, code)
    assert main(arguments) == expected
    record = json.loads((tmp_path / "out" / "check.json").read_text())
    (row,) = record["rows"]
    assert row["organs"]["first"] == {
        "fp32_ml": pytest.approx(4.2),
        "bf16_ml": pytest.approx(4.2),
        "dsc": 1 - shift / 10,
    }
    assert row["worst"] == {"organ": "first", "dsc": 1 - shift / 10}
    text = (tmp_path / "out" / "check.md").read_text()
    assert f"| first | 1 | {1 - shift / 10:.4f} | a |" in text
    assert "| second | 0 | - | - |" in text
    assert f"Below 0.995: {shift} of 1 organs" in text


def test_a_scan_that_fails_is_named(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scans" / "b_0000.nii.gz").touch()
    pretend(monkeypatch, 0, 1)
    assert main(arguments) == 1
    assert json.loads((tmp_path / "out" / "check.json").read_text())["failed"] == ["b"]
    assert "Not segmented in both precisions, and so not compared: b." in (tmp_path / "out" / "check.md").read_text()


def test_a_run_that_fails_as_a_whole_is_said(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, 0, 4)
    assert main(arguments) == 4
    assert "the app ended with 4 in fp32" in capsys.readouterr().err


def test_the_table_is_not_overwritten_by_the_record(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments[:-1], "check.md"]) == 2
    assert "expected FILE.json" in capsys.readouterr().err
