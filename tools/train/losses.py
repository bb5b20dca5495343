"""Dice + cross-entropy as nnU-Net has it, over deep-supervision scales, partial labels and several machines.

Batch Dice is not linear in the batch: its sums are gathered across ranks, with gradient, before the quotient is
taken, and so are the sums of the cross-entropy. Every rank then holds the loss of the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

SMOOTH = 1e-5  # nnU-Net's; keeps an organ that is absent everywhere at Dice 1


@dataclass(frozen=True)
class Target:
    """What a network's output is compared with, at full resolution or one scale.

    Attributes:
        label: int64 (batch, ...) class of each voxel.
        annotated: bool (batch, classes): classes that ``label`` can be trusted on. Voxels of the others may hide
            in its background. None: all.
        valid: bool (batch, ...) voxels that count. None: all.
    """

    label: Tensor
    annotated: Tensor | None = None
    valid: Tensor | None = None

    def at_scale(self, shape: Sequence[int]) -> "Target":
        """The target sampled (nearest neighbour) at the resolution of a deep-supervision head."""
        if tuple(shape) == tuple(self.label.shape[1:]):
            return self
        label = _sample(self.label, shape)
        valid = None if self.valid is None else _sample(self.valid, shape)
        return Target(label, self.annotated, valid)


def deep_supervision_weights(scales: int) -> list[float]:
    """nnU-Net's: halved from scale to scale, none for the coarsest, sum 1. Five scales: 8/15, 4/15, 2/15, 1/15, 0."""
    weights = [0.5**scale for scale in range(scales)]
    if scales > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def deep_supervision_loss(heads: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
    """The weighted sum of ``dice_and_cross_entropy`` over scales, full resolution first."""
    total = heads[0].new_zeros((), dtype=torch.float32)
    for weight, logits, target in zip(deep_supervision_weights(len(heads)), heads, targets, strict=True):
        if weight > 0:
            total = total + weight * dice_and_cross_entropy(logits, target)
    return total


def dice_and_cross_entropy(logits: Tensor, target: Target) -> Tensor:
    """Cross-entropy minus mean batch Dice without background: nnU-Net's ``DC_and_CE_loss``.

    Dice of organ c over the batch: (2 sum(p g) + s) / (sum(p) + sum(g) + s). Where an organ is not annotated it
    stays out of Dice, and the cross-entropy of a background voxel is -log(p_background + p_organ) (marginal loss).
    A uniform output over 14 classes has a cross-entropy of ln 14 = 2.639.

    Args:
        logits: (batch, classes, ...) of any float type; calculated in float32.
        target: classes, and what of them counts.
    """
    log_probabilities = functional.log_softmax(logits.float(), dim=1)
    sums = _gather(_local_sums(log_probabilities, target))
    dice = (2 * sums.intersection + SMOOTH) / (sums.predicted + sums.reference + SMOOTH)
    present = sums.annotated[1:] > 0
    mean_dice = dice[1:][present].mean() if present.any() else dice.new_zeros(())
    return sums.cross_entropy / sums.voxels.clamp(min=1) - mean_dice


@dataclass(frozen=True)
class _Sums:
    """Per class over the batch: intersection, predicted, reference, samples annotated; and two scalars."""

    intersection: Tensor
    predicted: Tensor
    reference: Tensor
    annotated: Tensor
    cross_entropy: Tensor
    voxels: Tensor


def _local_sums(log_probabilities: Tensor, target: Target) -> _Sums:
    batch, classes = log_probabilities.shape[:2]
    flat = log_probabilities.reshape(batch, classes, -1)
    label = target.label.reshape(batch, -1).long()
    valid = None if target.valid is None else target.valid.reshape(batch, -1).float()
    annotated = _all_annotated(target, flat).float()
    at_label = flat.gather(1, label[:, None])[:, 0]
    probabilities = flat.exp()
    weight = torch.ones_like(at_label) if valid is None else valid
    zeros = flat.new_zeros((batch, classes))
    intersection = zeros.scatter_add(1, label, at_label.exp() * weight)
    reference = zeros.scatter_add(1, label, weight)
    predicted = probabilities.sum(2) if valid is None else (probabilities * valid[:, None]).sum(2)
    return _Sums(
        intersection=(intersection * annotated).sum(0),
        predicted=(predicted * annotated).sum(0),
        reference=(reference * annotated).sum(0),
        annotated=annotated.sum(0),
        cross_entropy=-(_marginal(flat, at_label, label, target.annotated) * weight).sum(),
        voxels=weight.sum(),
    )


def _marginal(flat: Tensor, at_label: Tensor, label: Tensor, annotated: Tensor | None) -> Tensor:
    """(batch, voxels) log probability of the label; background is merged with the organs that are not annotated."""
    if annotated is None or bool(annotated.all()):
        return at_label
    rows = []
    for sample, trusted in enumerate(annotated):
        hidden = ~trusted
        hidden[0] = True
        if int(hidden.sum()) == 1:
            rows.append(at_label[sample])
            continue
        merged = flat[sample, hidden].logsumexp(0)
        rows.append(torch.where(label[sample] == 0, merged, at_label[sample]))
    return torch.stack(rows)


def _all_annotated(target: Target, flat: Tensor) -> Tensor:
    if target.annotated is not None:
        return target.annotated
    return torch.ones(flat.shape[:2], dtype=torch.bool, device=flat.device)


def _sample(field: Tensor, shape: Sequence[int]) -> Tensor:
    """Nearest neighbour by voxel centres: 8 -> 4 takes voxels 1, 3, 5, 7, as ``nearest-exact`` does."""
    for axis, length in enumerate(shape, start=1):
        centres = (torch.arange(length, device=field.device) + 0.5) * (field.shape[axis] / length)
        field = field.index_select(axis, centres.floor().long())
    return field


def _gather(sums: _Sums) -> _Sums:
    """The sums over all ranks; the same sums where there is one."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return sums
    parts = [
        sums.intersection, sums.predicted, sums.reference, sums.annotated, sums.cross_entropy[None], sums.voxels[None]
    ]  # fmt: skip
    total: Tensor = _SumOverRanks.apply(torch.cat(parts))  # type: ignore[no-untyped-call]
    lengths = [len(part) for part in parts]
    intersection, predicted, reference, annotated, cross_entropy, voxels = torch.split(total, lengths)
    return _Sums(intersection, predicted, reference, annotated, cross_entropy[0], voxels[0])


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks whose gradient is summed over ranks too.

    All ranks hold the same loss, so the incoming gradients g are equal and their sum is (ranks x g); that is what
    DistributedDataParallel, which *averages* parameter gradients, needs to arrive at the gradient of the whole batch.
    """

    @staticmethod
    def forward(_: object, values: Tensor) -> Tensor:
        """The sum over ranks."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        """The sum of the gradients over ranks."""
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
