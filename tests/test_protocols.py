"""The paper's two protocols, with the command lines of the README, and a 2-D bundle."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from tests.conftest import (
    TINY_SPACING_ZYX_MM,
    read_label_map,
    run_app,
    tiny_label_map,
    tiny_plan,
    tissue,
    write_scan,
    write_tiny_bundle,
)


def segment(folder: Path, hu_zyx: npt.NDArray[np.int16], *options: object) -> dict[str, Any]:
    """Segments one scan, folder to folder; the report."""
    (folder / "scans").mkdir()
    write_scan(folder / "scans" / "x_0000.nii.gz", hu_zyx)
    files = ("--input-dir", folder / "scans", "--output-dir", folder / "labels", "--report", folder / "report.json")
    assert run_app(*files, *options) == 0
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def protocol_bundle(folder: Path, mirror_axes: list[int], postprocessing: dict[str, Any]) -> Path:
    plan = tiny_plan()
    plan["sliding_window"]["mirror_axes"] = mirror_axes
    plan["postprocessing"] = postprocessing
    plan["spacing"]["enforce"] = "resample"
    return write_tiny_bundle(folder, plan)


def test_the_papers_validation_protocol(tmp_path: Path) -> None:
    """True spacing, normal mode, mirroring, post-processing: of two boxes the larger stays."""
    bundle = protocol_bundle(tmp_path / "bundle", [0, 1, 2], {"largest_component": ["second"]})
    hu = np.full((20, 20, 20), -100, dtype=np.int16)
    hu[2:8, 2:8, 2:8] = hu[12:14, 12:14, 12:14] = 100
    report = segment(tmp_path, hu, "--bundle", bundle, "--spacing", "off", "--mode", "normal", "--mirror")
    expected = tiny_label_map(hu)
    expected[12:14, 12:14, 12:14] = 0
    assert np.array_equal(read_label_map(tmp_path / "labels" / "x.nii.gz"), expected)
    assert report["cases"][0]["network_spacing_zyx_mm"] == list(TINY_SPACING_ZYX_MM)


def test_the_papers_test_protocol(tmp_path: Path) -> None:
    """Enforced spacing, fastest mode, no mirroring, no post-processing: 150 slices of 3 mm are taken for 0.5 mm."""
    bundle = protocol_bundle(tmp_path / "bundle", [0, 1, 2], {})
    hu = tissue((150, 20, 20))
    (case,) = segment(tmp_path, hu, "--bundle", bundle, "--spacing", "header", "--mode", "fastest")["cases"]
    assert case["network_shape_zyx"] == [25, 8, 15]  # 150 * 0.5 / 3, 20 * 0.75 / 2, 20 * 0.75 / 1
    label_map = nib.load(tmp_path / "labels" / "x.nii.gz")
    assert label_map.shape == (20, 20, 150)
    assert np.array_equal(label_map.affine, nib.load(tmp_path / "scans" / "x_0000.nii.gz").affine)


def test_a_two_dimensional_bundle_with_mirroring(tmp_path: Path) -> None:
    plan = tiny_plan()
    plan["network"] = {"features_per_stage": [2, 4], "strides": [[1, 1], [2, 2]], "kernel_sizes": [[3, 3], [3, 3]]}
    plan["sliding_window"].update(patch_size=[1, 16, 16], mirror_axes=[1, 2])
    bundle = write_tiny_bundle(tmp_path / "bundle", plan, patch=(16, 16))
    scan = write_scan(tmp_path / "x.nii.gz", tissue((5, 21, 22)))
    output = tmp_path / "labels.nii.gz"
    assert run_app("--input", scan, "--output", output, "--bundle", bundle, "--mirror") == 0
    assert np.array_equal(read_label_map(output), tiny_label_map(tissue((5, 21, 22))))
