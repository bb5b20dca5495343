"""Do torch, ONNX Runtime and OpenVINO say the same about the same patch?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.backends import Backend, create_predictor
from app.bundle import Bundle
from app.plan import Plan
from app.preprocessing import preprocess
from app.volume import Float32Array
from app.volume_io import read_volume

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
    torch, _ = create_predictor(bundle, "torch", "cpu", "fp32")
    reference = {name: torch.predict(patch).copy() for name, patch in patches.items()}
    results = []
    for backend in _RUNTIMES:
        runtime, _ = create_predictor(bundle, backend, "cpu", "fp32")
        for name, patch in patches.items():
            expected, found = reference[name], runtime.predict(patch)
            difference = float(np.abs(found - expected).max() / np.abs(expected).max())
            agreement = float(np.mean(np.argmax(found, axis=0) == np.argmax(expected, axis=0)))
            results.append(Comparison(name, backend, difference, agreement))
    return results


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
    image, _ = preprocess(read_volume(scan), plan, plan.spacing.enforce)
    pad = plan.intensity.normalised(plan.sliding_window.pad_hu)
    patch = np.full(plan.sliding_window.patch_size, pad, dtype=np.float32)
    from_image, into_patch = [], []
    for length, side in zip(image.shape, patch.shape, strict=True):
        take = min(length, side)
        from_image.append(slice((length - take) // 2, (length - take) // 2 + take))
        into_patch.append(slice((side - take) // 2, (side - take) // 2 + take))
    patch[tuple(into_patch)] = image[tuple(from_image)]
    return patch
