"""What is compared: one row is a network, a peer's way of predicting, a scan and a backend of ours."""

from dataclasses import dataclass, replace
from typing import Literal

from app.plan import NetworkPlan, Plan
from tools.parity.peer_models import Peer, PeerModel, Weights

Backend = Literal["torch", "openvino"]
NetworkName = Literal["default", "random-2d", "random-3d", "random-residual", "random-full-size"]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        group: what ``--rows`` names.
        peer: nnU-Net v1 or v2.
        network: a key of ``NETWORKS``.
        scan: a name of ``scans``.
        backend: what runs our network.
        mode: v1's; v2 has ``normal`` only.
        step: tile step size.
        mirror: averaged over all mirrored passes.
    """

    group: str
    peer: Peer
    network: NetworkName
    scan: str
    backend: Backend
    mode: Literal["fastest", "normal"] = "normal"
    step: float = 0.5
    mirror: bool = False

    @property
    def name(self) -> str:
        """Unique among the rows."""
        return f"{self.group}-{self.backend}-{self.peer_name}"

    @property
    def peer_name(self) -> str:
        """Unique among the peer's runs; both backends of ours are compared with the same one."""
        mirror = "-mirror" if self.mirror else ""
        return f"{self.peer}-{self.network}-{self.mode}-{self.step:g}{mirror}-{self.scan}"

    @property
    def bundle_name(self) -> str:
        """Unique among the imported bundles."""
        return f"{self.peer}-{self.network}-{self.step:g}"

    @property
    def smallest_agreement(self) -> float:
        """Limit: the share of voxels that must be equal."""
        strict = self.peer == "v1" and self.mode == "fastest" and self.backend == "torch"
        return 0.9999 if strict else 0.999

    @property
    def seeded(self) -> bool:
        """The network was not trained: its labels are noise, and the row shows that shapes and steps agree."""
        return self.network != "default"


SMALLEST_DSC = 0.998
SMALLEST_VOLUME_ML = 1.0
FEWEST_ORGANS = 6


def all_rows(full_size: bool = False) -> list[Row]:
    """The rows of the table, in its order."""
    rows = []
    for scan in ("ct_001", "ct_003", "ct_006", "ct_002", "ct_006_slab", "ct_009", "ct_003_turned", "ct_002_framed"):
        fastest = Row("v1-fastest", "v1", "default", scan, "torch", mode="fastest", step=0.7)
        rows += [fastest, replace(fastest, backend="openvino")]
    for scan in ("ct_001", "ct_003", "ct_006", "ct_009"):
        rows.append(Row("v1-normal", "v1", "default", scan, "openvino"))
    rows.append(Row("v1-normal", "v1", "default", "ct_006", "torch"))
    rows += [
        Row("v1-mirror", "v1", "default", scan, "openvino", mode="fastest", step=0.7, mirror=True)
        for scan in ("ct_003", "ct_006")
    ]
    for scan in ("ct_001", "ct_003", "ct_006", "ct_006_slab", "ct_009", "ct_003_turned", "ct_002_framed"):
        rows.append(Row("v2", "v2", "default", scan, "openvino"))
    rows.append(Row("v2", "v2", "default", "ct_006", "torch"))
    rows += [Row("v2-mirror", "v2", "default", scan, "openvino", mirror=True) for scan in ("ct_003", "ct_006")]
    rows += [
        Row("shapes", "v1", "random-2d", "ct_002_small", "torch"),
        Row("shapes", "v1", "random-3d", "ct_002_small", "torch"),
        Row("shapes", "v2", "random-2d", "ct_002_small", "openvino"),
        Row("shapes", "v2", "random-3d", "ct_002_small", "openvino"),
        Row("shapes", "v2", "random-residual", "ct_002_small", "openvino"),
    ]
    if full_size:
        rows.append(Row("full-size", "v1", "random-full-size", "ct_002_small", "openvino", mode="fastest", step=0.7))
    return rows


def select_rows(rows: list[Row], groups: list[str], scans: list[str]) -> list[Row]:
    """The rows of these groups and scans; an empty list means all.

    Raises:
        ValueError: nothing has one of the names.
    """
    for given, known, what in (
        (groups, {row.group for row in rows}, "rows"),
        (scans, {row.scan for row in rows}, "scans"),
    ):
        if unknown := sorted(set(given) - known):
            raise ValueError(f"--{what} {','.join(unknown)}: not there; expected some of {', '.join(sorted(known))}")
    return [row for row in rows if (not groups or row.group in groups) and (not scans or row.scan in scans)]


def peer_model(peer: Peer, network: NetworkName, plan: Plan, weights: Weights) -> PeerModel:
    """The network that both sides get.

    Args:
        peer: for whom.
        network: which.
        plan: of the trained network: random ones take labels, spacing and intensities from it.
        weights: of the trained network.
    """
    if network == "default":
        return PeerModel(peer, plan, weights)
    architecture = "ResidualEncoderUNet" if network == "random-residual" else "PlainConvUNet"
    return PeerModel(peer, _RANDOM[network](plan), None, architecture, seed=5)  # type: ignore[arg-type]


def _with_network(plan: Plan, features: list[int], strides: list[tuple[int, ...]], patch: tuple[int, int, int]) -> Plan:
    kernels = tuple((3,) * len(strides[0]) for _ in features)
    network = NetworkPlan(tuple(features), tuple(strides), kernels)
    return replace(plan, network=network, sliding_window=replace(plan.sliding_window, patch_size=patch))


def _flat(plan: Plan) -> Plan:
    return _with_network(plan, [16, 32, 64, 128], [(1, 1), (2, 2), (2, 2), (2, 2)], (1, 64, 96))


def _solid(plan: Plan) -> Plan:
    strides: list[tuple[int, ...]] = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    return _with_network(plan, [8, 16, 32, 64], strides, (20, 64, 48))


def _full_size(plan: Plan) -> Plan:
    strides: list[tuple[int, ...]] = [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    return _with_network(plan, [32, 64, 128, 256, 320, 320], strides, (112, 160, 128))


_RANDOM = {"random-2d": _flat, "random-3d": _solid, "random-residual": _solid, "random-full-size": _full_size}
