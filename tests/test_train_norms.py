"""Instance norm for training, against PyTorch's own in double precision."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.network import UNet
from tools.train.distributed import Heads
from tools.train.norms import InstanceNorm, statistics, use_fast_norms
from tools.train.presets import make_plan

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def patch(shape: tuple[int, ...], kind: torch.dtype) -> Tensor:
    """Mostly air of one value, as at the edge of the body: what long sums in float32 get wrong."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    values[..., shape[-1] // 4 :] = -2.2727
    return values.to(kind).to(memory_format=LAST[len(shape)])


@pytest.mark.parametrize("shape", [(1, 16, 64, 96, 96), (1, 3, 5, 7, 9), (1, 8, 128, 128), (1, 4, 2, 1, 1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_statistics_are_exact(shape: tuple[int, ...], kind: torch.dtype) -> None:
    """Batch norm's own, in one sum a channel, miss the variance of the first of these in bf16 by 4e-3."""
    image = patch(shape, kind)
    mean, variance = statistics(image)
    exact = image.double().movedim(1, 0).flatten(1)
    np.testing.assert_allclose(mean, exact.mean(1), rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(variance, exact.var(1, correction=0), rtol=3e-6)
    assert mean.dtype == variance.dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 6, 16, 24, 24), (1, 6, 48, 48), (2, 6, 16, 24, 24)])
@pytest.mark.parametrize("layout", ["last", "first"])
def test_values_and_gradients_are_those_of_pytorch(shape: tuple[int, ...], layout: str) -> None:
    """Batches of one and of two, channels last and first."""
    kind: Callable[..., nn.InstanceNorm2d | nn.InstanceNorm3d] = (
        nn.InstanceNorm3d if len(shape) == 5 else nn.InstanceNorm2d
    )
    image = patch(shape, torch.float32)
    image = image if layout == "last" else image.contiguous()
    towards = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = []
    for number in (torch.float64, torch.float32):
        norm = kind(shape[1], eps=1e-5, affine=True)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, shape[1]))
            norm.bias.copy_(torch.linspace(-1, 1, shape[1]))
        tried: nn.Module = norm.double() if number is torch.float64 else InstanceNorm(norm)
        values = image.to(number).requires_grad_()
        output = tried(values)
        (output * towards).sum().backward()
        found.append([output.detach(), values.grad, norm.weight.grad, norm.bias.grad])
    for expected, value in zip(*found, strict=True):
        scale = float(expected.abs().max())
        assert float((value.double() - expected).abs().max()) < 2e-5 * scale


def test_heads_of_a_batch_are_those_of_its_samples() -> None:
    """The network with fast norms, channels last, batch of two: as the plain one, and the same parameters."""
    plan = make_plan("phantom-3d").app
    torch.manual_seed(0)
    plain = UNet(plan.network, plan.classes)
    fast = UNet(plan.network, plan.classes)
    fast.load_state_dict(plain.state_dict())
    use_fast_norms(fast)
    fast.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert not any(isinstance(module, nn.InstanceNorm3d) for module in fast.modules())
    image = torch.randn((2, 1, 16, 32, 32), generator=torch.Generator().manual_seed(2))
    for expected, found in zip(Heads(plain)(image), Heads(fast)(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert len(found) == 2
