"""From raw scans on disk to cached patches: checks, preprocessing, resuming.

Scans are written by SimpleITK and nibabel; the right values come from them, from numpy and from scikit-image.
"""

import argparse
import json
import logging
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from skimage.transform import resize

from app.errors import AppError, CaseError, FolderError, UsageError
from app.preprocessing import preprocess
from app.volume_io import read_volume
from tools.train import prepare
from tools.train.cache import STEP, CaseCache, open_cache
from tools.train.cache_writing import content_box, pick_foreground, write_case
from tools.train.fingerprint import read_fingerprint
from tools.train.labels import resample_label_map
from tools.train.planning import PLAN_FILE, read_train_plan, write_train_plan
from tools.train.presets import make_plan

SHAPE = (24, 40, 36)
TARGET_ZYX_MM = (2.5, 2.0, 2.0)  # compact-3d's
PAD = -250 / 110


def scan(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """(int16 HU, uint8 labels) (z, y, x): a noisy body in air, with a liver, a spleen and a left kidney."""
    rng = np.random.default_rng(seed)
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[:, 8:-6, 5:-7] = rng.normal(40, 60, hu[:, 8:-6, 5:-7].shape).astype(np.int16)
    label = np.zeros(shape, dtype=np.uint8)
    label[4:14, 10:20, 8:18] = 1
    label[4:10, 22:28, 20:26] = 3
    label[15:20, 12:16, 22:27] = 13
    return hu, label


def write(path: Path, voxels: np.ndarray, spacing_xyz: tuple[float, float, float] = (2.0, 2.0, 2.5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin((-30.0, -40.0, 100.0))
    sitk.WriteImage(image, str(path))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two labelled scans and an unlabelled one, on compact-3d's grid."""
    folder = tmp_path / "data"
    for seed, case_id in enumerate("abu"):
        hu, label = scan(seed)
        write(folder / ("imagesUn" if case_id == "u" else "imagesTr") / f"{case_id}_0000.nii.gz", hu)
        if case_id != "u":
            write(folder / "labelsTr" / f"{case_id}.nii.gz", label)
    return folder


def run(data: Path, out: Path, *more: str, preset: str | None = "compact-3d") -> int:
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    plan = ["--preset", preset] if preset else []
    words = ["--data", str(data), "--out", str(out), *plan, "--workers", "1", *more]
    return prepare.run(parser.parse_args(words))


def whole(case: CaseCache) -> tuple[slice, slice, slice]:
    z, y, x = case.shape_zyx
    return (slice(0, z), slice(0, y), slice(0, x))


def grid(case: CaseCache, fill: float = PAD) -> tuple[np.ndarray, np.ndarray]:
    """(image, label) on the whole network grid: the cached box, padded."""
    inside = tuple(slice(start, start + n) for start, n in zip(case.offset_zyx, case.shape_zyx, strict=True))
    image = np.full(case.grid_shape_zyx, fill, dtype=np.float32)
    label = np.zeros(case.grid_shape_zyx, dtype=np.uint8)
    image[inside], label[inside] = case.read_image(whole(case)), case.read_label(whole(case))
    return image, label


# --- what is cached --------------------------------------------------------------------------------------


def test_a_scan_on_the_networks_grid_is_cached_voxel_by_voxel(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "cache") == 0
    cases = open_cache(tmp_path / "cache")
    assert [(case.case_id, case.labelled) for case in cases] == [("a", True), ("b", True), ("u", False)]
    for seed, case in enumerate(cases):
        hu, expected_label = scan(seed)
        image, label = grid(case)
        np.testing.assert_allclose(image, (hu.clip(-200, 300) - 50.0) / 110, atol=STEP / 2 + 1e-6)
        assert np.array_equal(label, expected_label if case.labelled else np.zeros_like(label))
        assert (case.offset_zyx, case.shape_zyx) == ((0, 8, 5), (24, 26, 24))  # the body
        assert case.spacing_zyx_mm == TARGET_ZYX_MM


def test_cache_holds_what_inference_feeds_the_network(tmp_path: Path) -> None:
    """Another spacing and orientation: slices of 5 mm from head to feet, rows from left to right."""
    hu, label = scan()
    affine = np.diag([1.5, 1.25, -5.0, 1.0])  # i to the right, j to the front, k down
    for name, voxels in (("images/a_0000.nii.gz", hu), ("labels/a.nii.gz", label)):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels.T), affine), tmp_path / "data" / name)
    run(tmp_path / "data", tmp_path / "cache")
    (case,) = open_cache(tmp_path / "cache")
    plan = read_train_plan(tmp_path / "cache" / PLAN_FILE).app
    expected, _ = preprocess(read_volume(tmp_path / "data" / "images/a_0000.nii.gz"), plan, plan.spacing.enforce)
    image, cached = grid(case)
    np.testing.assert_allclose(image, expected, atol=STEP / 2 + 1e-6)
    # z up, y to the back, x to the left: what SimpleITK's filter makes of the label map, then scikit-image
    oriented = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "data" / "labels/a.nii.gz")), "LPS")
    assert dsc(cached, resized(sitk.GetArrayFromImage(oriented), cached.shape)) == 1.0


def resized(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The arg max of one mask per class, each resized linearly by scikit-image."""
    masks = [resize((label == i).astype(float), shape, 1, mode="edge", anti_aliasing=False) for i in range(14)]
    masks[0] -= 1e-6  # an organ wins a tie
    label_map: np.ndarray = np.argmax(masks, axis=0)
    return label_map


def dsc(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * np.count_nonzero((a == b) & (a > 0)) / (np.count_nonzero(a) + np.count_nonzero(b)))


@pytest.mark.parametrize("shape", [(24, 40, 36), (50, 33, 70), (11, 17, 90)])
def test_label_maps_are_resampled_as_scikit_image_does(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 14, (6, 8, 9)).astype(np.uint8).repeat(4, 0).repeat(5, 1).repeat(4, 2)
    assert np.array_equal(resample_label_map(blocks, shape, (1, 1, 1)), resized(blocks, shape))


def test_separate_z_takes_the_nearest_slice_of_labels() -> None:
    label = np.zeros((3, 8, 8), dtype=np.uint8)
    label[1, 2:6, 2:6] = 5
    found = resample_label_map(label, (6, 8, 8), (0, 1, 1))
    assert [int(plane.any()) for plane in found] == [0, 0, 1, 1, 0, 0]


def test_cropping_only_takes_padding() -> None:
    image = np.full((6, 7, 8), PAD, dtype=np.float32)
    image[2:4, 3, 5] = 0
    label = np.zeros(image.shape, dtype=np.uint8)
    label[3, 1, 5] = 2  # an organ in the air stays too
    assert content_box(image, label, PAD) == (slice(2, 4), slice(1, 4), slice(5, 6))
    assert content_box(np.full_like(image, PAD), None, PAD) == (slice(0, 1),) * 3


def test_slices_are_stored_for_2d_networks(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "cache", preset="paper-2d")
    plan = read_train_plan(tmp_path / "cache" / PLAN_FILE).app
    case = open_cache(tmp_path / "cache", plan=plan)[0]
    expected, _ = preprocess(read_volume(data / "imagesTr/a_0000.nii.gz"), plan, "off")
    image, _ = grid(case, fill=0.0)  # nnU-Net pads with the mean
    np.testing.assert_allclose(image, expected, atol=STEP / 2 + 1e-5)
    voxels = np.concatenate([scan(seed)[0].ravel() for seed in range(3)])
    assert plan.intensity.subtract_hu == pytest.approx(voxels.mean())
    assert plan.intensity.clip_hu == pytest.approx(tuple(np.percentile(voxels, [0.5, 99.5])))
    assert read_fingerprint(tmp_path / "cache" / prepare.FINGERPRINT_FILE).shapes_zyx == [SHAPE] * 3


def test_foreground_voxels_lie_in_their_organ(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "cache")
    first, _, unlabelled = open_cache(tmp_path / "cache")
    label = first.read_label(whole(first))
    assert {organ: len(voxels) for organ, voxels in first.foreground.items()} == {1: 1000, 3: 216, 13: 100}
    for organ, voxels in first.foreground.items():
        assert voxels.dtype == np.int32
        assert np.all(label[tuple(voxels.T)] == organ)
    assert unlabelled.foreground == {}


def test_a_locator_sees_one_organ(data: Path, tmp_path: Path) -> None:
    """At the locator's 6 mm, order 1; patches are still centred on every organ as often."""
    run(data, tmp_path / "cache", preset="locator-3d")
    run(data, tmp_path / "apart", "--plan", str(apart(tmp_path)), preset=None)
    one, apart_case = open_cache(tmp_path / "cache")[0], open_cache(tmp_path / "apart")[0]
    label = apart_case.read_label(whole(apart_case))
    assert set(np.unique(label)) == {0, 1, 3, 13}
    assert np.array_equal(one.read_label(whole(one)), label > 0)
    assert one.annotated.tolist() == [True, True]
    assert one.foreground.keys() == apart_case.foreground.keys() == {1, 3, 13}
    for organ, voxels in one.foreground.items():
        assert np.array_equal(voxels, apart_case.foreground[organ])


def apart(folder: Path) -> Path:
    """The locator's plan, but with FLARE's organs."""
    plan = make_plan("locator-3d")
    organs = make_plan("compact-3d").app.labels
    write_train_plan(folder / "plan.json", replace(plan, organs_as_one=False, app=replace(plan.app, labels=organs)))
    with pytest.raises(ValueError, match="found 13 labels; expected one"):
        replace(plan, app=replace(plan.app, labels=organs))
    return folder / "plan.json"


def test_many_foreground_voxels_are_drawn_without_replacement() -> None:
    label = np.zeros((30, 40, 50), dtype=np.uint8)
    label[5:] = 1
    found = pick_foreground(label, seed=3)[1]
    assert found.shape == (10_000, 3)
    assert len(np.unique(found, axis=0)) == 10_000
    assert np.array_equal(found, pick_foreground(label, seed=3)[1])


def test_annotated_organs(data: Path, tmp_path: Path) -> None:
    describe(tmp_path, {"a": ["gallbladder"]})
    run(data, tmp_path / "cache", "--dataset", str(tmp_path / "about.json"))
    a, b, u = open_cache(tmp_path / "cache")
    assert np.flatnonzero(~a.annotated).tolist() == [9]
    assert b.annotated.all()
    assert np.flatnonzero(u.annotated).tolist() == [0]
    assert a.annotated.shape == (14,)


def test_an_organ_that_is_not_trusted_leaves_the_label_map(data: Path, tmp_path: Path) -> None:
    """Its voxels become background that may hide the organ; the scan that says nothing keeps its own."""
    describe(tmp_path, {"a": ["spleen"]}, key="not_trusted")
    run(data, tmp_path / "cache", "--dataset", str(tmp_path / "about.json"))
    a, b, _ = open_cache(tmp_path / "cache")
    expected = scan(0)[1]
    assert np.any(expected == 3)
    assert np.array_equal(grid(a)[1], np.where(expected == 3, 0, expected))
    assert np.array_equal(grid(b)[1], scan(1)[1])
    assert np.flatnonzero(~a.annotated).tolist() == [3]
    assert 3 not in a.foreground


def describe(folder: Path, hidden: dict[str, list[str]], key: str = "not_annotated") -> None:
    scans = {
        case_id: {"source": "a phantom", "licence": "none", "labels_by": None, key: organs}
        for case_id, organs in hidden.items()
    }
    organs = list(make_plan("compact-3d").app.labels)
    (folder / "about.json").write_text(json.dumps({"name": "phantoms", "organs": organs, "scans": scans}))


def test_patches(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "cache")
    case = open_cache(tmp_path / "cache")[0]
    box = (slice(3, 17), slice(2, 25), slice(0, 24))
    assert np.array_equal(case.read_image(box), case.read_image(whole(case))[box])
    copied = pickle.loads(pickle.dumps(case))
    assert np.array_equal(copied.read_label(box), case.read_label(whole(case))[box])
    assert copied.read_image(box).dtype == np.float32
    for outside in (slice(-1, 4), slice(4, 4), slice(20, 25), slice(0, 4, 2)):
        with pytest.raises(ValueError, match="does not lie in"):
            case.read_image((outside, slice(0, 4), slice(0, 4)))


def test_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit int16"):
        write_case(tmp_path / "a", np.full((2, 2, 2), 33, dtype=np.float32), None, PAD, False, {})


def test_a_label_map_is_cropped_as_its_scan_is(data: Path, tmp_path: Path) -> None:
    """Software filled what it did not see with 0 HU: three slices and a border, which the plan cuts off."""
    hu, label = (np.pad(voxels, ((1, 2), (3, 4), (5, 6))) for voxels in scan())
    write(data / "imagesTr" / "a_0000.nii.gz", hu)
    write(data / "labelsTr" / "a.nii.gz", label)
    plan = make_plan("compact-3d")
    write_train_plan(tmp_path / "plan.json", replace(plan, app=replace(plan.app, crop_to_nonzero=True)))
    run(data, tmp_path / "cache", "--plan", str(tmp_path / "plan.json"), preset=None)
    case = open_cache(tmp_path / "cache")[0]
    image, cached = grid(case)
    assert case.grid_shape_zyx == SHAPE
    np.testing.assert_allclose(image, (scan()[0].clip(-200, 300) - 50.0) / 110, atol=STEP / 2 + 1e-6)
    assert np.array_equal(cached, scan()[1])


# --- again, and after an interruption --------------------------------------------------------------------


def written(cache: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in cache.glob("cases/*/meta.json")}


def test_only_what_is_missing_is_prepared(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    run(data, cache)
    before = written(cache)
    (cache / "cases" / "b" / "meta.json").unlink()  # as an interruption leaves it: arrays, no meta.json
    assert [case.case_id for case in open_cache(cache)] == ["a", "u"]
    with caplog.at_level(logging.INFO, "tools.train"):
        run(data, cache)
    assert "1 cases to prepare, 2 are there" in caplog.text
    after = written(cache)
    assert {case_id for case_id in before if before[case_id] == after[case_id]} == {"a", "u"}
    image, _ = grid(open_cache(cache)[1])
    np.testing.assert_allclose(image, (scan(1)[0].clip(-200, 300) - 50.0) / 110, atol=STEP / 2 + 1e-6)


def test_a_changed_scan_or_description_is_prepared_again(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(data, cache)
    before = written(cache)
    write(data / "imagesUn" / "u_0000.nii.gz", scan(7)[0])
    describe(tmp_path, {"a": ["gallbladder"]})
    run(data, cache, "--dataset", str(tmp_path / "about.json"))
    after = written(cache)
    assert {case_id for case_id in before if before[case_id] != after[case_id]} == {"a", "u"}


def test_examinations_are_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data, tmp_path / "cache", "--check-only")
    assert not (tmp_path / "cache" / "cases").exists()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("examined again")

    monkeypatch.setattr(prepare, "examine", fail)
    run(data, tmp_path / "cache")
    assert len(open_cache(tmp_path / "cache")) == 3


def test_a_cache_of_another_plan_or_other_cases_is_left_alone(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(data, cache)
    names = (PLAN_FILE, prepare.FINGERPRINT_FILE)
    before = [(cache / name).read_bytes() for name in names]
    for more in ([], ["--check-only"]):
        with pytest.raises(FolderError, match=r"holds 3 cases prepared with another plan"):
            run(data, cache, *more, preset="paper-3d")
        with pytest.raises(FolderError, match=r"holds b, which are not among the cases asked for"):
            run(data, cache, *more, "--hold-out", "b")
    assert [(cache / name).read_bytes() for name in names] == before
    assert prepare.plan_of_cache(cache).app.name == "compact-3d"
    with pytest.raises(UsageError, match=r"prepared with other organs, spacing"):
        open_cache(cache, plan=prepare.plan_of_cache(cache, "paper-3d").app)


def test_held_out_cases_are_not_opened(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "cache")
    assert [case.case_id for case in open_cache(tmp_path / "cache", hold_out=["a", "u"])] == ["b"]
    with pytest.raises(UsageError, match=r"--hold-out c: no such case in .*; there are a, b, u"):
        open_cache(tmp_path / "cache", hold_out=["c"])
    with pytest.raises(FolderError, match="no prepared cases"):
        open_cache(tmp_path)


def test_a_damaged_cache_says_so(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "cache")
    case = open_cache(tmp_path / "cache")[0]
    (case.folder / "image.b2nd").unlink()
    with pytest.raises(FolderError, match=r"image.b2nd: cannot be read .*; run prepare again"):
        case.read_image(whole(case))
    (case.folder / "meta.json").write_text('{"format": 99}')
    with pytest.raises(FolderError, match=r"not of version 1"):
        open_cache(tmp_path / "cache")


@pytest.mark.long
def test_several_processes_write_the_same_cache(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "one")
    run(data, tmp_path / "two", "--workers", "2")
    for one, two in zip(open_cache(tmp_path / "one"), open_cache(tmp_path / "two"), strict=True):
        assert np.array_equal(one.read_label(whole(one)), two.read_label(whole(two)))
        np.testing.assert_allclose(one.read_image(whole(one)), two.read_image(whole(two)), atol=STEP)
    assert "OPENBLAS_NUM_THREADS" not in os.environ


# --- faults in the data ----------------------------------------------------------------------------------


def test_every_problem_of_every_case_is_listed(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hu, label = scan()
    write(data / "labelsTr" / "a.nii.gz", label[:-1])
    fractional = label.astype(np.float32)
    fractional[0, 0, 0], fractional[0, 0, 1] = 0.5, 77
    write(data / "labelsTr" / "b.nii.gz", fractional)
    write(data / "imagesTr" / "b_0000.nii.gz", hu, spacing_xyz=(2.0, 2.0, 12.5))
    (data / "imagesUn" / "u_0000.nii.gz").write_bytes(b"not a scan")
    with pytest.raises(CaseError, match=r"6 problems in 3 of 3 cases \(a, b, u\), listed above"):
        run(data, tmp_path / "cache")
    for expected in (
        r"a: .*labelsTr/a.nii.gz: 23x40x36 voxels \(z, y, x\), its scan has 24x40x36",
        r"b: .*imagesTr/b_0000.nii.gz: spacing 12.5 x 2 x 2 mm",
        r"b: .*labelsTr/b.nii.gz: a corner of its grid lies 230 mm from the scan's",
        r"b: .*labelsTr/b.nii.gz: values that are no whole numbers, 0.5 for one",
        r"b: .*labelsTr/b.nii.gz: unknown label 77 \(1 voxels\); expected 0 to 13",
        r"u: .*u_0000.nii.gz: ",
    ):
        assert re.search(expected, caplog.text), expected
    assert not (tmp_path / "cache" / "cases").exists()


def damage(data: Path, fault: str) -> None:
    hu, label = scan()
    path = data / "labelsTr" / "a.nii.gz"
    if fault == "empty":
        write(path, np.zeros_like(label))
    elif fault == "nan":
        floats = hu.astype(np.float32)
        floats[0, 0, :3] = np.nan
        write(data / "imagesTr" / "a_0000.nii.gz", floats)
    elif fault == "flipped":
        image = sitk.ReadImage(str(path))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        sitk.WriteImage(image, str(path))
    elif fault == "air":
        write(data / "imagesTr" / "a_0000.nii.gz", np.full_like(hu, -1000))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("empty", r"labelsTr/a.nii.gz: no organ in it"),
        ("nan", r"imagesTr/a_0000.nii.gz: 3 voxels are NaN or infinite or beyond"),
        ("flipped", r"labelsTr/a.nii.gz: a corner of its grid lies .* mm from the scan's"),
        ("air", r"imagesTr/a_0000.nii.gz: no voxel above -500 HU"),
    ],
)
def test_bad_cases_are_left_out_on_request(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, message: str
) -> None:
    damage(data, fault)
    with pytest.raises(CaseError, match=r"1 problems in 1 of 3 cases \(a\)"):
        run(data, tmp_path / "cache")
    assert re.search(message, caplog.text)
    run(data, tmp_path / "cache", "--skip-bad")
    assert [case.case_id for case in open_cache(tmp_path / "cache")] == ["b", "u"]
    assert [one.case_id for one in read_fingerprint(tmp_path / "cache" / "fingerprint.json").scans] == ["b", "u"]


def test_an_organ_that_is_declared_not_annotated_must_not_be_there(data: Path, tmp_path: Path) -> None:
    describe(tmp_path, {"a": ["spleen"]})
    with pytest.raises(CaseError, match="1 problems in 1 of 3"):
        run(data, tmp_path / "cache", "--dataset", str(tmp_path / "about.json"))


def test_scans_that_are_not_in_hounsfield_units_are_a_warning(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(data / "imagesUn" / "u_0000.nii.gz", scan()[0] + 1024)
    run(data, tmp_path / "cache", "--check-only")
    assert re.search(r"u: .*: no voxel below -?\d+ HU; are these Hounsfield units", caplog.text)


def test_wrong_use(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--workers 0"):
        run(data, tmp_path / "cache", "--workers", "0")
    with pytest.raises(UsageError, match="--most-unlabelled -1"):
        run(data, tmp_path / "cache", "--most-unlabelled", "-1")
    plan = make_plan("compact-3d", ("liver", "spleen"))
    write_train_plan(tmp_path / "plan.json", plan)
    parser = argparse.ArgumentParser()
    prepare.add_arguments(parser)
    words = ["--data", str(data), "--out", str(tmp_path / "cache"), "--plan", str(tmp_path / "plan.json")]
    with pytest.raises(AppError, match="its labels are not the organs"):
        prepare.run(parser.parse_args([*words, "--workers", "1"]))


# --- the real scans --------------------------------------------------------------------------------------


@pytest.mark.long
def test_real_scans(shared_data: Path, tmp_path: Path) -> None:
    """Organ volumes survive resampling; ct_006 has slices of 5 mm, ct_002 is isotropic."""
    others = [f"ct_{number:03d}" for number in (1, 3, 4, 5, 7, 8, 9, 10)]
    run(shared_data, tmp_path / "cache", "--hold-out", *others)
    for case in open_cache(tmp_path / "cache"):
        stored = nib.load(shared_data / "labels" / f"{case.case_id}.nii.gz")
        before = np.bincount(np.asarray(stored.dataobj).ravel(), minlength=14) * np.prod(stored.header.get_zooms())
        after = np.bincount(case.read_label(whole(case)).ravel(), minlength=14) * np.prod(TARGET_ZYX_MM)
        large = before[1:] > 10_000
        np.testing.assert_allclose(after[1:][large], before[1:][large], rtol=0.06)
