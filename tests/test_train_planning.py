"""nnU-Net's rules against plans that nnU-Net v1 printed; presets against the paper; plans as JSON."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from app.errors import FolderError, UsageError
from app.network import UNet
from app.plan import SpacingPlan
from app.volume import Geometry, Shape, Vector, Volume
from tools.train.fingerprint import (
    Fingerprint,
    Histogram,
    Intensities,
    ScanFingerprint,
    pool,
    read_fingerprint,
    write_fingerprint,
)
from tools.train.planning import (
    TrainPlan,
    parse_train_plan,
    preprocessing_digest,
    read_train_plan,
    to_json,
    training_spacing,
    write_train_plan,
)
from tools.train.presets import PRESETS, make_plan
from tools.train.rules import median_shape, plan_2d, plan_3d, target_spacing, topology

ALL_AXES = (2, 2, 2)
IN_PLANE = (1, 2, 2)


def fingerprint(shape: Shape = (380, 512, 512), spacing: Vector = (0.8, 0.8, 0.8), scans: int = 50) -> Fingerprint:
    intensities = Intensities(1, -500.0, 480.0, -1024.0, 350.0)
    one = ScanFingerprint("a", True, shape, spacing, intensities)
    return Fingerprint(tuple(replace(one, case_id=f"{i:04d}") for i in range(scans)), intensities)


# --- rules: plans that nnU-Net v1 printed, as its users and its documentation published them --------------


@pytest.mark.parametrize(
    ("spacing", "median", "cases", "classes", "channels", "patch", "strides", "batch"),
    [
        # NIH pancreas (github.com/MIC-DKFZ/nnUNet/issues/1081), low resolution stage
        (
            (1.7987096, 1.54576606, 1.54576606),
            (120, 285, 285),
            80,
            2,
            1,
            (80, 192, 160),
            [ALL_AXES] * 4 + [IN_PLANE],
            2,
        ),
        # Task003 Liver (issue 856), low and full resolution
        ((2.473119, 1.89831205, 1.89831205), (195, 207, 207), 131, 3, 1, (128, 128, 128), [ALL_AXES] * 5, 2),
        ((1.0, 0.76757812, 0.76757812), (482, 512, 512), 131, 3, 1, (128, 128, 128), [ALL_AXES] * 5, 2),
        # BraTS 2020, four channels (a user's training log)
        ((1.0, 1.0, 1.0), (139, 170, 138), 369, 4, 4, (128, 128, 128), [ALL_AXES] * 5, 2),
        # Medical Segmentation Decathlon, pancreas with tumour (a user's log): first stages within slices
        (
            (2.5, 0.80273402, 0.80273402),
            (96, 512, 512),
            281,
            3,
            1,
            (40, 224, 224),
            [IN_PLANE, ALL_AXES, ALL_AXES, ALL_AXES, IN_PLANE],
            2,
        ),
        # Hippocampus (arXiv 1809.10486, table 1): small scans, so that 5 % of the data set limits the batch
        ((1.0, 1.0, 1.0), (36, 50, 35), 260, 3, 1, (40, 56, 40), [ALL_AXES] * 3, 9),
    ],
)
def test_published_3d_plans(
    spacing: Vector,
    median: Shape,
    cases: int,
    classes: int,
    channels: int,
    patch: Shape,
    strides: list[Shape],
    batch: int,
) -> None:
    found = plan_3d(spacing, median, cases, classes, channels)
    assert found.patch_size == patch
    assert list(found.network.strides) == [(1, 1, 1), *strides]
    assert found.batch_size == batch


def test_kernels_of_an_anisotropic_plan() -> None:
    found = plan_3d((2.5, 0.80273402, 0.80273402), (96, 512, 512), 281, 3)
    assert list(found.network.kernel_sizes) == [(1, 3, 3)] + [(3, 3, 3)] * 5
    assert found.network.features_per_stage == (32, 64, 128, 256, 320, 320)


def test_published_2d_plan() -> None:
    """Task120 Massachusetts roads, three channels (nnU-Net v1's tutorial on editing plans)."""
    found = plan_2d((999.0, 1.0, 1.0), (1, 1500, 1500), 1108, 2, 3)
    assert found.patch_size == (1280, 1024)
    assert list(found.network.strides) == [(1, 1)] + [(2, 2)] * 8
    assert found.batch_size == 2


def test_the_rules_reach_the_papers_networks() -> None:
    """FLARE22 with its 14 classes; a median scan of 380 x 512 x 512 gives the paper's 3-D patch, 512 x 512 its 2-D."""
    three = plan_3d((0.8, 0.8, 0.8), (380, 512, 512), 1050, 14)
    paper = make_plan("paper-3d", fingerprint=fingerprint())
    assert (three.patch_size, three.batch_size) == ((112, 160, 128), 2)
    assert three.network == paper.app.network
    two = plan_2d((2.5, 0.8, 0.8), (100, 512, 512), 1050, 14)
    assert (two.patch_size, two.batch_size) == ((512, 512), 12)
    assert two.network == make_plan("paper-2d", fingerprint=fingerprint()).app.network


def test_topology_stops_at_edges_of_four() -> None:
    found = topology((1.0, 1.0, 1.0), (112, 160, 128))
    edges = np.array(found.patch_size) // np.array(found.divisors)
    assert edges.tolist() == [7, 5, 4]


def test_target_spacing_is_the_median() -> None:
    spacings = [(1.0, 0.5, 0.7), (2.0, 0.6, 0.7), (5.0, 0.9, 0.7)]
    assert target_spacing(spacings, [(300, 512, 512)] * 3) == pytest.approx((2.0, 0.6, 0.7))


def test_target_spacing_of_an_anisotropic_axis() -> None:
    """The 10th percentile, if slices are few and thick; not below the spacing in plane (KiTS, issue 230)."""
    spacings = [(float(z), 0.78, 0.78) for z in range(1, 12)]  # median 6, 10th percentile 2
    assert target_spacing(spacings, [(60, 512, 512)] * 11) == pytest.approx((2.0, 0.78, 0.78))
    thin = [(0.5, 0.78125, 0.78125)] * 3 + [(3.0, 0.78125, 0.78125)] * 6
    assert target_spacing(thin, [(100, 512, 512)] * 9) == pytest.approx((0.78125, 0.78125, 0.78125))
    many_slices = target_spacing(spacings, [(400, 512, 512)] * 11)
    assert many_slices == pytest.approx((6.0, 0.78, 0.78))


def test_median_shape() -> None:
    shapes: list[Shape] = [(100, 512, 512), (50, 400, 400), (80, 512, 512)]
    spacings: list[Vector] = [(5.0, 0.8, 0.8), (5.0, 1.0, 1.0), (2.5, 0.8, 0.8)]
    assert median_shape(spacings, shapes, (2.5, 0.8, 0.8)) == (100, 512, 512)  # of 200, 100, 80 and 512, 500, 512


# --- fingerprint -----------------------------------------------------------------------------------------


def volume(voxels: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> Volume:
    depth, height, width = voxels.shape
    identity = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return Volume(
        voxels, Geometry((depth, height, width), (1.0, 1.0, 1.0), identity, (0.0, 0.0, 0.0)), slope, intercept
    )


def test_statistics_of_all_voxels_are_numpys() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(-300, 400, (7, 30, 31)).clip(-1000, 3000).astype(np.int16)
    second = rng.integers(0, 4000, (5, 20, 23)).astype(np.uint16)  # stored with an offset, as scanners do
    histograms = [Histogram(), Histogram()]
    histograms[0].add(volume(first))
    histograms[1].add(volume(second, slope=0.5, intercept=-1000.0))
    scans = [ScanFingerprint(name, True, (1, 1, 1), (1.0, 1.0, 1.0), histograms[0].statistics()) for name in "ba"]
    found = pool(scans, [histogram.counts() for histogram in histograms])
    every = np.concatenate([first.ravel(), np.rint(second * 0.5 - 1000).ravel()]).astype(np.float64)
    assert found.intensities.voxels == every.size
    assert found.intensities.mean_hu == pytest.approx(every.mean())
    assert found.intensities.sd_hu == pytest.approx(every.std())
    assert found.intensities.percentile_00_5_hu == pytest.approx(np.percentile(every, 0.5))
    assert found.intensities.percentile_99_5_hu == pytest.approx(np.percentile(every, 99.5))
    assert [scan.case_id for scan in found.scans] == ["a", "b"]


def test_padding_below_air_counts_as_air() -> None:
    histogram = Histogram()
    histogram.add(volume(np.array([-3024, -2000, -1024, 976], dtype=np.int16).reshape(1, 2, 2)))
    assert histogram.statistics().mean_hu == (3 * -1024 + 976) / 4
    assert histogram.extremes_hu() == (-1024, 976)


def test_fingerprint_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "fingerprint.json"
    write_fingerprint(path, fingerprint(scans=2))
    assert read_fingerprint(path) == fingerprint(scans=2)
    path.write_text('{"scans": []}')
    with pytest.raises(UsageError, match=r"missing key intensities"):
        read_fingerprint(path)


# --- presets ---------------------------------------------------------------------------------------------


def parameters(plan: TrainPlan) -> int:
    return sum(weight.numel() for weight in UNet(plan.app.network, plan.app.classes).parameters())


def test_paper_3d_is_the_papers() -> None:
    plan = make_plan("paper-3d", fingerprint=fingerprint())
    assert plan.train_patch_size == plan.app.sliding_window.patch_size == (112, 160, 128)
    assert plan.app.network.features_per_stage == (32, 64, 128, 256, 320, 320)
    assert plan.app.network.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert parameters(plan) == 30_794_784
    assert (plan.labelled_batch, plan.unlabelled_batch) == (2, 2)
    assert plan.app.sliding_window.mirror_axes == (0, 1, 2)
    assert_papers_protocol(plan)


def test_paper_2d_is_the_papers() -> None:
    plan = make_plan("paper-2d", fingerprint=fingerprint())
    assert plan.train_patch_size == plan.app.sliding_window.patch_size == (1, 512, 512)
    assert parameters(plan) == 41_285_472
    assert (plan.labelled_batch, plan.unlabelled_batch) == (12, 12)
    assert plan.app.sliding_window.mirror_axes == (1, 2)
    assert_papers_protocol(plan)


def assert_papers_protocol(plan: TrainPlan) -> None:
    assert (plan.epochs, plan.iterations_per_epoch) == (1000, 250)
    assert (plan.learning_rate, plan.weight_decay, plan.momentum) == (0.01, 3e-5, 0.99)
    assert (plan.optimiser, plan.schedule, plan.plateau_patience, plan.plateau_factor) == ("sgd", "plateau", 30, 0.2)
    assert (plan.consistency_weight, plan.gradient_clip, plan.labelled_as_unlabelled) == (0.5, 12.0, False)
    app = plan.app
    assert (app.mode, app.sliding_window.tile_step_size, app.sliding_window.average) == ("normal", 0.7, "probabilities")
    assert (app.interpolation.image_order, app.interpolation.separate_z_above) == (3, 3.0)
    header = app.spacing.header
    assert (header.in_plane_mm, header.slice_mm, header.few_slices, header.many_slices) == (0.75, 0.5, 150, 600)
    assert header.smallest_factor == 0.8
    # from all pixels of the data
    assert app.intensity.clip_hu == (-1024.0, 350.0)
    assert (app.intensity.subtract_hu, app.intensity.divide_hu) == (-500.0, 480.0)
    assert app.spacing.target_zyx_mm == (0.8, 0.8, 0.8)


def test_compact_3d_is_the_bootstrap_network() -> None:
    plan = make_plan("compact-3d")
    assert parameters(plan) == 5_650_960
    assert plan.app.spacing.target_zyx_mm == (2.5, 2.0, 2.0)
    assert (plan.train_patch_size, plan.app.sliding_window.patch_size) == ((64, 96, 96), (80, 128, 192))
    assert plan.app.sliding_window.mirror_axes == ()
    assert plan.app.intensity.normalised(-1024) == pytest.approx(-2.2727273)


def test_phantom_3d_is_tiny() -> None:
    plan = make_plan("phantom-3d")
    assert parameters(plan) < 500_000
    assert plan.train_patch_size == (32, 48, 48)


def test_planned_presets_follow_the_data() -> None:
    data = fingerprint((120, 285, 285), (1.7987096, 1.54576606, 1.54576606), 80)
    assert make_plan("planned-3d", ("pancreas",), data).train_patch_size == (80, 192, 160)
    flat = make_plan("planned-2d", ("pancreas",), data)
    assert flat.train_patch_size[0] == 1
    assert flat.app.classes == 2


def test_presets_that_need_data_say_so() -> None:
    with pytest.raises(UsageError, match=r"paper-3d takes spacing and intensities from the data"):
        make_plan("paper-3d")
    with pytest.raises(UsageError, match=r"preset tiny: expected one of paper-3d"):
        make_plan("tiny")


# --- plans as JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str, tmp_path: Path) -> None:
    plan = make_plan(name, fingerprint=fingerprint())
    write_train_plan(tmp_path / "plan.json", plan)
    assert read_train_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, r"plan: unknown key epoch"),
        ({"epochs": 3.5}, r"plan.epochs: found 3.5, expected int"),
        ({"epochs": 0}, r"must be positive"),
        ({"momentum": 1.0}, r"momentum"),
        ({"schedule": "cosine"}, r"plan.schedule: found 'cosine', expected one of 'plateau', 'poly'"),
        ({"train_patch_size": [64, 96, 100]}, r"100 is not a multiple of the stride 16"),
        ({"train_patch_size": [16, 16, 16]}, r"one voxel in the deepest stage.*expected more than \[16, 16, 16\]"),
        ({"augmentation": {"blur_probability": 1.5}}, r"plan.augmentation: blur_probability is 1.5"),
        ({"augmentation": {"scaling": [1.4, 0.7]}}, r"expected \[low, high\]"),
    ],
)
def test_faulty_plans(change: dict[str, object], message: str) -> None:
    values = {**json.loads(to_json(make_plan("compact-3d"))), **change}
    with pytest.raises(UsageError, match=message):
        parse_train_plan(json.dumps(values), "plan.json")


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ((16, 512, 512), r"\[16, 512, 512\]: expected \[1, H, W\] for a 2-D network"),
        ((1, 512, 500), r"500 is not a multiple of the stride 128"),
        ((1, 128, 128), r"one voxel in the deepest stage"),
    ],
)
def test_faulty_patches_of_a_2d_network(patch: Shape, message: str) -> None:
    plan = make_plan("paper-2d", fingerprint=fingerprint())
    with pytest.raises(ValueError, match=message):
        replace(plan, train_patch_size=patch)


def test_instance_norm_takes_two_voxels_and_not_one() -> None:
    """What the smallest patch rests on: PyTorch's own rule."""
    plan = make_plan("compact-3d")
    network = UNet(plan.app.network, plan.app.classes)
    assert replace(plan, train_patch_size=(16, 16, 32)).train_patch_size == (16, 16, 32)
    network(torch.zeros(1, 1, 16, 16, 32))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network(torch.zeros(1, 1, 16, 16, 16))


def test_plan_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("plan.json", "packed.safetensors"):
        with pytest.raises(FolderError, match=rf"{name}: .*expected a training plan"):
            read_train_plan(tmp_path / name)
    save_file({"weight": np.zeros(1)}, tmp_path / "network.safetensors")
    with pytest.raises(UsageError, match=r"network.safetensors: holds no training plan.*tools.train pack"):
        read_train_plan(tmp_path / "network.safetensors")
    with pytest.raises(UsageError, match=r"not JSON"):
        parse_train_plan("epochs: 3", "plan.json")


def test_digest_depends_on_preprocessing_only() -> None:
    app = make_plan("compact-3d").app
    longer = replace(app, name="other", sliding_window=replace(app.sliding_window, patch_size=(64, 96, 96)))
    assert preprocessing_digest(longer) == preprocessing_digest(app)
    finer = replace(app, spacing=replace(app.spacing, target_zyx_mm=(2.0, 2.0, 2.0)))
    fewer = replace(app, labels=app.labels[:5])
    assert len({preprocessing_digest(plan) for plan in (app, finer, fewer)}) == 3


@pytest.mark.parametrize(("enforce", "expected"), [("resample", "resample"), ("off", "off"), ("header", "off")])
def test_training_never_sees_the_header_override(enforce: str, expected: str) -> None:
    app = make_plan("compact-3d").app
    spacing = SpacingPlan(**{**vars(app.spacing), "enforce": enforce})
    assert training_spacing(replace(app, spacing=spacing)) == expected
