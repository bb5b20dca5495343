"""Instance norm for training on a CPU: channels last, without copies, and with statistics as exact as PyTorch's own.

``F.instance_norm`` copies a map whose channels are last, both ways. Batch norm of a single image is the same function
and does not, but its sums run over half a million voxels in one float32 number: 1 % off where most of a patch is air.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.network import UNet

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_LEAST_ROWS = 256  # a sum runs over about so many values, before the sums are joined in float64


def use_fast_norms(network: UNet) -> None:
    """Puts ``InstanceNorm`` in the place of all norms; parameters and their names stay."""
    for parent in network.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d):
                setattr(parent, name, InstanceNorm(child))


class InstanceNorm(nn.Module):
    """``norm`` for a batch of one whose channels are last in memory; as it is for other batches."""

    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, ...) normalised, each image and channel for itself."""
        if len(image) == 1 and image.is_contiguous(memory_format=_CHANNELS_LAST[image.ndim]):
            normalised = _NormOfOne.apply(image, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
            return cast(Tensor, normalised)
        return functional.instance_norm(image, weight=self.weight, bias=self.bias, eps=self.eps)


def statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """float32 (channels,) mean and biased variance of a map (1, channels, ...), channels last.

    Neighbouring voxels are taken for further channels (a view of the same memory), so that each of many short sums
    is exact; their means and variances are joined by the law of total variance.
    """
    channels = image.shape[1]
    voxels = image.numel() // channels
    parts = 1
    while voxels % (2 * parts) == 0 and voxels // (2 * parts) >= _LEAST_ROWS:
        parts *= 2
    rows = image.movedim(1, -1).reshape(voxels // parts, parts * channels)
    unused = torch.zeros(parts * channels)  # float32, as the results are to be
    means, variances = torch.ops.aten.batch_norm_update_stats(rows, unused, unused.clone(), 0.0)
    means, variances = (values.double().view(parts, channels) for values in (means, variances))
    mean = means.mean(0)
    return mean.float(), (variances.mean(0) + (means - mean).square().mean(0)).float()


class _NormOfOne(torch.autograd.Function):
    """Batch norm's kernels about exact statistics."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean, variance = statistics(image)
        ctx.save_for_backward(image, weight, mean, torch.rsqrt(variance + eps))
        ctx.eps = eps
        return torch.native_batch_norm(image, weight, bias, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        image, weight, mean, inverse_deviation = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=_CHANNELS_LAST[image.ndim])
        found = torch.ops.aten.native_batch_norm_backward(
            gradient, image, weight, None, None, mean, inverse_deviation, True, ctx.eps, [True, True, True]
        )
        return (*found, None)
