"""The networks of the bench: a bundle for this app and a model folder for each peer, with the same weights."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from app.bundle import SAFETENSORS_FILE, Bundle, load_bundle
from app.errors import AppError, BundleError
from app.plan import Plan
from app.volume import Shape, Vector
from tools.bench.rows import NetworkName
from tools.parity.peer_models import Peer, PeerModel, write_spec
from tools.train.fingerprint import Fingerprint, Intensities, ScanFingerprint
from tools.train.presets import make_plan

PAPER_PRESET = "paper-3d"
_SEED = 5
_MEDIAN_SHAPE: Shape = (200, 200, 200)  # decides nothing in a preset whose network is given


def bench_bundle(network: NetworkName, default: Path, bundles: Path) -> Bundle:
    """The bundle of a network; the paper-size one is written to ``bundles`` if it is not there.

    Raises:
        BundleError: the default bundle, or what is in ``bundles``, is incomplete or altered.
    """
    if network == "default":
        return load_bundle(default)
    folder = bundles / network
    plan = paper_plan(load_bundle(default).plan)
    if folder.is_dir():
        try:
            found = load_bundle(folder)
            if found.plan == plan:
                return found
        except BundleError:
            pass  # written by an interrupted run or another version: it is written anew
    from tools.convert.bundles import write_bundle  # imports torch, which a run with the default network does not need

    write_bundle(folder, plan, random_weights(plan), "Seeded random weights, for `make bench` only.\n")
    return load_bundle(folder)


def paper_plan(default: Plan) -> Plan:
    """The preset ``paper-3d`` with the labels, target spacing and intensities of the default bundle.

    Preprocessing is the preset's (cubic splines, probabilities averaged), which is what nnU-Net v1 does.
    """
    low, high = default.intensity.clip_hu
    intensities = Intensities(1, default.intensity.subtract_hu, default.intensity.divide_hu, low, high)
    spacing: Vector = default.spacing.target_zyx_mm
    scan = ScanFingerprint("bench", False, _MEDIAN_SHAPE, spacing, intensities)
    return make_plan(PAPER_PRESET, default.labels, Fingerprint((scan,), intensities)).app


def random_weights(plan: Plan) -> dict[str, npt.NDArray[np.float32]]:
    """Seeded weights of a plan's network that float16 holds exactly, so that bundle and peers have the same.

    Convolutions get He's normal noise, norms 1 and 0 with a little of it.
    """
    import torch

    from app.network import build_network

    with torch.device("meta"):  # names and shapes are all that is wanted
        shapes = {
            name: tuple(value.shape) for name, value in build_network(plan.network, plan.classes).state_dict().items()
        }
    generator = np.random.default_rng(_SEED)
    weights = {}
    for name, shape in shapes.items():
        noise = generator.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            value = noise * np.float32((2.0 / np.prod(shape[1:])) ** 0.5)
        else:
            value = np.float32(0.1) * noise + np.float32(1.0 if name.endswith("1.weight") else 0.0)
        weights[name] = value.astype(np.float16).astype(np.float32)
    return weights


def write_peer_spec(peer: Peer, bundle: Bundle, folder: Path) -> Path:
    """Writes what the peer's runner makes a model folder of; returns the path of ``spec.json``.

    Raises:
        AppError: the peers have no such network.
    """
    network = bundle.plan.network
    if network.siblings != 1 or network.residual or network.described_by != "plan":
        raise AppError(f"{bundle.folder}: not a plain U-Net; nnU-Net cannot run it. Give another --bundle")
    weights: dict[str, Any] = load(bundle.read(SAFETENSORS_FILE))
    return write_spec(PeerModel(peer, bundle.plan, weights), folder)
