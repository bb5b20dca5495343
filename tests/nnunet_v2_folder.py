"""nnU-Net v2's results folder in small, written as v2 writes it; the networks come from nnU-Net's own library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import (  # type: ignore[import-untyped]
    PlainConvUNet,
    ResidualEncoderUNet,
)
from torch import nn

from tests.nnunet_v1_folder import (
    CLASSES,
    FEATURES,
    HIGH,
    KERNELS_2D,
    KERNELS_3D,
    LOW,
    MEAN,
    ORGANS,
    PATCH_2D,
    PATCH_3D,
    POOLING_2D,
    POOLING_3D,
    SD,
    SPACING_3D,
    make_random,
)


def v2_architecture(residual: bool = False, flat: bool = False) -> dict[str, Any]:
    """The network as ``plans.json`` has it."""
    dimensions = 2 if flat else 3
    blocks = {"n_blocks_per_stage": [1, 2, 2]} if residual else {"n_conv_per_stage": [2, 2, 2]}
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": list(FEATURES),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": KERNELS_2D if flat else KERNELS_3D,
            "strides": [[1] * dimensions, *(POOLING_2D if flat else POOLING_3D)],
            **blocks,
            "n_conv_per_stage_decoder": [1, 1] if residual else [2, 2],
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


def v2_network(residual: bool = False, flat: bool = False) -> nn.Module:
    """The same network by nnU-Net's library, in its own arguments, as at inference."""
    kind = ResidualEncoderUNet if residual else PlainConvUNet
    return make_random(
        kind(
            input_channels=1,
            n_stages=3,
            features_per_stage=FEATURES,
            conv_op=nn.Conv2d if flat else nn.Conv3d,
            kernel_sizes=KERNELS_2D if flat else KERNELS_3D,
            strides=[[1] * (2 if flat else 3), *(POOLING_2D if flat else POOLING_3D)],
            **({"n_blocks_per_stage": (1, 2, 2)} if residual else {"n_conv_per_stage": 2}),
            num_classes=CLASSES,
            n_conv_per_stage_decoder=1 if residual else 2,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d if flat else nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
    )


def v2_plans(residual: bool = False, flat: bool = False) -> dict[str, Any]:
    """``plans.json``; the configuration ``chosen`` inherits all but its patch from ``base``."""
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    base = {
        "data_identifier": "plans_base",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [64, 64],
        "spacing": list(SPACING_3D[1:] if flat else SPACING_3D),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**kwargs, "order": 1},
        "architecture": v2_architecture(residual, flat),
    }
    properties = {"mean": MEAN, "std": SD, "percentile_00_5": LOW, "percentile_99_5": HIGH, "median": 80.0}
    return {
        "dataset_name": "Dataset701_AbdomenCT",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "base": base,
            "chosen": {"inherits_from": "base", "patch_size": list(PATCH_2D if flat else PATCH_3D)},
        },
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": properties},
    }


def v2_dataset() -> dict[str, Any]:
    """``dataset.json``."""
    labels = {"background": 0, **{organ: label for label, organ in enumerate(ORGANS, start=1)}}
    return {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 13, "file_ending": ".nii.gz"}


def write_v2(
    folder: Path,
    plans: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    network: nn.Module | None = None,
    **checkpoint: Any,
) -> Path:
    """A results folder of v2; ``checkpoint`` replaces entries of the checkpoint."""
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    plans = v2_plans() if plans is None else plans
    content: dict[str, Any] = {
        "network_weights": (v2_network() if network is None else network).state_dict(),
        "optimizer_state": {"state": {}, "param_groups": []},
        "grad_scaler_state": None,
        "logging": {
            "train_losses": [np.float32(-0.2)],
            "ema_fg_dice": [np.float64(0.8)],
            "epoch_start_timestamps": [1.5],
        },
        "_best_ema": np.float64(0.8),
        "current_epoch": 1000,
        "init_args": {"plans": plans, "configuration": "chosen", "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1) if "2d" in json.dumps(plans) else (0, 1, 2),
    }
    torch.save({**content, **checkpoint}, fold / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(v2_dataset() if dataset is None else dataset))
    return folder
