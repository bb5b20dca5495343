"""The U-Net against the paper's own numbers and against the bootstrap network's ONNX."""

import pytest

torch = pytest.importorskip("torch")

from app.network import UNet  # noqa: E402
from app.plan import NetworkPlan  # noqa: E402
from tools.train.distributed import Heads  # noqa: E402

PAPER_3D = NetworkPlan(
    features_per_stage=(32, 64, 128, 256, 320, 320),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 6,
)
PAPER_2D = NetworkPlan(
    features_per_stage=(32, 64, 128, 256, 480, 480, 480, 480),
    strides=((1, 1), *((2, 2),) * 7),
    kernel_sizes=((3, 3),) * 8,
)


@pytest.mark.parametrize(("plan", "parameters"), [(PAPER_3D, 30_794_784), (PAPER_2D, 41_285_472)])
def test_parameters_are_the_papers(plan: NetworkPlan, parameters: int) -> None:
    assert sum(p.numel() for p in UNet(plan, 14).parameters()) == parameters


def test_bottom_of_the_paper_network_is_7_by_5_by_4() -> None:
    network = UNet(PAPER_3D, 14).to("meta")
    image = torch.empty(1, 1, 112, 160, 128, device="meta")
    for stage in network.enc:
        image = stage(image)
    assert tuple(image.shape) == (1, 320, 7, 5, 4)
    heads = network.deep_supervision(torch.empty(1, 1, 112, 160, 128, device="meta"))
    assert [tuple(head.shape[2:]) for head in heads] == [
        (112, 160, 128), (56, 80, 64), (28, 40, 32), (14, 20, 16), (7, 10, 8),
    ]  # fmt: skip


def test_residual_adds_the_first_block_of_a_stage() -> None:
    torch.manual_seed(0)
    plan = NetworkPlan(features_per_stage=(4, 8), strides=((1, 1), (2, 2)), kernel_sizes=((3, 3), (3, 3)))
    plain = UNet(plan, 3)
    residual = UNet(NetworkPlan(**{**plan.__dict__, "residual": True}), 3)
    residual.load_state_dict(plain.state_dict())
    image = torch.randn(1, 1, 8, 8)
    stage = plain.enc[0]
    assert isinstance(stage, torch.nn.ModuleList)
    first, second = stage
    torch.testing.assert_close(residual.enc[0](image), second(first(image)) + first(image))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # thop imports distutils
@pytest.mark.parametrize(
    ("plan", "patch", "operations"),
    [(PAPER_3D, (112, 160, 128), 585_429_483_520), (PAPER_2D, (512, 512), 65_549_746_176)],
)
def test_operations_are_the_papers(plan: NetworkPlan, patch: tuple[int, ...], operations: int) -> None:
    """585.43 G and 65.55 G, as ``thop`` counts them with all deep-supervision heads."""
    import thop  # type: ignore[import-untyped]

    with torch.inference_mode():
        found, _ = thop.profile(Heads(UNet(plan, 14)), inputs=(torch.zeros(1, 1, *patch),), verbose=False)
    assert found == operations
