"""A plan and weights of ours as what nnU-Net v1 and v2 keep: their key names, ``plans.pkl`` and ``plans.json``.

The peers write their own folders (``run_v1.py`` and ``run_v2.py``), from the JSON and the arrays made here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from app.plan import Plan

Peer = Literal["v1", "v2"]
Weights = Mapping[str, npt.NDArray[Any]]

_NORM_INDEX = {"0": "convolution", "1": "norm"}
_V1_BLOCK = {"convolution": "conv", "norm": "instnorm"}
_V2_BLOCK = {"convolution": "conv", "norm": "norm"}
_CASCADE_OFF = {"num_stages": 1, "keep_only_largest_region": None, "min_region_size_per_class": None}


@dataclass(frozen=True)
class PeerModel:
    """What a peer needs to write a model folder.

    Attributes:
        peer: which nnU-Net.
        plan: ours: geometry, intensities, sliding window, widths.
        weights: ours; None for random ones from ``seed``.
        architecture: v2's class; v1 has one only.
        seed: of random weights.
    """

    peer: Peer
    plan: Plan
    weights: Weights | None = None
    architecture: Literal["PlainConvUNet", "ResidualEncoderUNet"] = "PlainConvUNet"
    seed: int = 0


def write_spec(model: PeerModel, folder: Path) -> Path:
    """Writes ``spec.json`` and, if there are weights, ``weights.npz``; returns the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    spec: dict[str, Any] = {"weights": None, "seed": model.seed}
    if model.peer == "v1":
        spec |= {"plans": v1_plans(model.plan)}
    else:
        spec |= {
            "plans": v2_plans(model.plan, model.architecture),
            "dataset": v2_dataset(model.plan),
            "configuration": configuration_name(model.plan),
            "mirror_axes": list(range(model.plan.network.dimensions)),
        }
    if model.weights is not None:
        named = v1_weights(model.weights) if model.peer == "v1" else v2_weights(model.weights)
        np.savez(folder / "weights.npz", **named)  # type: ignore[arg-type]  # numpy types its options, not these
        spec["weights"] = "weights.npz"
    path = folder / "spec.json"
    path.write_text(json.dumps(spec, indent=1), encoding="utf-8")
    return path


def configuration_name(plan: Plan) -> str:
    """``2d`` or ``3d_fullres``."""
    return "2d" if plan.network.dimensions == 2 else "3d_fullres"


def v1_weights(weights: Weights) -> dict[str, npt.NDArray[np.float32]]:
    """Our weights as float32 under v1's names.

    ``enc.2.1.0.weight`` (stage 2, second block, convolution) is ``conv_blocks_context.2.blocks.1.conv.weight``. The two
    blocks of the deepest stage and of all decoder levels are modules of their own, so ``dec.0.1.1.bias`` is
    ``conv_blocks_localization.0.1.blocks.0.instnorm.bias``.
    """
    deepest = str(max(int(name.split(".")[1]) for name in weights if name.startswith("enc.")))
    named = {}
    for name, value in weights.items():
        part, level, *rest = name.split(".")
        if part in ("enc", "dec"):
            block, module, kind = rest
            stack = "conv_blocks_context" if part == "enc" else "conv_blocks_localization"
            place = f"blocks.{block}" if part == "enc" and level != deepest else f"{block}.blocks.0"
            key = f"{stack}.{level}.{place}.{_V1_BLOCK[_NORM_INDEX[module]]}.{kind}"
        else:
            key = f"{ {'up': 'tu', 'seg': 'seg_outputs'}[part] }.{level}.{rest[0]}"
        named[key] = _float32(value)
    return named


def v2_weights(weights: Weights) -> dict[str, npt.NDArray[np.float32]]:
    """Our weights as float32 under the first of v2's names for each.

    ``dec.0.1.1.bias`` is ``decoder.stages.0.convs.1.norm.bias``. v2's transposed convolutions and heads have a bias,
    ours have none: it is 0.
    """
    named = {}
    for name, value in weights.items():
        part, level, *rest = name.split(".")
        if part in ("enc", "dec"):
            block, module, kind = rest
            stage = f"encoder.stages.{level}.0" if part == "enc" else f"decoder.stages.{level}"
            named[f"{stage}.convs.{block}.{_V2_BLOCK[_NORM_INDEX[module]]}.{kind}"] = _float32(value)
        else:
            stack = "transpconvs" if part == "up" else "seg_layers"
            channels = value.shape[1] if part == "up" else value.shape[0]
            named[f"decoder.{stack}.{level}.weight"] = _float32(value)
            named[f"decoder.{stack}.{level}.bias"] = np.zeros(channels, dtype=np.float32)
    return named


def v1_plans(plan: Plan) -> dict[str, Any]:
    """What v1 reads of ``plans.pkl``, as JSON can hold it: ``run_v1.py`` makes arrays and numbered keys of it."""
    organs = len(plan.labels)
    stage = {
        "batch_size": 2,
        "num_pool_per_axis": [sum(stride > 1 for stride in axis) for axis in zip(*plan.network.strides, strict=True)],
        "patch_size": _network_patch(plan),
        "median_patient_size_in_voxels": [200, 200, 200],
        "current_spacing": list(plan.spacing.target_zyx_mm),
        "original_spacing": list(plan.spacing.target_zyx_mm),
        "do_dummy_2D_data_aug": False,
        "pool_op_kernel_sizes": _lists(plan.network.strides[1:]),
        "conv_kernel_sizes": _lists(plan.network.kernel_sizes),
    }
    return {
        **_CASCADE_OFF,
        "num_modalities": 1,
        "modalities": {"0": "CT"},
        "normalization_schemes": {"0": "CT"},
        "use_mask_for_norm": {"0": False},
        "dataset_properties": {
            "modalities": {"0": "CT"},
            "all_classes": list(range(1, organs + 1)),
            "intensityproperties": {"0": _intensity_statistics(plan, "sd")},
        },
        "base_num_features": plan.network.features_per_stage[0],
        "num_classes": organs,
        "all_classes": list(range(1, organs + 1)),
        "min_size_per_class": None,
        "transpose_forward": list(plan.transpose_forward),
        "transpose_backward": [plan.transpose_forward.index(axis) for axis in range(3)],
        "data_identifier": "nnUNetData_plans_v2.1",
        "plans_per_stage": {"0": stage},
        "preprocessor_name": "PreprocessorFor2D" if plan.network.dimensions == 2 else "GenericPreprocessor",
        "conv_per_stage": 2,
    }


def v2_plans(plan: Plan, architecture: str) -> dict[str, Any]:
    """``plans.json``, with one configuration."""
    dimensions = plan.network.dimensions
    resampler = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": f"nnUNetPlans_{configuration_name(plan)}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": _network_patch(plan),
        "median_image_size_in_voxels": [200.0] * dimensions,
        "spacing": list(plan.spacing.target_zyx_mm[-dimensions:]),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampler},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampler},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampler},
        "architecture": _v2_architecture(plan, architecture),
        "batch_dice": True,
    }
    return {
        "dataset_name": "Dataset001_Parity",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(plan.spacing.target_zyx_mm),
        "original_median_shape_after_transp": [200, 200, 200],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(plan.transpose_forward),
        "transpose_backward": [plan.transpose_forward.index(axis) for axis in range(3)],
        "configurations": {configuration_name(plan): configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": _intensity_statistics(plan, "std")},
    }


def v2_dataset(plan: Plan) -> dict[str, Any]:
    """``dataset.json``."""
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {organ: label for label, organ in enumerate(plan.labels, start=1)},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }


def _v2_architecture(plan: Plan, architecture: str) -> dict[str, Any]:
    network, dimensions = plan.network, plan.network.dimensions
    stages = len(network.features_per_stage)
    depth = {"n_conv_per_stage": [2] * stages}
    if architecture == "ResidualEncoderUNet":
        depth = {"n_blocks_per_stage": [1, *[2] * (stages - 1)]}
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{architecture}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(network.features_per_stage),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": _lists(network.kernel_sizes),
            "strides": _lists(network.strides),
            **depth,
            "n_conv_per_stage_decoder": [2 if architecture == "PlainConvUNet" else 1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _intensity_statistics(plan: Plan, deviation: str) -> dict[str, float]:
    low, high = plan.intensity.clip_hu
    return {
        "percentile_00_5": low,
        "percentile_99_5": high,
        "mean": plan.intensity.subtract_hu,
        deviation: plan.intensity.divide_hu,
        "median": plan.intensity.subtract_hu,
        "min": -1024.0,
        "max": 3071.0,
    }


def _network_patch(plan: Plan) -> list[int]:
    return list(plan.sliding_window.patch_size[-plan.network.dimensions :])


def _lists(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(row) for row in rows]


def _float32(value: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(value, dtype=np.float32)
