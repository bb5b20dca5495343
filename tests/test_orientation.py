"""Turning a grid to LPS and back: properties of the axis map, and whole runs in all 48 orientations of a scan."""

import json
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import ornt_transform

from app.backends import create_predictor
from app.bundle import load_bundle
from app.options import Options
from app.orientation import AxisMap, as_matrix, axis_map_to_lps, cranio_caudal_axis
from app.pipeline import segment
from app.sliding_window import count_windows
from app.volume import Geometry, LabelArray, Shape, Vector
from app.volume_io import read_volume, write_label_map
from tests.conftest import (
    Affine,
    ras_affine,
    rotated_affine,
    run_app,
    tiny_label_map,
    tiny_plan,
    tissue,
    write_scan,
    write_tiny_bundle,
)

AXIS_MAPS = [
    AxisMap((first, second, third), (flip_first, flip_second, flip_third))
    for first, second, third in permutations((0, 1, 2))
    for flip_first, flip_second, flip_third in product((False, True), repeat=3)
]
# nibabel's way to say the same 48 things: per voxel axis, the axis that it becomes and its sign
ORIENTATIONS = [
    np.array(list(zip(order, signs, strict=True)), dtype=float)
    for order in permutations((0, 1, 2))
    for signs in product((1, -1), repeat=3)
]
STORED = np.array([[0, 1], [1, 1], [2, 1]], dtype=float)

shapes = st.tuples(*[st.integers(1, 5)] * 3)
spacings = st.tuples(*[st.floats(0.3, 8.0)] * 3)


def geometry_of(shape_zyx: Shape, spacing_zyx_mm: Vector, degrees: float) -> Geometry:
    rotation = rotated_affine(degrees, (1.0, 1.0, 1.0))[:3, :3]
    return Geometry(shape_zyx, spacing_zyx_mm, as_matrix(rotation), (5.0, -7.0, 11.0))


def world_positions(geometry: Geometry) -> Affine:
    """(3, z, y, x) mm of every voxel: origin + sum over axes of index * spacing * direction column."""
    indices = np.indices(geometry.shape_zyx)
    edges = np.asarray(geometry.direction) * np.asarray(geometry.spacing_zyx_mm)
    positions: Affine = np.einsum("wa,azyx->wzyx", edges, indices) + np.reshape(geometry.origin_zyx_mm, (3, 1, 1, 1))
    return positions


def test_there_are_48_axis_maps() -> None:
    assert len(set(AXIS_MAPS)) == 48
    assert len({orientation.tobytes() for orientation in ORIENTATIONS}) == 48


@given(axis_map=st.sampled_from(AXIS_MAPS), shape=shapes)
def test_undo_is_the_inverse_of_apply_and_copies_nothing(axis_map: AxisMap, shape: Shape) -> None:
    array = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    assert np.array_equal(axis_map.undo(axis_map.apply(array)), array)
    assert np.array_equal(axis_map.apply(axis_map.undo(array)), array)
    assert np.shares_memory(axis_map.apply(array), array)
    assert np.shares_memory(axis_map.undo(array), array)


@given(axis_map=st.sampled_from(AXIS_MAPS), shape=shapes, spacing=spacings, degrees=st.floats(-180, 180))
def test_every_voxel_stays_where_it_is_in_the_patient(
    axis_map: AxisMap, shape: Shape, spacing: Vector, degrees: float
) -> None:
    geometry = geometry_of(shape, spacing, degrees)
    mapped = axis_map.apply_to_geometry(geometry)
    expected = np.stack([axis_map.apply(component) for component in world_positions(geometry)])
    assert mapped.shape_zyx == expected.shape[1:]
    np.testing.assert_allclose(world_positions(mapped), expected, atol=1e-9)
    assert mapped.voxel_volume_ml == pytest.approx(geometry.voxel_volume_ml)


@given(axis_map=st.sampled_from(AXIS_MAPS), degrees=st.floats(-35, 35))
def test_the_mapped_grid_is_lps_by_nibabels_judgement(axis_map: AxisMap, degrees: float) -> None:
    stored = axis_map.apply_to_geometry(geometry_of((3, 4, 5), (3.0, 2.0, 1.0), degrees))
    mapped = axis_map_to_lps(stored).apply_to_geometry(stored)
    assert nib.aff2axcodes(ras_affine(mapped)) == ("L", "P", "S")


def test_worked_example() -> None:
    """Stored (x, z, y) with x to the right; the world's components are (superior, posterior, left)."""
    geometry = Geometry((4, 5, 6), (1.0, 3.0, 2.0), ((0, 1, 0), (0, 0, 1), (-1, 0, 0)), (0.0, 0.0, 0.0))
    assert axis_map_to_lps(geometry) == AxisMap(order=(1, 2, 0), flips=(False, False, True))
    assert cranio_caudal_axis(geometry) == 1
    mapped = axis_map_to_lps(geometry).apply_to_geometry(geometry)
    assert mapped == Geometry((5, 6, 4), (3.0, 2.0, 1.0), ((1, 0, 0), (0, 1, 0), (0, 0, 1)), (0.0, 0.0, -3.0))


def write_reoriented(folder: Path, affine: Affine, shape: Shape) -> list[Path]:
    """The same synthetic scan 48 times, turned by nibabel."""
    image = nib.Nifti1Image(tissue(shape).transpose(), affine)
    paths = [folder / f"case_{index:02d}.nii" for index in range(len(ORIENTATIONS))]
    for path, orientation in zip(paths, ORIENTATIONS, strict=True):
        nib.save(image.as_reoriented(orientation), path)
    return paths


def turned_back(path: Path, orientation: Affine) -> LabelArray:
    """The label map in a file, turned back by nibabel to how the scan was first: (z, y, x)."""
    image = nib.load(path).as_reoriented(ornt_transform(STORED, orientation))
    return np.asarray(image.dataobj).transpose()


@pytest.mark.parametrize("degrees", [0.0, 20.0])
@pytest.mark.parametrize("zooms_xyz", [(1.0, 2.0, 3.0), (1.3, 1.9, 3.7)])
def test_a_synthetic_scan_in_all_48_orientations(
    tmp_path: Path, tiny_bundle: Path, degrees: float, zooms_xyz: Vector
) -> None:
    scans, outputs, shape = tmp_path / "scans", tmp_path / "labels", (10, 11, 12)
    scans.mkdir()
    write_reoriented(scans, rotated_affine(degrees, zooms_xyz), shape)
    assert run_app("--input-dir", scans, "--output-dir", outputs, "--bundle", tiny_bundle, "--device", "cpu") == 0
    first = turned_back(outputs / "case_00.nii.gz", ORIENTATIONS[0])
    if zooms_xyz == (1.0, 2.0, 3.0):  # the bundle's own spacing: nothing is interpolated
        assert np.array_equal(first, tiny_label_map(tissue(shape)))
    for index, orientation in enumerate(ORIENTATIONS):
        label_map = turned_back(outputs / f"case_{index:02d}.nii.gz", orientation)
        assert np.array_equal(label_map, first), orientation.tolist()
        scan_affine = nib.load(scans / f"case_{index:02d}.nii").affine
        assert np.array_equal(nib.load(outputs / f"case_{index:02d}.nii.gz").affine, scan_affine)


@pytest.mark.parametrize(("orientation", "network_shape"), [("LPS", [10, 11, 12]), ("as_stored", [4, 11, 30])])
def test_as_stored_bundles_turn_nothing(tmp_path: Path, orientation: str, network_shape: list[int]) -> None:
    """12x11x10 voxels of 1x2x3 mm, sagittal slices first: 3x2x1 mm make 12 / 3, 11 and 10 * 3 of them as stored."""
    bundle = write_tiny_bundle(tmp_path / "bundle", {**tiny_plan(), "orientation": orientation})
    path = write_scan(tmp_path / "a.nii", tissue(), affine=np.diag([-1.0, -2.0, 3.0, 1.0]))
    turned = nib.load(path).as_reoriented(np.array([[2, 1], [1, 1], [0, 1]], dtype=float))
    nib.save(turned, path)
    report = tmp_path / "report.json"
    assert run_app("--input", path, "--output", tmp_path / "o.nii", "--bundle", bundle, "--report", report) == 0
    assert json.loads(report.read_text())["cases"][0]["network_shape_zyx"] == network_shape


@pytest.mark.long
def test_a_real_scan_in_all_48_orientations(tmp_path: Path, shared_data: Path, default_bundle: Path) -> None:
    """A crop that one window sees whole, so that 48 of them take a minute or two."""
    bundle = load_bundle(default_bundle)
    predictor, _ = create_predictor(bundle, "auto", "cpu", "auto")
    options = Options(mode="fastest", spacing="resample")
    scan = nib.load(shared_data / "images" / "ct_006_0000.nii.gz")
    crop = scan.slicer[100:398, 60:358, 2:34]
    maps = []
    for orientation in ORIENTATIONS:
        path = tmp_path / "scan.nii"
        nib.save(crop.as_reoriented(orientation), path)
        volume = read_volume(path)
        label_map, record, _ = segment(volume, predictor, bundle.plan, options)
        assert count_windows(record.grid.shape_zyx, bundle.plan.sliding_window) == 1
        write_label_map(tmp_path / "labels.nii", label_map, volume)
        maps.append(turned_back(tmp_path / "labels.nii", orientation).tobytes())
    assert len(set(np.frombuffer(maps[0], np.uint8))) > 8  # organs are there to be mistaken
    assert [index for index, found in enumerate(maps) if found != maps[0]] == []
