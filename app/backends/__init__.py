"""One function that turns a bundle into a running network: which backend, device and precision it becomes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Literal

from app.backends.cuda_provider import has_cuda_provider
from app.backends.processor import is_fast_in_bf16
from app.bundle import ONNX_FILE, Bundle
from app.errors import DeviceError
from app.memory_terms import NetworkMemory
from app.sliding_window import Predictor
from app.sources import NetworkSource

logger = logging.getLogger(__name__)

Backend = Literal["auto", "openvino", "onnxruntime", "torch"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_MODULES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}
_CPU_ORDER = ("openvino", "onnxruntime", "torch")  # fastest first
_CUDA_ORDER = ("onnxruntime", "torch")


@dataclass(frozen=True)
class _Footprint:
    """Memory of a backend: libraries, copies of the network's file, and full-resolution maps of the first stage."""

    libraries_mib: int
    file_copies: float
    maps: float


# Measured with the default bundle and with one of paper size (64 x 160 x 160, 32 to 320 features) on CPUs, fp32.
_FOOTPRINTS = {
    "openvino": _Footprint(libraries_mib=80, file_copies=4, maps=3),
    "onnxruntime": _Footprint(libraries_mib=55, file_copies=1.83, maps=8),
    "torch": _Footprint(libraries_mib=220, file_copies=1, maps=7),
}
# OpenVINO in three dimensions and float32, where upsampling is composed and kernels are inputs (which OpenVINO holds
# twice until the first window). Two maps and a third are alive at a time, for which it does not always find the best
# places: 2.0 to 3.0 maps in six networks of 16 to 48 features, where windows are 64 x 96 x 96 to 112 x 160 x 128.
_OPENVINO_3D = _Footprint(libraries_mib=85, file_copies=2.17, maps=2.8)


def create_predictor(
    bundle: Bundle, backend: Backend, device: Device, precision: Precision, threads: int | None = None
) -> tuple[Predictor, tuple[str, ...]]:
    """(a predictor, warnings about what had to be chosen).

    ``device='auto'`` takes CUDA where an NVIDIA device is there and a backend can use it, else the CPU. It is a warning
    if a device cannot be used, or if ONNX Runtime was installed for one and there is none. ``threads`` are those of a
    CPU; None leaves them to the backend.

    Raises:
        DeviceError: what was asked for cannot be had on this machine.
        BundleError: the network's file is missing, altered or does not fit the plan.
    """
    if device != "auto":
        return _create_on(bundle, backend, device, precision, threads)
    if backend == "openvino" or not (nvidia_device_present() or has_cuda_provider()):
        return _create_on(bundle, backend, "cpu", precision, threads)
    if nvidia_device_present():
        try:
            return _create_on(bundle, backend, "cuda", precision, threads)
        except DeviceError as error:
            warning = f"there is an NVIDIA device, but CUDA cannot be used ({error}); running on the CPU"
    else:
        warning = "no NVIDIA device is visible, is `--gpus` missing in `docker run`? Running on the CPU"
    logger.warning(warning)
    predictor, warnings = _create_on(bundle, backend, "cpu", precision, threads)
    return predictor, (warning, *warnings)


def network_source(
    bundle: Bundle, backend: Backend, device: Device, precision: Precision, threads: int | None = None
) -> NetworkSource:
    """How the bundle's network will be loaded, see ``create_predictor``, and what it is expected to take."""
    load = partial(create_predictor, bundle, backend, device, precision, threads)
    return NetworkSource(bundle.plan, load, expected_memory(bundle, backend, device, precision))


def expected_memory(bundle: Bundle, backend: Backend, device: Device, precision: Precision) -> NetworkMemory:
    """What the network will add to this process, estimated before it is loaded.

    A U-Net's peak is at its full resolution: 80 x 128 x 192 voxels of 16 features in float32 are 120 MiB; OpenVINO
    holds 2.8 such maps and 14 logits, 441 MiB. In bf16 the maps take half and there are three, the logits take as much:
    285 MiB. Of many classes, the logits are held twice beside one map.
    """
    name = _expected_backend(backend, device)
    footprint, plan = _FOOTPRINTS[name], bundle.plan
    file = bundle.folder / ONNX_FILE
    file_bytes = file.stat().st_size if file.exists() else 0  # loading will say that it is missing
    half = precision in ("bf16", "fp16") or (precision == "auto" and name == "openvino" and is_fast_in_bf16())
    voxels = prod(plan.sliding_window.patch_size)
    map_bytes = plan.network.features_per_stage[0] * voxels * (2 if half else 4)
    logits_bytes = 4 * plan.classes * voxels
    if name == "openvino" and not half and plan.network.dimensions == 3:
        footprint = _OPENVINO_3D
    return NetworkMemory(
        libraries_bytes=footprint.libraries_mib * 2**20,
        weights_bytes=int(footprint.file_copies * file_bytes),
        running_bytes=max(int(footprint.maps * map_bytes) + logits_bytes, map_bytes + 2 * logits_bytes),
    )


def _expected_backend(backend: Backend, device: Device) -> str:
    """What ``create_predictor`` will come to: a driver is not asked, but what is installed is looked at."""
    if device == "cuda" or (device == "auto" and nvidia_device_present()):
        able = {"onnxruntime": has_cuda_provider(), "torch": _is_installed("torch")}
        for name in _CUDA_ORDER:
            if backend in ("auto", name) and able[name]:
                return name
    names = _CPU_ORDER if backend == "auto" else (backend,)
    return next(filter(_is_installed, names), names[0])


def _is_installed(name: str) -> bool:
    return find_spec(_MODULES[name]) is not None


def nvidia_device_present() -> bool:
    """Whether the kernel shows an NVIDIA device to this process (or container); costs no driver call."""
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))


def _create_on(
    bundle: Bundle, backend: Backend, device: Literal["cpu", "cuda"], precision: Precision, threads: int | None
) -> tuple[Predictor, tuple[str, ...]]:
    """(the predictor of the first installed backend that works, a warning for each that did not)."""
    order = _CPU_ORDER if device == "cpu" else _CUDA_ORDER
    candidates = order if backend == "auto" else (backend,)
    if candidates[0] not in order:
        raise DeviceError(f"backend {backend} does not run on {device}; choose --backend {' or '.join(order)}")
    installed = [name for name in candidates if _is_installed(name)]
    if not installed:
        raise DeviceError(f"backend {' or '.join(candidates)} is not installed; install it or choose another --backend")
    reasons = []
    for name in installed:
        try:
            predictor = _constructor(name, threads)(bundle, device, precision)
        except DeviceError as error:
            reasons.append(str(error))
            continue
        warnings = tuple(f"{reason}; running on {name} instead" for reason in reasons)
        for warning in warnings:
            logger.warning(warning)
        return predictor, warnings
    raise DeviceError("; ".join(reasons))


def _constructor(name: str, threads: int | None) -> Callable[[Bundle, Literal["cpu", "cuda"], Precision], Predictor]:
    """The class of a backend, imported only now."""
    if name == "openvino":
        from app.backends.openvino_cpu import OpenVinoPredictor

        return partial(OpenVinoPredictor, threads=threads)
    if name == "onnxruntime":
        from app.backends.onnx_runtime import OnnxRuntimePredictor

        return partial(OnnxRuntimePredictor, threads=threads)
    from app.backends.pytorch import TorchPredictor

    return partial(TorchPredictor, threads=threads)
