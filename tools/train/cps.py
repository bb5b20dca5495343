"""Cross-Pseudo Supervision: the losses of one iteration (equations 1 to 3 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.train.losses import Target, deep_supervision_loss


@dataclass(frozen=True)
class CpsLosses:
    """The losses of an iteration.

    Attributes:
        total: L = L_sup + lambda L_cps (equation 3), to be differentiated.
        supervised: L_sup (equation 1), summed over the networks.
        cross: L_cps = L_cps^labelled + L_cps^unlabelled (equation 2); 0 for a single network.
        agreement: share of all voxels in which the two networks' most likely class agrees; None for one.
    """

    total: Tensor
    supervised: Tensor
    cross: Tensor
    agreement: Tensor | None


def consistency_weight(epoch: float, ramp_up_epochs: float, maximum: float = 0.5) -> float:
    """lambda: linear from 0 to ``maximum`` at epoch ``ramp_up_epochs``, then constant. Epoch 25 of 100: 0.125."""
    if ramp_up_epochs <= 0:
        return maximum
    return maximum * min(1.0, epoch / ramp_up_epochs)


def supervised_losses(heads: Sequence[Tensor], target: Target) -> CpsLosses:
    """The baseline: one network, labelled data only."""
    loss = deep_supervision_loss(heads, _at_scales(target, heads))
    return CpsLosses(total=loss, supervised=loss.detach(), cross=loss.new_zeros(()), agreement=None)


def cps_losses(
    heads: tuple[Sequence[Tensor], Sequence[Tensor]],
    labelled: int,
    target: Target,
    weight: float,
    confidence_threshold: float = 0.0,
) -> CpsLosses:
    """The losses of two sibling networks on one batch: first the labelled samples, then the unlabelled ones.

    The pseudo label of a network is the arg max of its sibling, at each deep-supervision scale, without gradient.
    Dice is a batch Dice, so labelled and unlabelled samples are summed up apart, as in equation 2.

    Args:
        heads: of network 1 and 2, full resolution first; each (batch, classes, ...).
        labelled: how many samples at the start of the batch are labelled.
        target: of those samples.
        weight: lambda.
        confidence_threshold: pseudo labels whose probability is lower are left out; 0 keeps all (the paper).
    """
    first, second = heads
    supervised = _supervise(first, labelled, target) + _supervise(second, labelled, target)
    to_first = [_pseudo_target(logits, confidence_threshold) for logits in second]
    to_second = [_pseudo_target(logits, confidence_threshold) for logits in first]
    parts = [slice(0, labelled)]
    if first[0].shape[0] > labelled:
        parts.append(slice(labelled, None))
    cross = first[0].new_zeros((), dtype=torch.float32)
    for part in parts:
        cross = cross + _cross(first, to_first, part) + _cross(second, to_second, part)
    agreement = (to_first[0].label == to_second[0].label).float().mean()
    return CpsLosses(supervised + weight * cross, supervised.detach(), cross.detach(), agreement)


def _supervise(heads: Sequence[Tensor], labelled: int, target: Target) -> Tensor:
    own = [logits[:labelled] for logits in heads]
    return deep_supervision_loss(own, _at_scales(target, own))


def _cross(heads: Sequence[Tensor], pseudo: Sequence[Target], part: slice) -> Tensor:
    targets = [Target(p.label[part], None, None if p.valid is None else p.valid[part]) for p in pseudo]
    return deep_supervision_loss([logits[part] for logits in heads], targets)


@torch.no_grad()
def _pseudo_target(logits: Tensor, confidence_threshold: float) -> Target:
    best, label = logits.float().max(dim=1)
    if confidence_threshold <= 0:
        return Target(label)
    confidence = torch.exp(best - logits.float().logsumexp(dim=1))
    return Target(label, valid=confidence >= confidence_threshold)


def _at_scales(target: Target, heads: Sequence[Tensor]) -> list[Target]:
    return [target.at_scale(logits.shape[2:]) for logits in heads]
