"""The box that is segmented: what bounds it, how it grows, and that the label map comes back in its place."""

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from app.__main__ import main
from app.bundle import load_bundle, write_hashes
from app.errors import BundleError
from app.options import Options
from app.pipeline import segment
from app.plan import Plan, ShortcutPlan, parse_plan
from app.preprocessing import Box
from app.region import Locator, find_region
from app.sliding_window import AirSkipper, count_windows
from app.spacing import network_grid
from app.volume import Float32Array, Geometry, Matrix, Shape, Vector, Volume
from tests.conftest import Oracle, tiny_label_map, tiny_plan, tissue, write_scan, write_tiny_bundle
from tools.convert.__main__ import main as convert
from tools.convert.bundles import set_shortcuts

LPS: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def scan(voxels: npt.NDArray[np.int16], spacing: Vector, direction: Matrix = LPS) -> Volume:
    z, y, x = voxels.shape
    return Volume(voxels, Geometry((z, y, x), spacing, direction, (0.0, 0.0, 0.0)))


def plan(target: Vector = (2.0, 2.0, 2.0), patch: Shape = (8, 8, 8), step: float = 0.5, margin_mm: float = 4) -> Plan:
    tiny = parse_plan(json.dumps(tiny_plan()), "plan.json")
    return replace(
        tiny,
        labels=("organ",),
        spacing=replace(tiny.spacing, target_zyx_mm=target),
        sliding_window=replace(tiny.sliding_window, patch_size=patch, tile_step_size=step),
        shortcuts=ShortcutPlan(margin_mm=margin_mm, least_ml=0),
    )


def bright(tile: Float32Array) -> Float32Array:
    """The organ is what exceeds 100 HU."""
    return np.stack([np.zeros_like(tile), tile - 0.5])


def locator(spacing_mm: float = 4.0) -> Locator:
    return Locator(plan((spacing_mm, spacing_mm, spacing_mm)), Oracle(bright))


def sizes(box: Box | None) -> list[tuple[int, int]]:
    assert box is not None
    return [(side.start, side.stop) for side in box]


def edit_plan(folder: Path, **values: object) -> None:
    path = folder / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    write_hashes(folder)


def test_organs_get_a_margin_and_then_whole_windows() -> None:
    """An organ in voxels 40:60 of 2 mm; 2 voxels (4 mm) around it make 24, and windows of 8, 4 apart, cover 24."""
    voxels = np.full((100, 100, 100), -100, dtype=np.int16)
    voxels[40:60, 40:60, 40:58] = 200
    box = find_region(scan(voxels, (2.0, 2.0, 2.0)), plan(), "organs", "off", locator())
    # x: 40:58 and the margin are 38:60, 22 voxels; the five windows they need cover 24: one more on either side.
    assert sizes(box) == [(38, 62), (38, 62), (37, 61)]


def test_a_box_at_the_border_grows_inwards_and_not_beyond_the_scan() -> None:
    voxels = np.full((10, 60, 60), -100, dtype=np.int16)
    voxels[:, :12, 50:] = 200
    box = find_region(scan(voxels, (2.0, 2.0, 2.0)), plan(patch=(16, 32, 32)), "organs", "off", locator())
    assert sizes(box) == [(0, 10), (0, 32), (28, 60)]


def test_specks_are_not_organs() -> None:
    """One voxel of 4 mm is 0.064 ml; 27 of them are 1.7 ml."""
    voxels = np.full((60, 60, 60), -100, dtype=np.int16)
    voxels[2:4, 2:4, 2:4] = 200
    assert find_region(scan(voxels, (2.0, 2.0, 2.0)), plan(), "organs", "off", locator()) is None
    voxels[40:46, 40:46, 40:46] = 200
    box = find_region(scan(voxels, (2.0, 2.0, 2.0)), plan(), "organs", "off", locator())
    assert all(start > 30 for start, _ in sizes(box))


def test_too_little_of_organs_is_not_believed() -> None:
    """16 x 20 x 20 voxels of 8 mm3 are 51.2 ml."""
    voxels = np.full((60, 60, 60), -100, dtype=np.int16)
    voxels[20:36, 20:40, 20:40] = 200
    for least_ml, believed in ((51.0, True), (51.3, False)):
        used = replace(plan(), shortcuts=ShortcutPlan(margin_mm=0, least_ml=least_ml))
        box = find_region(scan(voxels, (2.0, 2.0, 2.0)), used, "organs", "off", locator())
        assert (box is not None) == believed


def test_the_body_is_the_largest_dense_part_and_not_the_table() -> None:
    voxels = np.full((40, 100, 120), -1000, dtype=np.int16)
    voxels[:, 30:70, 40:90] = 40
    voxels[:, 90:92, :] = 100  # a table, parted from the patient by air
    found = find_region(scan(voxels, (2.0, 2.0, 2.0)), plan(patch=(8, 2, 2), step=1.0), "body", "off", None)
    # 8 mm around 30:70 and 40:90.
    assert sizes(found) == [(0, 40), (26, 74), (36, 94)]


def test_a_single_slice_and_air_alone_have_a_region_too() -> None:
    voxels = np.full((1, 60, 60), -1000, dtype=np.int16)
    assert find_region(scan(voxels, (5.0, 2.0, 2.0)), plan(), "body", "off", None) is None
    voxels[:, 20:40, 20:40] = 0
    z, y, x = sizes(find_region(scan(voxels, (5.0, 2.0, 2.0)), plan(), "body", "off", None))
    assert z == (0, 1)
    assert y[0] <= 20 - 4
    assert x[1] >= 40 + 4


def test_hounsfield_units_count_and_not_stored_numbers() -> None:
    stored = np.full((20, 60, 60), 0, dtype=np.int16)
    stored[:, 20:40, 20:40] = 1040
    volume = replace(scan(stored, (2.0, 2.0, 2.0)), intercept=-1024.0)
    assert sizes(find_region(volume, plan(), "body", "off", None))[1][0] > 4


def test_the_box_is_on_the_oriented_grid() -> None:
    """Stored from head to feet: the feet's end, which is the last slice, is where the oriented axis starts."""
    voxels = np.full((100, 40, 40), -100, dtype=np.int16)
    voxels[70:90] = 200
    flipped: Matrix = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    box = find_region(scan(voxels, (2.0, 2.0, 2.0), flipped), plan(), "organs", "off", locator())
    assert sizes(box)[0] == (8, 32)


@pytest.mark.parametrize("seed", range(8))
def test_filling_windows_never_costs_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    voxels = np.full(tuple(random.integers(40, 90, 3)), -100, dtype=np.int16)
    start = random.integers(0, 20, 3)
    stop = start + random.integers(6, 20, 3)
    voxels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 200
    spacing: Vector = tuple(random.uniform(1.0, 3.0, 3))
    used = plan(target=(2.5, 2.0, 2.0), patch=(8, 16, 16), step=0.7, margin_mm=0)
    box = find_region(scan(voxels, spacing), used, "organs", "off", locator(spacing_mm=2.0))
    assert box is not None

    def windows(shape: tuple[int, ...]) -> int:
        grid = network_grid((shape[0], shape[1], shape[2]), spacing, 0, used.spacing, "off")
        return count_windows(grid.shape_zyx, used.sliding_window)

    sides = [side.stop - side.start for side in box]
    assert windows(tuple(sides)) <= windows(tuple(b - a + 4 for a, b in zip(start, stop, strict=True)))
    for axis, (first, last) in enumerate(sizes(box)):
        assert first <= start[axis]
        assert last >= stop[axis]


def test_a_rounded_grid_costs_no_further_window_either() -> None:
    """52 voxels of 1.9 mm are 40 of 2.5 (39.52), two windows of 24 that could cover 40; of 53 they would be 41."""
    voxels = np.full((100, 8, 8), -100, dtype=np.int16)
    voxels[20:72] = 200
    used = plan(target=(2.5, 2.0, 2.0), patch=(24, 8, 8), step=2 / 3, margin_mm=0)
    box = find_region(scan(voxels, (1.9, 2.0, 2.0)), used, "organs", "off", locator(spacing_mm=1.9))
    assert sizes(box)[0] == (20, 72)


def test_a_box_is_not_enlarged_where_that_makes_the_grid_coarser() -> None:
    """60 slices of 2 mm on a grid of at most 40: 3 mm. Windows of 16, 8 apart, could cover 40 to 48 of them."""
    voxels = np.full((100, 8, 8), -100, dtype=np.int16)
    voxels[20:80] = 200
    used = plan(patch=(16, 8, 8), margin_mm=0)
    used = replace(used, spacing=replace(used.spacing, largest_grid_zyx=(39, 400, 400)))
    box = find_region(scan(voxels, (2.0, 2.0, 2.0)), used, "organs", "resample", locator(spacing_mm=2.0))
    assert sizes(box)[0] == (20, 80)


@pytest.mark.parametrize("crop", ["body", "organs"])
def test_a_plan_with_a_crop_or_order_of_its_own_is_not_cropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, crop: str
) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    source = write_scan(tmp_path / "scan.nii.gz", tissue())
    for changes in ({"crop_to_nonzero": True}, {"transpose_forward": [1, 0, 2]}):
        edit_plan(folder, **{"crop_to_nonzero": False, "transpose_forward": [0, 1, 2], **changes})
        arguments = ["--bundle", str(folder), "--input", str(source), "--output", str(tmp_path / "out.nii.gz")]
        assert main([*arguments, "--crop", crop]) == 2
        assert "choose --crop none" in caplog.text
        caplog.clear()
        assert main([*arguments, "--precision", "fp32"]) == 0


def test_a_locator_that_crops_is_refused(located_bundle: Path) -> None:
    edit_plan(located_bundle / "locator", crop_to_nonzero=True)
    write_hashes(located_bundle)
    with pytest.raises(BundleError, match="crop_to_nonzero false"):
        load_bundle(located_bundle)


@pytest.mark.parametrize("mode", ["fastest", "normal"])
def test_labels_lie_where_they_did_and_nothing_lies_outside(mode: str) -> None:
    voxels = np.full((60, 50, 40), -100, dtype=np.int16)
    voxels[20:40, 15:31, 10:20] = 200
    flipped: Matrix = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
    volume = scan(voxels, (2.0, 2.0, 2.0), flipped)
    options = Options(mode=mode, spacing="off", crop="organs")  # type: ignore[arg-type]
    network = Oracle(bright)
    label_map, record, _ = segment(volume, network, plan(), options, locator=locator())
    assert record.cropped_shape_zyx == (24, 20, 16)
    assert np.array_equal(label_map, voxels == 200)
    whole = Oracle(bright)
    segment(volume, whole, plan(), replace(options, crop="none"))
    assert network.calls == 5 * 4 * 3
    assert whole.calls == 14 * 12 * 9


@pytest.fixture
def located_bundle(tmp_path: Path) -> Path:
    """The tiny bundle with itself as its locator."""
    folder = write_tiny_bundle(tmp_path / "bundle")
    locator_folder = write_tiny_bundle(tmp_path / "locator")
    set_shortcuts(folder, "organs", least_ml=0, locator=locator_folder)
    return folder


def test_a_bundle_with_a_locator_crops_by_itself(
    located_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    voxels = np.full((60, 80, 90), -100, dtype=np.int16)
    voxels[20:40, 20:60, 30:60] = tissue((20, 40, 30))
    source = write_scan(tmp_path / "scan.nii.gz", voxels)
    for crop in ("bundle", "none"):
        report, out = tmp_path / f"{crop}.json", tmp_path / f"{crop}.nii.gz"
        arguments = ["--bundle", str(located_bundle), "--input", str(source), "--output", str(out), "--precision"]
        assert main([*arguments, "fp32", "--report", str(report), "--crop", crop]) == 0
        found = np.asarray(nib.load(out).dataobj).transpose(2, 1, 0)
        assert np.array_equal(found, tiny_label_map(voxels))
    (line,) = (record.getMessage() for record in caplog.records if " locate " in record.getMessage())  # of the first
    assert re.fullmatch(r"bundle: locate 40x72x80 at 3x2x1 mm \(z, y, x\), \d\.\d\d s", line)
    cropped, whole = (json.loads((tmp_path / f"{crop}.json").read_text()) for crop in ("bundle", "none"))
    assert (cropped["options"]["crop"], whole["options"]["crop"]) == ("organs", "none")
    assert cropped["cases"][0]["windows"] < whole["cases"][0]["windows"]
    assert "locate" in cropped["cases"][0]["seconds"]
    assert "locate" not in whole["cases"][0]["seconds"]


def test_a_locator_is_verified_with_its_bundle(located_bundle: Path) -> None:
    assert load_bundle(located_bundle).locator is not None
    with (located_bundle / "locator" / "MODEL_CARD.md").open("a") as stream:
        stream.write("changed\n")
    with (located_bundle / "locator" / "SHA256SUMS").open("a") as stream:
        stream.write("\n")
    with pytest.raises(BundleError, match="locator/SHA256SUMS: SHA-256"):
        load_bundle(located_bundle)


def test_organs_cannot_be_found_without_a_locator(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_scan(tmp_path / "scan.nii.gz", tissue())
    arguments = ["--bundle", str(tiny_bundle), "--input", str(source), "--output", str(tmp_path / "out.nii.gz")]
    assert main([*arguments, "--crop", "organs"]) == 2
    assert "has no locator; choose --crop body or none" in caplog.text


def test_shortcuts_are_set_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    assert convert(["shortcuts", str(folder), "--crop", "body", "--margin", "30", "--least", "50", "--skip-air"]) == 0
    assert load_bundle(folder).plan.shortcuts == ShortcutPlan("body", 30.0, 50.0, True)
    assert convert(["shortcuts", str(folder), "--no-skip-air"]) == 0
    assert load_bundle(folder).plan.shortcuts == ShortcutPlan("body", 30.0, 50.0, False)
    assert convert(["shortcuts", str(folder), "--crop", "organs"]) == 4
    assert "no locator" in capsys.readouterr().err
    assert load_bundle(folder).plan.shortcuts.crop == "body"


def test_windows_of_air_are_calculated_once() -> None:
    """48 voxels along z in windows of 8, 4 apart: 11 windows, of which those from 28, 32 and 36 see more than air."""
    voxels = np.full((48, 8, 8), -1000, dtype=np.int16)
    voxels[33:40, 2:6, 2:6] = 200
    whole, skipped = Oracle(bright), Oracle(bright)
    usual = plan()
    expected, _, _ = segment(scan(voxels, (2.0, 2.0, 2.0)), whole, usual, Options("fastest", "off"))
    skipping = replace(usual, shortcuts=replace(usual.shortcuts, skip_air=True))
    found, _, _ = segment(scan(voxels, (2.0, 2.0, 2.0)), skipped, skipping, Options("fastest", "off"))
    assert np.array_equal(found, expected)
    assert np.count_nonzero(found) == 7 * 4 * 4
    assert (whole.calls, skipped.calls) == (11, 3 + 1)


def test_air_of_another_value_is_calculated_anew() -> None:
    oracle = Oracle(lambda tile: np.stack([tile, tile]))
    skipper = AirSkipper(oracle)
    air, water = np.full((2, 3, 4), -1.5, dtype=np.float32), np.zeros((2, 3, 4), dtype=np.float32)
    for tile, calls in ((air, 1), (air, 1), (water, 2), (water, 2), (air, 3)):
        assert np.array_equal(skipper.predict(tile), np.stack([tile, tile]))
        assert oracle.calls == calls
