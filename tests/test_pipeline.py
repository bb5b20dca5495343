"""The whole story: oracle networks, the two protocols of the paper, 2-D networks, and real scans."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.__main__ import main
from app.options import Options
from app.pipeline import segment
from app.plan import NetworkPlan, Plan
from app.volume import Float32Array, Geometry, Shape, Vector, Volume
from tests.conftest import EXPECTED_MEAN_DSC, Oracle, default_plan, mean_dsc


def thresholds(tile: Float32Array) -> Float32Array:
    """Class 0 below 0 HU, 1 up to 100 HU, 2 above: logits of each voxel's normalised value."""
    hu = tile * 110 + 50
    return np.stack([np.zeros_like(hu), hu, 2 * hu - 100])


@pytest.fixture
def plan() -> Plan:
    plan = default_plan()
    window = replace(plan.sliding_window, patch_size=(16, 16, 16))
    return replace(plan, labels=("low", "high"), sliding_window=window)


def scan(shape: Shape, spacing: Vector) -> Volume:
    voxels = np.random.default_rng(0).integers(-200, 300, shape).astype(np.int16)
    identity = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return Volume(voxels, Geometry(shape, spacing, identity, (0.0, 0.0, 0.0)))


@pytest.mark.parametrize("mode", ["fastest", "normal"])
@pytest.mark.parametrize("shape", [(10, 11, 12), (40, 17, 23), (1, 30, 5)])
def test_thresholds_come_back_voxel_by_voxel(plan: Plan, shape: Shape, mode: str) -> None:
    volume = scan(shape, plan.spacing.target_zyx_mm)
    label_map, record, _ = segment(volume, Oracle(thresholds), plan, Options(mode=mode, spacing="resample"))  # type: ignore[arg-type]
    assert record.grid.shape_zyx == shape
    hu = volume.voxels.astype(np.int32)
    certain = (np.abs(hu) > 0) & (np.abs(hu - 100) > 0)
    expected = (hu > 0).astype(np.uint8) + (hu > 100)
    assert np.array_equal(label_map[certain], expected[certain])
    assert label_map.dtype == np.uint8


def test_papers_test_protocol_overrides_the_header_and_restores_the_grid(plan: Plan) -> None:
    """150 slices of 5 mm are taken for 0.5 mm: 75 mm, 30 voxels of 2.5 mm."""
    volume = scan((150, 20, 24), (5.0, 1.0, 1.0))
    oracle = Oracle(thresholds)
    label_map, record, restoration = segment(volume, oracle, plan, Options(mode="fastest", spacing="header"))
    assert record.grid.source_zyx_mm == (0.5, 0.75, 0.75)
    assert record.grid.shape_zyx == (30, 8, 9)
    assert label_map.shape == (150, 20, 24)
    assert restoration.shortcut_share == 1
    assert record.oriented.spacing_zyx_mm == (5.0, 1.0, 1.0)


def test_papers_validation_protocol_mirrors_at_the_true_spacing(plan: Plan) -> None:
    window = replace(plan.sliding_window, mirror_axes=(0, 1, 2))
    mirrored = replace(plan, sliding_window=window)
    volume = scan((150, 20, 24), (5.0, 1.0, 1.0))
    oracle, plain = Oracle(thresholds), Oracle(thresholds)
    options = Options(mode="normal", spacing="off", mirror=True)
    found, record, _ = segment(volume, oracle, mirrored, options)
    expected, _, _ = segment(volume, plain, mirrored, replace(options, mirror=False))
    assert record.grid.source_zyx_mm == (5.0, 1.0, 1.0)
    assert record.grid.shape_zyx == (300, 10, 12)
    assert oracle.calls == 8 * plain.calls
    assert np.mean(found == expected) > 0.9999  # a pointwise oracle does not care for flips


def test_two_dimensional_networks_take_the_same_way(plan: Plan) -> None:
    window = replace(plan.sliding_window, patch_size=(1, 16, 16))
    network = NetworkPlan(features_per_stage=(4, 8), strides=((1, 1), (2, 2)), kernel_sizes=((3, 3), (3, 3)))
    flat = replace(plan, network=network, sliding_window=window)
    volume = scan((7, 20, 24), plan.spacing.target_zyx_mm)
    shapes = set()

    def watch(tile: Float32Array) -> Float32Array:
        shapes.add(tile.shape)
        return thresholds(tile)

    found, _, _ = segment(volume, Oracle(watch), flat, Options(mode="fastest", spacing="off"))
    expected, _, _ = segment(volume, Oracle(thresholds), plan, Options(mode="fastest", spacing="off"))
    assert shapes == {(1, 16, 16)}
    assert np.mean(found == expected) > 0.999


@pytest.mark.long
@pytest.mark.parametrize("case", sorted(EXPECTED_MEAN_DSC))
def test_real_scans_reach_the_recorded_dsc(case: str, shared_data: Path, tmp_path: Path) -> None:
    scan_path = shared_data / "images" / f"{case}_0000.nii.gz"
    output, report = tmp_path / f"{case}.nii.gz", tmp_path / "report.json"
    assert (
        main(["--input", str(scan_path), "--output", str(output), "--precision", "fp32", "--report", str(report)]) == 0
    )
    label_map, source = nib.load(output), nib.load(scan_path)
    assert np.array_equal(label_map.affine, source.affine)
    prediction = np.asarray(label_map.dataobj)
    assert mean_dsc(prediction, shared_data, case) == pytest.approx(EXPECTED_MEAN_DSC[case], abs=0.01)
    volumes = json.loads(report.read_text())["cases"][0]["volumes_ml"]
    voxel_ml = np.prod(source.header.get_zooms()) / 1000
    assert volumes["liver"] == pytest.approx(np.count_nonzero(prediction == 1) * voxel_ml, rel=1e-4)
