"""What cannot be imported is refused by name: one test per reason."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nnunet_v1_folder import v1_network, v1_plans, write_v1
from tests.nnunet_v2_folder import v2_dataset, v2_plans, write_v2
from tools.convert.__main__ import main


def refused(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str], code: int = 4) -> str:
    """The message of an import that was refused and wrote nothing."""
    capsys.readouterr()
    assert main([*arguments, "--out", str(out)]) == code
    assert not out.exists()
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


def set_stage(plans: dict[str, Any], **changes: Any) -> None:
    plans["plans_per_stage"][0].update(changes)


V1_REASONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "2 modalities": lambda plans: plans.update(num_modalities=2),
    "normalisation nonCT": lambda plans: plans.update(normalization_schemes={0: "nonCT"}),
    "normalisation CT2": lambda plans: plans.update(normalization_schemes={0: "CT2"}),
    "use_mask_for_norm is set": lambda plans: plans.update(use_mask_for_norm={0: True}),
    "preprocessor GenericPreprocessor_linearResampling": lambda plans: plans.update(
        preprocessor_name="GenericPreprocessor_linearResampling"
    ),
    "export with": lambda plans: plans.update(
        segmentation_export_params={"force_separate_z": True, "interpolation_order": 1, "interpolation_order_z": 0}
    ),
    "3 convolutions a stage": lambda plans: plans.update(conv_per_stage=3),
    "labels (1, 2, 4)": lambda plans: plans.update(all_classes=[1, 2, 4]),
    "kernels": lambda plans: set_stage(plans, conv_kernel_sizes=[[5, 5, 5]] * 3),
    "'patch_size' is missing": lambda plans: plans["plans_per_stage"][0].pop("patch_size"),
    "mean 2000 HU outside": lambda plans: plans["dataset_properties"]["intensityproperties"][0].update(mean=2000.0),
    "target_zyx_mm[0]: found nan": lambda plans: set_stage(plans, current_spacing=[float("nan"), 1.0, 1.0]),
    "transpose_forward is [0, 0, 1]": lambda plans: plans.update(transpose_forward=[0, 0, 1]),
    "plans_per_stage: 0 is missing": lambda plans: plans.update(plans_per_stage={1: {}, 2: {}}),
}


@pytest.mark.parametrize("reason", V1_REASONS)
def test_v1_plans(reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = v1_plans()
    V1_REASONS[reason](plans)
    model = write_v1(tmp_path / "model", plans)
    assert reason in refused(["nnunet-v1", str(model)], tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        ("nnUNetTrainerV2CascadeFullRes", "a cascade takes two networks"),
        ("nnUNetTrainerV2_ReLU", "it is not known which network"),
        ("nnUNetTrainerV2BraTSRegions", "it is not known which network"),
    ],
)
def test_v1_trainers(trainer: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["nnunet-v1", str(write_v1(tmp_path / "model", trainer=trainer))], tmp_path / "out", capsys)
    assert f"trainer {trainer}; {reason}" in message
    assert "cascade" in message or "--trainer nnUNetTrainerV2\n" in message


def test_v1_interpolating_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {name: value for name, value in v1_network().state_dict().items() if not name.startswith("tu.")}
    message = refused(["nnunet-v1", str(write_v1(tmp_path / "model", state=state))], tmp_path / "out", capsys)
    assert "upsamples by interpolation" in message


def test_v1_stranger_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = OrderedDict(v1_network().state_dict())
    state["seg_outputs.0.bias"] = torch.zeros(4)
    message = refused(["nnunet-v1", str(write_v1(tmp_path / "model", state=state))], tmp_path / "out", capsys)
    assert "1 weights that the plain U-Net does not have (seg_outputs.0.bias" in message


@pytest.mark.parametrize("state", [(), "weights", {"epoch": 3}])
def test_v1_states_without_weights(state: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["nnunet-v1", str(write_v1(tmp_path / "model", state=state))], tmp_path / "out", capsys)
    assert "expected a" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"for_which_classes": [[1, 2, 3], 1]}, "the largest component of [1, 2, 3]"),
        ({"for_which_classes": [7]}, "the largest component of 7"),
        ({"for_which_classes": [1], "min_valid_object_sizes": "{1: 20.0}"}, "min_valid_object_sizes {1: 20.0}"),
        ({"for_which_classes": [1], "min_valid_object_sizes": "__import__('os')"}, "expected a dictionary"),
    ],
)
def test_v1_postprocessing(
    content: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_v1(tmp_path / "model")
    (model / "postprocessing.json").write_text(json.dumps(content))
    assert reason in refused(["nnunet-v1", str(model)], tmp_path / "out", capsys)


def base(plans: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = plans["configurations"]["base"]
    return found


def arguments_of(plans: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = base(plans)["architecture"]["arch_kwargs"]
    return found


V2_REASONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a cascade after 3d_lowres": lambda plans: base(plans).update(previous_stage="3d_lowres"),
    "normalisation ['ZScoreNormalization']": lambda plans: base(plans).update(
        normalization_schemes=["ZScoreNormalization"]
    ),
    "use_mask_for_norm is set": lambda plans: base(plans).update(use_mask_for_norm=[True]),
    "preprocessor MyPreprocessor": lambda plans: base(plans).update(preprocessor_name="MyPreprocessor"),
    "resampling of data by resample_torch_fornnunet": lambda plans: base(plans).update(
        resampling_fn_data="resample_torch_fornnunet"
    ),
    "resampling of probabilities by no_resampling": lambda plans: base(plans).update(
        resampling_fn_probabilities="no_resampling"
    ),
    "resampling of data with": lambda plans: base(plans)["resampling_fn_data_kwargs"].update(order_z=1),
    "reader NibabelIOWithReorient": lambda plans: plans.update(image_reader_writer="NibabelIOWithReorient"),
    "network dynamic_network_architectures.architectures.primus.Primus": lambda plans: base(plans)[
        "architecture"
    ].update(network_class_name="dynamic_network_architectures.architectures.primus.Primus"),
    "network os.system": lambda plans: base(plans)["architecture"].update(network_class_name="os.system"),
    "norm_op torch.nn.BatchNorm3d": lambda plans: arguments_of(plans).update(norm_op="torch.nn.BatchNorm3d"),
    "nonlin os.system": lambda plans: arguments_of(plans).update(nonlin="os.system"),
    "dropout_op torch.nn.Dropout3d": lambda plans: arguments_of(plans).update(dropout_op="torch.nn.Dropout3d"),
    "argument stem_channels is unknown": lambda plans: arguments_of(plans).update(stem_channels=3),
    "the network's strides is missing": lambda plans: arguments_of(plans).pop("strides"),
    "features_per_stage: found [4, 8]": lambda plans: arguments_of(plans).update(features_per_stage=[4, 8]),
    "chosen <- base inherit in a circle": lambda plans: base(plans).update(inherits_from="base"),
    "'chosen' is missing": lambda plans: plans["configurations"].pop("chosen"),
    "spacing: found 'thin'": lambda plans: base(plans).update(spacing="thin"),
}


@pytest.mark.parametrize("reason", V2_REASONS)
def test_v2_plans(reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = v2_plans()
    V2_REASONS[reason](plans)
    model = write_v2(tmp_path / "model", plans)
    assert reason in refused(["nnunet-v2", str(model)], tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channel_names": {"0": "CT", "1": "PET"}}, "channels {'0': 'CT', '1': 'PET'}"),
        ({"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rest": 3}}, "label whole is [1, 2, 3]"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 3}}, "labels [0, 1, 3]"),
        ({"labels": {"liver": 1}}, "'background' is missing"),
    ],
)
def test_v2_datasets(changes: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_v2(tmp_path / "model", dataset={**v2_dataset(), **changes})
    assert reason in refused(["nnunet-v2", str(model)], tmp_path / "out", capsys)


def test_v2_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_v2(tmp_path / "model", trainer_name="nnUNetTrainerBN")
    assert "trainer nnUNetTrainerBN" in refused(["nnunet-v2", str(model)], tmp_path / "out", capsys)
    asked = ["nnunet-v2", str(model), "--trainer", "Nobody"]
    assert "expected one of nnUNetTrainer," in refused(asked, tmp_path / "out", capsys, code=2)


@pytest.mark.parametrize("command", ["nnunet-v1", "nnunet-v2"])
def test_folders_and_folds(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = (write_v1 if command == "nnunet-v1" else write_v2)(tmp_path / "model")
    out = tmp_path / "out"
    assert "holds one network" in refused([command, str(model), "--fold", "0,1,2,3,4"], out, capsys, code=2)
    assert "fold_3: no such folder" in refused([command, str(model), "--fold", "3"], out, capsys)
    assert "no such folder" in refused([command, str(tmp_path / "nowhere")], out, capsys)
    message = refused([command, str(model), "--checkpoint", "model_best"], out, capsys)
    assert "model_best" in message
    assert "beside it lies" in message
