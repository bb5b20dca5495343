"""nnU-Net v1's results folders as bundles, against a network that repeats v1's in other words."""

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from app.__main__ import main as segment
from app.backends import Backend, create_predictor
from app.bundle import load_bundle
from app.plan import Plan
from tests.nnunet_v1_folder import (
    HIGH,
    LOW,
    MEAN,
    ORGANS,
    PATCH_2D,
    PATCH_3D,
    SD,
    make_random,
    v1_network,
    v1_plans,
    write_v1,
)
from tools.convert.__main__ import main
from tools.phantom import make_phantom, write_image

BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime", "torch")


def import_v1(model: Path, *options: str) -> Path:
    out = model.with_name(f"{model.name}_bundle")
    assert main(["nnunet-v1", str(model), "--fold", "0", "--out", str(out), *options]) == 0
    return out


def plan_of(bundle: Path) -> Plan:
    return load_bundle(bundle).plan


def forward(network: nn.Module, tile: np.ndarray) -> np.ndarray:
    """float32 (classes, z, y, x) logits; a 2-D network sees the one slice."""
    flat = tile.shape[0] == 1
    with torch.inference_mode():
        logits = network(torch.from_numpy(tile[None] if flat else tile[None, None]))[0]
    return np.asarray(logits.unsqueeze(1) if flat else logits)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("uneven", [False, True])
def test_the_backends_repeat_the_network(flat: bool, uneven: bool, tmp_path: Path) -> None:
    """v1's decoder has the kernels of the level below: that shows if they are uneven."""
    network = v1_network(flat, uneven)
    folder = import_v1(write_v1(tmp_path / "model", v1_plans(flat, uneven), OrderedDict(network.state_dict())))
    bundle = load_bundle(folder)
    assert bundle.plan.network.decoder_kernels == "below"
    tile = np.random.default_rng(0).normal(size=(1, *PATCH_2D) if flat else PATCH_3D).astype(np.float32)
    expected = forward(network, tile)
    for backend in BACKENDS:
        found = create_predictor(bundle, backend, "cpu", "fp32")[0].predict(tile)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_the_plan_says_what_v1_does(tmp_path: Path) -> None:
    plan = plan_of(import_v1(write_v1(tmp_path / "model"), "--tile-step-size", "0.7", "--mode", "fastest"))
    assert (plan.orientation, plan.crop_to_nonzero, plan.transpose_forward) == ("as_stored", True, (0, 1, 2))
    assert plan.mode == "fastest"
    assert (plan.spacing.enforce, plan.spacing.target_zyx_mm) == ("off", (5.0, 1.5, 1.25))
    assert not plan.spacing.keep_first_axis
    assert plan.intensity.normalise == "after_resampling"
    assert plan.intensity.clip_hu == (LOW, HIGH)
    assert (plan.intensity.subtract_hu, plan.intensity.divide_hu) == (MEAN, SD)
    assert plan.interpolation.image_order == 3
    assert plan.interpolation.separate_z_above == 3.0
    assert plan.interpolation.clip_overshoot
    window = plan.sliding_window
    assert (window.patch_size, window.tile_step_size, window.mirror_axes) == ((8, 16, 24), 0.7, (0, 1, 2))
    assert (window.average, window.accumulator, window.gaussian_sigma_scale) == ("probabilities", "float32", 0.125)
    assert (plan.interpolation.logits_precision, window.sum_order) == ("float32", "least_memory")
    assert plan.intensity.normalised(window.pad_hu) == 0
    assert plan.network.features_per_stage == (4, 8, 8)
    assert plan.network.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert plan.network.kernel_sizes == ((3, 3, 3),) * 3


def test_a_2d_model_keeps_the_slices(tmp_path: Path) -> None:
    model = write_v1(tmp_path / "model", v1_plans(flat=True), v1_network(flat=True).state_dict())
    plan = plan_of(import_v1(model))
    assert plan.spacing.keep_first_axis
    assert plan.spacing.target_zyx_mm[1:] == (1.5, 1.25)
    assert plan.sliding_window.patch_size == (1, 16, 24)
    assert plan.sliding_window.mirror_axes == (1, 2)
    assert plan.network.kernel_sizes == ((3, 3),) * 3


@pytest.mark.parametrize(("stage", "spacing"), [(0, (10.0, 3.0, 2.5)), (1, (5.0, 1.5, 1.25))])
def test_the_stage_is_that_of_the_trainer(stage: int, spacing: tuple[float, ...], tmp_path: Path) -> None:
    plans = v1_plans()
    full = plans["plans_per_stage"][0]
    plans["plans_per_stage"] = {0: {**full, "current_spacing": np.array([10.0, 3.0, 2.5])}, 1: full}
    model = write_v1(tmp_path / "model", plans, stage=stage)
    assert plan_of(import_v1(model)).spacing.target_zyx_mm == spacing


def test_of_a_cps_pair_the_first_is_taken_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = (v1_network().state_dict(), make_random(v1_network(), seed=1).state_dict())
    folder = import_v1(write_v1(tmp_path / "model", state=pair, trainer="nnUNetTrainerV2_SSL"))
    found = load_file(folder / "network.safetensors")
    np.testing.assert_array_equal(found["seg.1.weight"], pair[0]["seg_outputs.1.weight"].numpy())
    assert "CPS checkpoint with 2 networks; the first" in capsys.readouterr().out
    assert "CPS checkpoint with 2 networks; the first" in (folder / "MODEL_CARD.md").read_text()


def test_weights_keep_their_precision_unless_told(tmp_path: Path) -> None:
    exact = {name: value.half().float() for name, value in v1_network().state_dict().items()}
    kept = load_file(import_v1(write_v1(tmp_path / "kept")) / "network.safetensors")
    rounded = load_file(import_v1(write_v1(tmp_path / "rounded"), "--half") / "network.safetensors")
    lossless = load_file(import_v1(write_v1(tmp_path / "lossless", state=exact)) / "network.safetensors")
    assert {value.dtype for value in kept.values()} == {np.dtype(np.float32)}
    assert {value.dtype for value in (*rounded.values(), *lossless.values())} == {np.dtype(np.float16)}


def test_labels_take_their_names_from_dataset_json(tmp_path: Path) -> None:
    model = write_v1(tmp_path / "model")
    assert plan_of(import_v1(model)).labels == ("class_1", "class_2", "class_3")
    names = {"0": "background", **{str(label): organ for label, organ in enumerate(ORGANS, start=1)}}
    (model / "dataset.json").write_text(json.dumps({"labels": names}))
    assert plan_of(import_v1(model)).labels == ORGANS


@pytest.mark.parametrize(
    ("classes", "kept"), [([], ()), ([3, 1], ("class_3", "class_1")), (None, ("class_1", "class_2", "class_3"))]
)
def test_postprocessing_of_single_labels(classes: Any, kept: tuple[str, ...], tmp_path: Path) -> None:
    model = write_v1(tmp_path / "model")
    content = {"for_which_classes": classes, "min_valid_object_sizes": "None"}
    (model / "postprocessing.json").write_text(json.dumps(content))
    assert plan_of(import_v1(model)).postprocessing.largest_component == kept
    assert plan_of(import_v1(model, "--no-postprocessing")).postprocessing.largest_component == ()


def test_trainers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    still = write_v1(tmp_path / "still", trainer="nnUNetTrainerV2_noMirroring")
    assert plan_of(import_v1(still)).sliding_window.mirror_axes == ()
    mine = write_v1(tmp_path / "mine", trainer="MyTrainer")
    assert plan_of(import_v1(mine, "--trainer", "nnUNetTrainerV2")).sliding_window.mirror_axes == (0, 1, 2)
    assert "trainer MyTrainer, taken to be as nnUNetTrainerV2" in capsys.readouterr().out


def test_weights_of_a_parallel_training(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in v1_network().state_dict().items()}
    import_v1(write_v1(tmp_path / "model", state=state))


def test_imported_then_segmented(tmp_path: Path) -> None:
    """The plans' axes are those after ``transpose_forward``; one window, no resampling: the oracle's arg max."""
    model = write_v1(
        tmp_path / "model", {**v1_plans(), "transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    )
    folder = import_v1(model)
    phantom = make_phantom(seed=0, shape_zyx=(16, 8, 24), spacing_zyx_mm=(1.5, 5.0, 1.25))
    write_image(tmp_path / "scan.nii.gz", phantom)
    arguments = ["--bundle", str(folder), "--input", str(tmp_path / "scan.nii.gz"), "--precision", "fp32", "-q"]
    assert segment([*arguments, "--output", str(tmp_path / "labels.nii.gz")]) == 0
    stored = np.asarray(nib.load(tmp_path / "scan.nii.gz").dataobj, dtype=np.float32).transpose(2, 1, 0)
    image = (np.clip(stored, LOW, HIGH) - MEAN) / SD
    logits = forward(v1_network(), np.ascontiguousarray(image.transpose(1, 0, 2), dtype=np.float32))
    expected = logits.argmax(axis=0).transpose(1, 0, 2)
    found = np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj).transpose(2, 1, 0)
    assert len(np.unique(expected)) > 1
    assert np.mean(found == expected) > 0.999  # a runtime's sums differ in the last digits


def test_reimport_replaces_a_bundle_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_v1(tmp_path / "model")
    folder = import_v1(model)
    assert import_v1(model) == folder
    (folder / "thesis.txt").write_text("mine")
    assert main(["nnunet-v1", str(model), "--out", str(folder)]) == 3
    assert "holds thesis.txt" in capsys.readouterr().err


@pytest.mark.parametrize("uneven", [False, True])
def test_a_network_of_another_shape_is_refused(
    uneven: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = v1_network(uneven=uneven).state_dict()
    state["seg_outputs.1.weight"] = torch.zeros(9, 4, 1, 1, 1)
    model = write_v1(tmp_path / "model", v1_plans(uneven=uneven), state)
    assert main(["nnunet-v1", str(model), "--out", str(tmp_path / "out")]) == 4
    assert "seg.1.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bundles_of_a_training_stay_half(tmp_path: Path) -> None:
    from tools.convert.bundles import write_bundle

    bundle = load_bundle(import_v1(write_v1(tmp_path / "model")))
    weights = load_file(bundle.folder / "network.safetensors")
    write_bundle(tmp_path / "trained", replace(bundle.plan, name="trained"), weights, "card")
    found = load_file(tmp_path / "trained" / "network.safetensors")
    assert {value.dtype for value in found.values()} == {np.dtype(np.float16)}
