"""Do torch, ONNX Runtime and OpenVINO say the same about the same patch?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load

from app.backends import Backend, create_predictor
from app.backends.shapes import network_shapes
from app.bundle import SAFETENSORS_FILE, Bundle
from app.errors import BundleError
from app.plan import Plan
from app.preprocessing import preprocess
from app.volume import Float32Array, Volume
from app.volume_io import read_volume
from tools.convert.architectures import restore
from tools.convert.bundles import stored_architecture
from tools.phantom import make_phantom

# Norms sum a million voxels in float32, in another order in each runtime. Measured on the default bundle: random
# patches differ by up to 1e-4 of the largest logit, a real one by 1.3e-3 in a few voxels; 3 of 100,000 change class.
LARGEST_RELATIVE_DIFFERENCE = 5e-3
SMALLEST_AGREEMENT = 0.9995
_RUNTIMES: tuple[Backend, ...] = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class Comparison:
    """One runtime against torch on one patch, all in fp32.

    Attributes:
        relative_difference: largest |difference| of logits over the largest |logit|.
        agreement: share of voxels with the same most likely class.
    """

    patch: str
    backend: str
    relative_difference: float
    agreement: float

    @property
    def passed(self) -> bool:
        """Whether both numbers are within their limits."""
        return self.relative_difference <= LARGEST_RELATIVE_DIFFERENCE and self.agreement >= SMALLEST_AGREEMENT


def compare_runtimes(bundle: Bundle, patches: dict[str, Float32Array]) -> list[Comparison]:
    """Every runtime against torch on every patch.

    Raises:
        DeviceError: one of the three is not installed.
        BundleError: the bundle's files do not fit each other.
    """
    reference = reference_logits(bundle, patches)
    results = []
    for backend in _RUNTIMES:
        runtime, _ = create_predictor(bundle, backend, "cpu", "fp32")
        for name, patch in patches.items():
            expected, found = reference[name], runtime.predict(patch)
            difference = float(np.abs(found - expected).max() / np.abs(expected).max())
            agreement = float(np.mean(np.argmax(found, axis=0) == np.argmax(expected, axis=0)))
            results.append(Comparison(name, backend, difference, agreement))
    return results


def reference_logits(bundle: Bundle, patches: dict[str, Float32Array]) -> dict[str, Float32Array]:
    """float32 (classes, z, y, x) logits by PyTorch, of each patch."""
    if bundle.plan.network.described_by == "plan":
        predictor, _ = create_predictor(bundle, "torch", "cpu", "fp32")
        return {name: predictor.predict(patch).copy() for name, patch in patches.items()}
    try:
        network = restore(stored_architecture(bundle), bundle.plan.classes, load(bundle.read(SAFETENSORS_FILE)))
    except ValueError as error:
        raise BundleError(f"{bundle.folder / SAFETENSORS_FILE}: {error}; import the model anew") from error
    shape = network_shapes(bundle.plan)[0]
    found = {}
    with torch.inference_mode():
        for name, patch in patches.items():
            logits: Float32Array = network(torch.from_numpy(patch.reshape(shape)))[0].numpy()
            found[name] = logits.reshape(-1, *patch.shape)
    return found


def reference_name(bundle: Bundle) -> str:
    """What the runtimes are compared with, for the report."""
    if bundle.plan.network.described_by == "plan":
        return "PyTorch on the network of app/network.py and network.safetensors"
    if '"Generic_UNet"' in stored_architecture(bundle):
        return "PyTorch on nnU-Net v1's network (tools/convert/architectures.py) and network.safetensors"
    return "PyTorch on the network of nnU-Net v2's library (dynamic_network_architectures) and network.safetensors"


def random_patches(plan: Plan, count: int) -> dict[str, Float32Array]:
    """Noise over the whole range of normalised values, of different smoothness."""
    shape = plan.sliding_window.patch_size
    low, high = (plan.intensity.normalised(hu) for hu in plan.intensity.clip_hu)
    patches = {}
    for seed in range(count):
        noise = np.random.default_rng(seed).normal(size=shape)
        trend = np.linspace(low, high, shape[2]) * seed / max(1, count - 1)
        patches[f"random {seed}"] = np.clip(noise + trend, low, high).astype(np.float32)
    return patches


def real_patch(plan: Plan, scan: Path) -> Float32Array:
    """The middle of a preprocessed scan, padded if it is smaller than the patch."""
    return _middle(plan, read_volume(scan))


def phantom_patch(plan: Plan) -> Float32Array:
    """The middle of a synthetic scan, which has a patient's values and shapes at no download's cost."""
    return _middle(plan, make_phantom(seed=0).volume)


def _middle(plan: Plan, volume: Volume) -> Float32Array:
    image, _ = preprocess(volume, plan, plan.spacing.enforce)
    pad = plan.intensity.normalised(plan.sliding_window.pad_hu)
    patch = np.full(plan.sliding_window.patch_size, pad, dtype=np.float32)
    from_image, into_patch = [], []
    for length, side in zip(image.shape, patch.shape, strict=True):
        take = min(length, side)
        from_image.append(slice((length - take) // 2, (length - take) // 2 + take))
        into_patch.append(slice((side - take) // 2, (side - take) // 2 + take))
    patch[tuple(into_patch)] = image[tuple(from_image)]
    return patch
