"""OpenVINO on the CPU: the fastest of the backends there."""

import logging
import sys
from functools import cache
from threading import Lock
from typing import Any, Literal

import numpy as np

from app.backends.openvino_air import scale_for_air
from app.backends.openvino_joins import convolve_parts_of_joins
from app.backends.openvino_norm import use_exact_sums
from app.backends.openvino_upsampling import compose_upsampling
from app.backends.openvino_weights import take_kernels_as_inputs
from app.backends.processor import is_fast_in_bf16
from app.backends.shapes import check_network_shapes, network_shapes
from app.bundle import ONNX_FILE, Bundle
from app.errors import BundleError, CaseError, DeviceError
from app.volume import AIR_HU, Float32Array

logger = logging.getLogger(__name__)

_core_lock = Lock()
_cores: list[Any] = []
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_cancelled: list[Any] = []  # requests, with their kernels, whose end nobody waits for, as their destructor would
_WAIT_MS = 100  # the longest that a signal waits for Python; a window takes seconds on a small machine


class OpenVinoPredictor:
    """The bundle's ONNX compiled for this CPU. Precision is always set: OpenVINO's own default is bf16."""

    backend = "openvino"
    device = "cpu"

    def __init__(
        self, bundle: Bundle, device: Literal["cpu", "cuda"], precision: str, threads: int | None = None
    ) -> None:
        core = shared_core()
        try:
            capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO cannot use this CPU ({error}); choose another --backend") from error
        if precision == "auto":
            precision = "bf16" if "BF16" in capabilities and is_fast_in_bf16() else "fp32"
        source = str(bundle.folder / ONNX_FILE)
        try:
            model = core.read_model(model=bundle.read(ONNX_FILE))
        except RuntimeError as error:
            raise BundleError(f"{source}: OpenVINO cannot read it ({str(error).strip().splitlines()[-1]})") from error
        if len(model.inputs) != 1 or len(model.outputs) != 1 or model.is_dynamic():
            raise BundleError(f"{source}: expected a network with one input and one output of fixed shape")
        check_network_shapes(bundle.plan, list(model.input().shape), list(model.output().shape), source)
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "ENABLE_CPU_PINNING": "NO",  # else two containers of one processor each share the machine's first
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        self.precision = precision
        self._kernels: list[Any] = []
        self._input_shape = network_shapes(bundle.plan)[0]
        self._scale = scale_for_air(model, bundle.plan.intensity.normalised(AIR_HU)) if precision == "bf16" else 1.0
        try:
            convolve_parts_of_joins(model)
            if precision == "fp32":
                compose_upsampling(model)
                use_exact_sums(model)
                self._kernels = take_kernels_as_inputs(model)
            compiled = core.compile_model(model, "CPU", config)
            self._request = compiled.create_infer_request()
            _share_kernels(self._request, self._kernels)
        except RuntimeError as error:
            raise DeviceError(f"OpenVINO cannot compile the network ({error}); choose another --backend") from error
        if compiled.get_property("INFERENCE_PRECISION_HINT").to_string() != _HINTS[precision]:
            raise DeviceError(f"this CPU does not calculate in {precision}; use --precision fp32")
        if precision == "bf16" and "BF16" not in capabilities:
            _warn_of_imitation()

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``; the result lies in OpenVINO's own memory.

        This thread only waits, so that Ctrl-C and SIGTERM end a window: it is cancelled within one layer.
        """
        scaled = tile if self._scale == 1.0 else tile * np.float32(self._scale)  # held until the next one
        try:
            try:
                self._request.start_async({0: scaled.reshape(self._input_shape)}, share_inputs=True)
                while not self._request.wait_for(_WAIT_MS):
                    pass
            except KeyboardInterrupt:
                self._request.cancel()
                _cancelled.append((self._request, self._kernels))
                raise
            found = self._request.output_tensors[0].data
        except RuntimeError as error:
            raise CaseError(f"OpenVINO failed on a window ({str(error).strip().splitlines()[-1]})") from error
        logits: Float32Array = found.reshape(-1, *tile.shape)
        return logits


@cache
def _warn_of_imitation() -> None:
    """Once for the process, though every network of a run imitates."""
    logger.warning("this CPU has no instructions for bf16, OpenVINO imitates them: slower than --precision fp32")


def _share_kernels(request: Any, kernels: list[Any]) -> None:
    """Makes arrays inputs 1, 2, ... of all windows, read where they lie: they must outlive the request."""
    from openvino import Tensor

    for port, kernel in enumerate(kernels, start=1):
        request.set_input_tensor(port, Tensor(kernel, shared_memory=True))


def shared_core() -> Any:
    """OpenVINO's ``Core``: one for the process, never let go.

    Each would load the CPU plugin anew. That gives its thread a stack for signals and takes it back at its end, but of
    two plugins the later one to end leaves the other's stack in place, which is freed by then: the next signal was a
    segmentation fault (2026.4.1, ``test_interruption.py``).
    """
    with _core_lock:
        if not _cores:
            _cores.append(import_core()())
    return _cores[0]


def import_core() -> Any:
    """The class, imported without ``openvino_telemetry`` even where that is installed.

    Its import chain would load the package, which writes to HOME and reports usage; None in ``sys.modules``
    makes that import fail, which OpenVINO allows for. It halves the import time, too.
    """
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        from openvino import Core
    except ImportError as error:
        raise DeviceError(f"OpenVINO cannot be loaded ({error}); choose another --backend") from error
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
    return Core
