"""The U-Net of nnU-Net v1 in two and three dimensions, built from a plan."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from app.plan import NetworkPlan

_CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_SLOPE = 0.01


def build_network(plan: NetworkPlan, classes: int) -> nn.Module:
    """The network of a plan: (batch, 1, ...) images to (batch, classes, ...) logits."""
    if plan.siblings == 1:
        return UNet(plan, classes)
    return Siblings([UNet(plan, classes) for _ in range(plan.siblings)])


class Siblings(nn.ModuleList):
    """Networks of one architecture whose logits are averaged; network i has the prefix ``i.`` in the state dict."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """The mean of the siblings' logits."""
        return torch.stack([network(image) for network in self]).mean(dim=0)


class UNet(nn.Module):
    """Plain U-Net: two blocks a stage, strided convolutions down, transposed convolutions up.

    A block is convolution (bias) - instance norm (affine, eps 1e-5) - LeakyReLU(0.01). Transposed convolutions
    (kernel = stride) and the 1x1 heads have a bias only if the plan says so. ``seg[i]`` is the head of decoder level i,
    deepest first. With the paper's plan: 30,794,784 parameters in 3-D, 41,285,472 in 2-D.
    """

    def __init__(self, plan: NetworkPlan, classes: int, in_channels: int = 1) -> None:
        super().__init__()
        features = plan.features_per_stage
        dimensions = plan.dimensions
        self.enc = nn.ModuleList()
        channels = in_channels
        for stage, width in enumerate(features):
            kernel, stride = plan.kernel_sizes[stage], plan.strides[stage]
            self.enc.append(_Stage(dimensions, channels, width, kernel, stride, plan.residual))
            channels = width
        self.up = nn.ModuleList()
        self.dec = nn.ModuleList()
        self.seg = nn.ModuleList()
        no_stride, bias = (1,) * dimensions, plan.decoder_biases
        for stage in range(len(features) - 1, 0, -1):
            below, width = features[stage], features[stage - 1]
            stride, kernel = plan.strides[stage], plan.decoder_kernel(stage - 1)
            self.up.append(_TRANSPOSED[dimensions](below, width, cast(Any, stride), cast(Any, stride), bias=bias))
            self.dec.append(_Stage(dimensions, 2 * width, width, kernel, no_stride, plan.residual))
            self.seg.append(_CONVOLUTION[dimensions](width, classes, 1, bias=bias))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, classes, ...) logits at full resolution of a (batch, 1, ...) image."""
        return cast(torch.Tensor, self.seg[-1](self.decode(image)[-1]))

    def deep_supervision(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Logits of all decoder levels, full resolution first."""
        features = self.decode(image)
        return [head(level) for head, level in zip(reversed(self.seg), reversed(features), strict=True)]

    def decode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of the decoder levels, deepest first."""
        skips = []
        for stage in self.enc:
            image = stage(image)
            skips.append(image)
        levels = []
        current = skips.pop()
        for up, stage in zip(self.up, self.dec, strict=True):
            current = stage(torch.cat((up(current), skips.pop()), dim=1))
            levels.append(current)
        return levels


class _Stage(nn.ModuleList):
    """Two blocks; the first one strides, the second may have an identity shortcut."""

    def __init__(
        self, dimensions: int, channels: int, width: int, kernel: Sequence[int], stride: Sequence[int], residual: bool
    ) -> None:
        super().__init__(
            [
                _block(dimensions, channels, width, kernel, stride),
                _block(dimensions, width, width, kernel, (1,) * dimensions),
            ]
        )
        self.residual = residual

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first, second = self
        image = first(image)
        return cast(torch.Tensor, second(image) + image if self.residual else second(image))


def _block(dimensions: int, channels: int, width: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Sequential:
    padding = tuple(side // 2 for side in kernel)
    convolution = _CONVOLUTION[dimensions](channels, width, cast(Any, kernel), cast(Any, stride), cast(Any, padding))
    return nn.Sequential(
        convolution, _NORM[dimensions](width, eps=1e-5, affine=True), nn.LeakyReLU(_SLOPE, inplace=True)
    )
