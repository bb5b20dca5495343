"""The tool that measures what plausibility is judged by: which scans it has looked at, and with which label maps."""

import json
from pathlib import Path

import numpy as np
import pytest

from app.plan import parse_plan
from tests.conftest import Oracle, tiny_plan, tissue, write_scan, write_tiny_bundle
from tools.plausibility_check import main
from tools.robustness.measure import Networks


def logits(tile: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(tile), tile, tile - 1, tile - 2])


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Networks:
    found = Networks(parse_plan(json.dumps(tiny_plan()), "plan.json"), Oracle(logits))
    monkeypatch.setattr("tools.plausibility_check.load_networks", lambda *_, **__: found)
    return found


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "scans").mkdir()
    write_scan(tmp_path / "scans" / "a_0000.nii.gz", tissue())
    files = ["--scans", str(tmp_path / "scans"), "--out", str(tmp_path / "out" / "check.json")]
    bundle = write_tiny_bundle(tmp_path / "bundle")
    return [*files, "--work", str(tmp_path / "work"), "--bundle", str(bundle), "--turns", "z"]


def changes(tmp_path: Path) -> dict[str, list[str]]:
    rows = json.loads((tmp_path / "out" / "check.json").read_text())["rows"]
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["scan"], []).append(row["change"])
    return found


def test_a_bad_scan_does_not_lose_the_others(
    arguments: list[str], networks: Networks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans" / "b_0000.nii.gz").write_bytes(b"no scan")
    write_scan(tmp_path / "scans" / "c_0000.nii.gz", tissue(seed=1))
    assert main(arguments) == 1
    assert "b_0000.nii.gz" in capsys.readouterr().err
    assert list(changes(tmp_path)) == ["a", "c"]
    assert changes(tmp_path)["a"][0] == "as_is" and changes(tmp_path)["a"][-1] == "z"


def test_no_scan_is_not_in_order(arguments: list[str], networks: Networks, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--scans", "nowhere"]) == 3
    assert "nowhere: no X_0000.nii.gz" in capsys.readouterr().err
    assert main([*arguments, "--bundle", "nowhere"]) == 4


def test_label_maps_are_kept_by_what_the_scan_is(arguments: list[str], networks: Networks, tmp_path: Path) -> None:
    def calls() -> int:
        return networks.predictor.calls  # type: ignore[attr-defined,no-any-return]

    assert main([*arguments, "--kept"]) == 1
    assert calls() == 0
    assert not (tmp_path / "out" / "check.json").exists()
    main(arguments)
    once = calls()
    main(arguments)
    assert (calls(), once > 0) == (once, True)
    write_scan(tmp_path / "scans" / "a_0000.nii.gz", tissue(seed=1))
    main(arguments)
    assert calls() == 2 * once
