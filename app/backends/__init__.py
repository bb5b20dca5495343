"""One function that turns a bundle into a running network: which backend, device and precision it becomes."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from app.bundle import Bundle
from app.errors import DeviceError
from app.sliding_window import Predictor

logger = logging.getLogger(__name__)

Backend = Literal["auto", "openvino", "onnxruntime", "torch"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_MODULES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "torch": "torch"}
_CPU_ORDER = ("openvino", "onnxruntime", "torch")  # fastest first
_CUDA_ORDER = ("onnxruntime", "torch")


def create_predictor(
    bundle: Bundle, backend: Backend, device: Device, precision: Precision
) -> tuple[Predictor, tuple[str, ...]]:
    """(a predictor, warnings about what had to be chosen).

    ``device='auto'`` takes CUDA where an NVIDIA device is there and a backend can use it, else the CPU; a
    device that is there and cannot be used is a warning.

    Raises:
        DeviceError: what was asked for cannot be had on this machine.
        BundleError: the network's file is missing, altered or does not fit the plan.
    """
    if device != "auto":
        return _create_on(bundle, backend, device, precision)
    if backend == "openvino" or not nvidia_device_present():
        return _create_on(bundle, backend, "cpu", precision)
    try:
        return _create_on(bundle, backend, "cuda", precision)
    except DeviceError as error:
        warning = f"there is an NVIDIA device, but CUDA cannot be used ({error}); running on the CPU"
        logger.warning(warning)
        predictor, warnings = _create_on(bundle, backend, "cpu", precision)
        return predictor, (warning, *warnings)


def nvidia_device_present() -> bool:
    """Whether the kernel shows an NVIDIA device to this process (or container); costs no driver call."""
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))


def _create_on(
    bundle: Bundle, backend: Backend, device: Literal["cpu", "cuda"], precision: Precision
) -> tuple[Predictor, tuple[str, ...]]:
    """(the predictor of the first installed backend that works, a warning for each that did not)."""
    order = _CPU_ORDER if device == "cpu" else _CUDA_ORDER
    candidates = order if backend == "auto" else (backend,)
    if candidates[0] not in order:
        raise DeviceError(f"backend {backend} does not run on {device}; choose --backend {' or '.join(order)}")
    installed = [name for name in candidates if find_spec(_MODULES[name]) is not None]
    if not installed:
        raise DeviceError(f"backend {' or '.join(candidates)} is not installed; install it or choose another --backend")
    reasons = []
    for name in installed:
        try:
            predictor = _constructor(name)(bundle, device, precision)
        except DeviceError as error:
            reasons.append(str(error))
            continue
        warnings = tuple(f"{reason}; running on {name} instead" for reason in reasons)
        for warning in warnings:
            logger.warning(warning)
        return predictor, warnings
    raise DeviceError("; ".join(reasons))


def _constructor(name: str) -> Callable[[Bundle, Literal["cpu", "cuda"], Precision], Predictor]:
    """The class of a backend, imported only now."""
    if name == "openvino":
        from app.backends.openvino_cpu import OpenVinoPredictor

        return OpenVinoPredictor
    if name == "onnxruntime":
        from app.backends.onnx_runtime import OnnxRuntimePredictor

        return OnnxRuntimePredictor
    from app.backends.pytorch import TorchPredictor

    return TorchPredictor
