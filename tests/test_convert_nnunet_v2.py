"""nnU-Net v2's results folders as bundles, against the networks of nnU-Net's own library."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from app.__main__ import main as segment
from app.backends import create_predictor
from app.bundle import load_bundle, write_hashes
from app.plan import Plan
from tests.nnunet_v1_folder import HIGH, LOW, MEAN, ORGANS, PATCH_2D, PATCH_3D, SD
from tests.nnunet_v2_folder import v2_dataset, v2_network, v2_plans, write_v2
from tests.test_convert_nnunet_v1 import forward
from tools.convert.__main__ import main
from tools.convert.bundles import stored_architecture
from tools.phantom import make_phantom, write_image


def import_v2(model: Path, *options: str) -> Path:
    out = model.with_name(f"{model.name}_bundle")
    assert main(["nnunet-v2", str(model), "--fold", "0", "--out", str(out), *options]) == 0
    return out


def plan_of(bundle: Path) -> Plan:
    return load_bundle(bundle).plan


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("residual", "described_by"), [(False, "plan"), (True, "onnx")])
def test_the_backends_repeat_the_network(flat: bool, residual: bool, described_by: str, tmp_path: Path) -> None:
    network = v2_network(residual, flat)
    folder = import_v2(write_v2(tmp_path / "model", v2_plans(residual, flat), network=network))
    bundle = load_bundle(folder)
    assert bundle.plan.network.described_by == described_by
    tile = np.random.default_rng(0).normal(size=(1, *PATCH_2D) if flat else PATCH_3D).astype(np.float32)
    expected = forward(network, tile)
    for backend in ("openvino", "onnxruntime", *(("torch",) if described_by == "plan" else ())):
        found = create_predictor(bundle, backend, "cpu", "fp32")[0].predict(tile)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_the_plan_says_what_v2_does(tmp_path: Path) -> None:
    plan = plan_of(import_v2(write_v2(tmp_path / "model", {**v2_plans(), "transpose_forward": [2, 0, 1]})))
    assert (plan.orientation, plan.crop_to_nonzero, plan.transpose_forward) == ("as_stored", True, (2, 0, 1))
    assert plan.labels == ORGANS
    assert plan.mode == "normal"
    assert (plan.spacing.enforce, plan.spacing.target_zyx_mm) == ("off", (5.0, 1.5, 1.25))
    assert plan.intensity.normalise == "before_resampling"
    assert plan.intensity.clip_hu == (LOW, HIGH)
    assert (plan.intensity.subtract_hu, plan.intensity.divide_hu) == (MEAN, SD)
    assert plan.interpolation.image_order == 3
    assert plan.interpolation.separate_z_above == 3.0
    assert plan.interpolation.clip_overshoot
    assert plan.interpolation.logits_precision == "float16"
    assert plan.sliding_window.sum_order == "by_axis"
    window = plan.sliding_window
    assert (window.patch_size, window.tile_step_size, window.mirror_axes) == ((8, 16, 24), 0.5, (0, 1, 2))
    assert (window.average, window.accumulator, window.gaussian_sigma_scale) == ("logits", "float16", 0.125)
    assert plan.intensity.normalised(window.pad_hu) == 0


@pytest.mark.parametrize(("stored", "expected"), [((0, 1), (1, 2)), ((1,), (2,)), (None, ())])
def test_a_2d_model_keeps_the_slices_and_its_mirroring(stored: Any, expected: tuple[int, ...], tmp_path: Path) -> None:
    model = write_v2(
        tmp_path / "model",
        v2_plans(flat=True),
        network=v2_network(flat=True),
        inference_allowed_mirroring_axes=stored,
    )
    plan = plan_of(import_v2(model))
    assert plan.spacing.keep_first_axis
    assert plan.spacing.target_zyx_mm[1:] == (1.5, 1.25)
    assert plan.sliding_window.patch_size == (1, 16, 24)
    assert plan.sliding_window.mirror_axes == expected


def test_plans_of_before_2024(tmp_path: Path) -> None:
    plans = v2_plans()
    base = plans["configurations"]["base"]
    arguments = base.pop("architecture")["arch_kwargs"]
    base |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "conv_kernel_sizes": arguments["kernel_sizes"],
        "pool_op_kernel_sizes": arguments["strides"],
    }
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    assert plan_of(import_v2(write_v2(tmp_path / "model", plans))).network.features_per_stage == (4, 8, 8)


def test_the_ignore_label_has_no_channel(tmp_path: Path) -> None:
    dataset = v2_dataset()
    dataset["labels"]["ignore"] = 4
    assert plan_of(import_v2(write_v2(tmp_path / "model", dataset=dataset))).labels == ORGANS


def test_an_exported_network_is_one_file_with_a_node_per_norm(tmp_path: Path) -> None:
    folder = import_v2(write_v2(tmp_path / "model", v2_plans(residual=True), network=v2_network(residual=True)))
    model = onnx.load(folder / "network.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    norms = sum(node.op_type == "InstanceNormalization" for node in model.graph.node)
    assert norms == 1 + 5 * 2 + 1 + 2  # stem, five blocks of two, one widening shortcut, two decoder stages of one
    first = (folder / "network.onnx").read_bytes()
    assert main(["onnx", str(folder)]) == 0
    assert (folder / "network.onnx").read_bytes() == first
    half = onnx.load(folder / "network-fp16.onnx")  # whose types were checked when it was written
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 2 * norms + 2


def test_half_weights_of_an_exported_network(tmp_path: Path) -> None:
    model = write_v2(tmp_path / "model", v2_plans(residual=True), network=v2_network(residual=True))
    folder = import_v2(model, "--half")
    stored = onnx.load(folder / "network.onnx").graph.initializer
    assert {weight.data_type for weight in stored} == {onnx.TensorProto.FLOAT16}
    assert main(["verify", str(folder)]) == 0


def test_verify_compares_an_exported_network_with_its_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = import_v2(write_v2(tmp_path / "model", v2_plans(residual=True), network=v2_network(residual=True)))
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 0
    report = capsys.readouterr().out
    assert "dynamic_network_architectures" in report
    assert report.count("random") == 2 * 2
    assert report.count("phantom") == 2
    weights = load_file(folder / "network.safetensors")
    metadata = {"architecture": stored_architecture(load_bundle(folder))}
    save_file(
        {**weights, "decoder.seg_layers.1.bias": np.ones(4, np.float32)}, folder / "network.safetensors", metadata
    )
    write_hashes(folder)
    assert main(["verify", str(folder)]) == 1


def test_verify_without_the_architecture_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = import_v2(write_v2(tmp_path / "model", v2_plans(residual=True), network=v2_network(residual=True)))
    save_file(load_file(folder / "network.safetensors"), folder / "network.safetensors")
    write_hashes(folder)
    assert main(["verify", str(folder)]) == 4
    assert "import it anew" in capsys.readouterr().err


def test_postprocessing_is_declined_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_v2(tmp_path / "model")
    validation = model / "crossval_results_folds_0_1_2_3_4"
    validation.mkdir()
    (validation / "postprocessing.json").write_text(json.dumps({"postprocessing_kwargs": []}))
    import_v2(model)
    (validation / "postprocessing.json").write_text(json.dumps({"postprocessing_kwargs": [{"labels_or_regions": 2}]}))
    assert main(["nnunet-v2", str(model), "--out", str(tmp_path / "out")]) == 4
    assert "--no-postprocessing" in capsys.readouterr().err
    import_v2(model, "--no-postprocessing")
    (validation / "postprocessing.json").unlink()
    (validation / "postprocessing.pkl").write_bytes(b"never read")
    assert main(["nnunet-v2", str(model), "--out", str(tmp_path / "out")]) == 4
    assert "postprocessing.pkl: a pickle that names functions" in capsys.readouterr().err


@pytest.mark.parametrize("residual", [False, True])
def test_imported_then_segmented(residual: bool, tmp_path: Path) -> None:
    """One window, no resampling: the arg max of the library's network, in its precision."""
    network = v2_network(residual)
    folder = import_v2(write_v2(tmp_path / "model", v2_plans(residual), network=network))
    phantom = make_phantom(seed=0, shape_zyx=PATCH_3D, spacing_zyx_mm=(5.0, 1.5, 1.25))
    write_image(tmp_path / "scan.nii.gz", phantom)
    arguments = ["--bundle", str(folder), "--input", str(tmp_path / "scan.nii.gz"), "--precision", "fp32", "-q"]
    assert segment([*arguments, "--output", str(tmp_path / "labels.nii.gz")]) == 0
    stored = np.asarray(nib.load(tmp_path / "scan.nii.gz").dataobj, dtype=np.float32).transpose(2, 1, 0)
    image = ((np.clip(stored, LOW, HIGH) - MEAN) / SD).astype(np.float32)
    expected = forward(network, np.ascontiguousarray(image)).argmax(axis=0)
    found = np.asarray(nib.load(tmp_path / "labels.nii.gz").dataobj).transpose(2, 1, 0)
    assert len(np.unique(expected)) > 1
    assert np.mean(found == expected) > 0.99  # sums in half precision


def test_another_network_than_the_plans_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_v2(tmp_path / "model", v2_plans(residual=True), network=v2_network(residual=False))
    assert main(["nnunet-v2", str(model), "--out", str(tmp_path / "out")]) == 4
    assert "not those of the network in plans.json" in capsys.readouterr().err


def test_the_torch_backend_says_why_it_cannot(tmp_path: Path) -> None:
    from app.errors import BundleError

    folder = import_v2(write_v2(tmp_path / "model", v2_plans(residual=True), network=v2_network(residual=True)))
    with pytest.raises(BundleError, match=r"only network\.onnx describes"):
        create_predictor(load_bundle(folder), "torch", "cpu", "fp32")
