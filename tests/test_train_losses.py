"""Losses against numbers worked out by hand (shown in the comments)."""

import math

import pytest
import torch
from torch import Tensor

from tools.train.cps import consistency_weight, cps_losses, supervised_losses
from tools.train.losses import Target, deep_supervision_loss, deep_supervision_weights, dice_and_cross_entropy

# Two voxels, three classes. Voxel 1 is background, voxel 2 is organ 1.
PROBABILITIES = torch.tensor([[[0.5, 0.25], [0.25, 0.5], [0.25, 0.25]]])
LABEL = torch.tensor([[0, 1]])


def logits(probabilities: Tensor) -> Tensor:
    return probabilities.log() + 3.7  # softmax does not care for the constant


def test_dice_and_cross_entropy() -> None:
    # cross-entropy ln 2 = 0.693147; Dice of organ 1: 2 * 0.5 / (0.75 + 1) = 0.571431 (with 1e-5 on both sides),
    # of organ 2, absent: 1e-5 / (0.5 + 1e-5) = 0.00002; mean 0.285725
    assert dice_and_cross_entropy(logits(PROBABILITIES), Target(LABEL)).item() == pytest.approx(0.407422, abs=2e-6)


def test_an_organ_that_is_not_annotated_counts_as_background_and_leaves_dice() -> None:
    # cross-entropy (-ln 0.75 - ln 0.5) / 2 = 0.490415; Dice of organ 1 alone 0.571431
    target = Target(LABEL, annotated=torch.tensor([[True, True, False]]))
    assert dice_and_cross_entropy(logits(PROBABILITIES), target).item() == pytest.approx(-0.081016, abs=2e-6)


def test_voxels_that_are_not_valid_do_not_count() -> None:
    # voxel 2 alone: ln 2; Dice of organ 1: 2 * 0.5 / (0.5 + 1) = 0.666669, of organ 2: 1e-5 / 0.25001 = 0.00004
    target = Target(LABEL, valid=torch.tensor([[False, True]]))
    assert dice_and_cross_entropy(logits(PROBABILITIES), target).item() == pytest.approx(0.359793, abs=2e-6)


def test_batch_dice_sums_over_the_batch_before_the_quotient() -> None:
    # the same sample twice: all sums double, so does the smoothing's weight not: 1.00001/1.75001 -> 2.00001/3.50001
    twice = Target(LABEL.repeat(2, 1))
    found = dice_and_cross_entropy(logits(PROBABILITIES).repeat(2, 1, 1), twice).item()
    expected = math.log(2) - 0.5 * (2.00001 / 3.50001 + 0.00001 / 1.00001)
    assert found == pytest.approx(expected, abs=1e-6)


def test_partial_annotation_is_per_sample() -> None:
    # sample 1 knows organ 2, sample 2 does not: Dice of organ 2 comes from sample 1 alone
    annotated = torch.tensor([[True, True, True], [True, True, False]])
    found = dice_and_cross_entropy(logits(PROBABILITIES).repeat(2, 1, 1), Target(LABEL.repeat(2, 1), annotated)).item()
    cross_entropy = (3 * math.log(2) - math.log(0.75)) / 4
    expected = cross_entropy - 0.5 * (2.00001 / 3.50001 + 0.00001 / 0.50001)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [(5, [8 / 15, 4 / 15, 2 / 15, 1 / 15, 0]), (4, [4 / 7, 2 / 7, 1 / 7, 0]), (2, [1, 0]), (1, [1])],
)
def test_deep_supervision_weights(scales: int, expected: list[float]) -> None:
    assert deep_supervision_weights(scales) == pytest.approx(expected)


def test_deep_supervision_samples_the_label_at_voxel_centres() -> None:
    target = Target(torch.arange(8)[None])
    assert target.at_scale((4,)).label.tolist() == [[1, 3, 5, 7]]
    assert target.at_scale((2,)).label.tolist() == [[2, 6]]
    fine, coarse = torch.randn(1, 3, 4), torch.randn(1, 3, 2)
    targets = [Target(torch.tensor([[0, 1, 2, 0]])), Target(torch.tensor([[1, 0]]))]
    found = deep_supervision_loss([fine, coarse, coarse], [*targets, targets[1]])
    expected = 2 / 3 * dice_and_cross_entropy(fine, targets[0]) + 1 / 3 * dice_and_cross_entropy(coarse, targets[1])
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def one_voxel(*foreground: float) -> list[Tensor]:
    """Logits of samples of one voxel and two classes, one scale."""
    p = torch.tensor(foreground)
    return [logits(torch.stack([1 - p, p], dim=1))[..., None].requires_grad_()]


def test_equations_1_to_3() -> None:
    # labelled x with Y = 1: T1 = 0.75, T2 = 0.25; unlabelled u: T1 = 0.1, T2 = 0.4; l(p, 1) = -ln p - 2p / (p + 1),
    # l(p, 0) = -ln(1 - p) - 1e-5 / (p + 1e-5)
    # (1) L_sup = (0.287682 - 0.857144) + (1.386294 - 0.400005) = 0.416827
    # (2) labelled, Y1 = 1, Y2 = 0: l(T1, 0) + l(T2, 1) = (1.386294 - 0.000013) + (1.386294 - 0.400005) = 2.372570
    #     unlabelled, Y1 = Y2 = 0: (0.105361 - 0.000100) + (0.510826 - 0.000025) = 0.616062
    # (3) L = 0.416827 + 0.5 * 2.988632 = 1.911143
    first, second = one_voxel(0.75, 0.1), one_voxel(0.25, 0.4)
    found = cps_losses((first, second), 1, Target(torch.tensor([[1]])), weight=0.5)
    assert found.supervised.item() == pytest.approx(0.416827, abs=3e-6)
    assert found.cross.item() == pytest.approx(2.988632, abs=3e-6)
    assert found.total.item() == pytest.approx(1.911143, abs=4e-6)
    assert found.agreement is not None
    assert found.agreement.item() == 0.5


def test_each_scale_has_its_own_pseudo_labels() -> None:
    # three scales weigh 2/3, 1/3, 0. Scale 1 as x above: 2.372570. Scale 2: T1 = 0.2, T2 = 0.9, so Y1 = 0, Y2 = 1:
    # l(T1, 1) + l(T2, 0) = (1.609438 - 0.333339) + (2.302585 - 0.000011) = 3.578673
    first, second = (
        one_voxel(0.75) + one_voxel(0.2) + one_voxel(0.5),
        one_voxel(0.25) + one_voxel(0.9) + one_voxel(0.5),
    )
    found = cps_losses((first, second), 1, Target(torch.tensor([[1]])), weight=0.5)
    assert found.cross.item() == pytest.approx(2 / 3 * 2.372570 + 1 / 3 * 3.578673, abs=4e-6)


def test_pseudo_labels_carry_no_gradient() -> None:
    first, second = one_voxel(0.75, 0.1), one_voxel(0.25, 0.4)
    found = cps_losses((first, second), 1, Target(torch.tensor([[1]])), weight=0.5)
    found.total.backward()
    alone = one_voxel(0.75, 0.1)
    labels = [Target(torch.tensor([[1]])), Target(torch.tensor([[0]])), Target(torch.tensor([[0]]))]
    parts = [alone[0][:1], alone[0][:1], alone[0][1:]]
    weights = (1.0, 0.5, 0.5)
    own = sum(w * dice_and_cross_entropy(p, t) for w, p, t in zip(weights, parts, labels, strict=True))
    assert isinstance(own, Tensor)
    own.backward()
    torch.testing.assert_close(first[0].grad, alone[0].grad)


def test_confidence_filter_leaves_uncertain_pseudo_labels_out() -> None:
    first, second = one_voxel(0.75, 0.1), one_voxel(0.25, 0.4)
    found = cps_losses((first, second), 1, Target(torch.tensor([[1]])), 0.5, confidence_threshold=0.7)
    # T2(u) = 0.6 background is not certain enough for T1; all others stay. An empty set leaves -Dice of nothing = -1
    assert found.cross.item() == pytest.approx(2.372570 + (0 - 1) + 0.510801, abs=1e-5)


def test_the_baseline_is_the_supervised_loss_of_one_network() -> None:
    found = supervised_losses(one_voxel(0.75), Target(torch.tensor([[1]])))
    assert found.total.item() == pytest.approx(0.287682 - 0.857144, abs=3e-6)
    assert found.cross.item() == 0
    assert found.agreement is None


@pytest.mark.parametrize(
    ("epoch", "ramp", "expected"), [(0, 100, 0), (25, 100, 0.125), (100, 100, 0.5), (700, 100, 0.5), (0, 0, 0.5)]
)
def test_ramp(epoch: float, ramp: float, expected: float) -> None:
    assert consistency_weight(epoch, ramp) == pytest.approx(expected)
