"""nnU-Net v1's results folder in small, written as v1 writes it: its key names, its pickles.

``GenericUNet`` says again, in a few lines, what nnunet 1.7.1's ``Generic_UNet`` does (compared once: same keys, logits
equal to the last bit). Its forward pass is what an imported bundle has to repeat.
"""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

ORGANS = ("liver", "spleen", "aorta")
CLASSES = len(ORGANS) + 1
FEATURES = (4, 8, 8)
POOLING_3D, KERNELS_3D = [[1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
POOLING_2D, KERNELS_2D = [[2, 2], [1, 2]], [[3, 3], [3, 3], [1, 3]]
PATCH_3D, PATCH_2D = (8, 16, 24), (16, 24)
SPACING_3D = (5.0, 1.5, 1.25)
MEAN, SD, LOW, HIGH = 81.5, 132.25, -912.0, 1021.0


class GenericUNet(nn.Module):
    """nnU-Net v1's network: names of modules as in its checkpoints."""

    def __init__(self, pooling: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]) -> None:
        super().__init__()
        depth = len(pooling)
        flat = len(kernels[0]) == 2
        transposed, conv = (nn.ConvTranspose2d, nn.Conv2d) if flat else (nn.ConvTranspose3d, nn.Conv3d)
        contexts: list[nn.Module] = []
        before = 1
        for stage in range(depth):
            stride = pooling[stage - 1] if stage else None
            contexts.append(_Stack(before, FEATURES[stage], kernels[stage], 2, stride))
            before = FEATURES[stage]
        bottom = FEATURES[depth]
        contexts.append(
            nn.Sequential(_Stack(before, bottom, kernels[-1], 1, pooling[-1]), _Stack(bottom, bottom, kernels[-1], 1))
        )
        ups: list[nn.Module] = []
        localizations: list[nn.Module] = []
        outputs: list[nn.Module] = []
        for level in reversed(range(depth)):
            width = FEATURES[level]
            step = cast(Any, tuple(pooling[level]))
            ups.append(transposed(FEATURES[level + 1], width, step, step, bias=False))
            below = kernels[level + 1]  # not the level's own, as in the encoder
            localizations.append(nn.Sequential(_Stack(2 * width, width, below, 1), _Stack(width, width, below, 1)))
            outputs.append(conv(width, CLASSES, 1, bias=False))
        self.conv_blocks_context = nn.ModuleList(contexts)
        self.conv_blocks_localization = nn.ModuleList(localizations)
        self.tu = nn.ModuleList(ups)
        self.seg_outputs = nn.ModuleList(outputs)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips = []
        for stage in self.conv_blocks_context:
            image = stage(image)
            skips.append(image)
        image = skips.pop()
        for up, localize in zip(self.tu, self.conv_blocks_localization, strict=True):
            image = localize(torch.cat([up(image), skips.pop()], dim=1))
        return cast(torch.Tensor, self.seg_outputs[-1](image))


class _Stack(nn.Module):
    def __init__(
        self, before: int, width: int, kernel: Sequence[int], count: int, stride: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        strides = [stride or [1] * len(kernel), *([[1] * len(kernel)] * (count - 1))]
        widths = [before, *([width] * (count - 1))]
        self.blocks = nn.Sequential(*(_Block(w, width, kernel, s) for w, s in zip(widths, strides, strict=True)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.blocks(image))


class _Block(nn.Module):
    def __init__(self, before: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        flat = len(kernel) == 2
        pads = cast(Any, tuple(1 if side == 3 else 0 for side in kernel))
        make = nn.Conv2d if flat else nn.Conv3d
        self.conv = make(before, width, cast(Any, tuple(kernel)), cast(Any, tuple(stride)), pads)
        self.instnorm = (nn.InstanceNorm2d if flat else nn.InstanceNorm3d)(width, eps=1e-5, affine=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.instnorm(self.conv(image)), 0.01)


def make_random(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter of the network, norms among them, drawn by a seed; ready to predict."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            value.copy_(shift + 0.3 * torch.randn(value.shape, generator=generator))
    return network.eval()


def v1_kernels(flat: bool, uneven: bool) -> list[list[int]]:
    if uneven:
        return KERNELS_2D if flat else KERNELS_3D
    return [[3, 3] if flat else [3, 3, 3]] * 3


def v1_network(flat: bool = False, uneven: bool = False) -> nn.Module:
    return make_random(GenericUNet(POOLING_2D if flat else POOLING_3D, v1_kernels(flat, uneven)))


def v1_plans(flat: bool = False, uneven: bool = False) -> dict[str, Any]:
    """What matters of ``plans.pkl``, with the numpy values that nnU-Net leaves in it."""
    stage = {
        "batch_size": 2,
        "num_pool_per_axis": [2, 2] if flat else [1, 2, 2],
        "patch_size": np.array(PATCH_2D if flat else PATCH_3D),
        "current_spacing": np.array(SPACING_3D),
        "do_dummy_2D_data_aug": False,
        "pool_op_kernel_sizes": POOLING_2D if flat else POOLING_3D,
        "conv_kernel_sizes": v1_kernels(flat, uneven),
    }
    intensities = {
        "mean": np.float32(MEAN), "sd": np.float64(SD), "percentile_00_5": np.float64(LOW), "percentile_99_5": HIGH
    }  # fmt: skip
    return {
        "num_modalities": 1,
        "normalization_schemes": OrderedDict([(0, "CT")]),
        "use_mask_for_norm": OrderedDict([(0, False)]),
        "dataset_properties": {"intensityproperties": OrderedDict([(0, intensities)]), "all_sizes": [(9, 8, 7)]},
        "num_classes": len(ORGANS),
        "all_classes": list(range(1, CLASSES)),
        "base_num_features": FEATURES[0],
        "keep_only_largest_region": None,
        "min_region_size_per_class": None,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "preprocessor_name": "PreprocessorFor2D" if flat else "GenericPreprocessor",
        "conv_per_stage": 2,
        "plans_per_stage": OrderedDict([(0, stage)]),
    }


def write_v1(
    folder: Path,
    plans: dict[str, Any] | None = None,
    state: Any = None,
    trainer: str = "nnUNetTrainerV2",
    stage: int | None = 0,
) -> Path:
    """A results folder of v1: fold 0 of a network in three dimensions, unless the arguments say otherwise."""
    fold = folder / "fold_0"
    fold.mkdir(parents=True)
    content: dict[str, Any] = {
        "epoch": 1000,
        "state_dict": OrderedDict(v1_network().state_dict()) if state is None else state,
        "optimizer_state_dict": None,
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([np.float64(-0.5)], [np.float32(-0.4)], [], [np.float64(0.9)]),
        "best_stuff": (np.float64(-0.5), np.float64(0.4), None),
    }
    torch.save(content, fold / "model_final_checkpoint.model")
    info: dict[str, Any] = OrderedDict()
    info["init"] = ("plans.pkl", 0, "out", "data", True, stage, True, False, True)
    info["name"] = trainer
    info["class"] = f"<class '{trainer}'>"
    info["plans"] = v1_plans() if plans is None else plans
    (fold / "model_final_checkpoint.model.pkl").write_bytes(pickle.dumps(info))
    (folder / "plans.pkl").write_bytes(pickle.dumps(info["plans"]))
    return folder
