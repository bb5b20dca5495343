"""ONNX Runtime on the CPU or, with the CUDA provider, on an NVIDIA GPU."""

from typing import Any, Literal

import numpy as np

from app.backends import cuda_provider
from app.backends.shapes import check_network_shapes, network_shapes
from app.bundle import HALF_ONNX_FILE, ONNX_FILE, Bundle
from app.errors import BundleError, CaseError, DeviceError
from app.volume import Float32Array


class OnnxRuntimePredictor:
    """A session on the bundle's ONNX, in fp32, or on a GPU in fp16 where the bundle has such a network.

    Input and result are float32 on the host either way. On a GPU their copies there come from the session's arena, as
    all maps do, so that its limit holds for them, too.
    """

    backend = "onnxruntime"

    def __init__(
        self, bundle: Bundle, device: Literal["cpu", "cuda"], precision: str, threads: int | None = None
    ) -> None:
        self.device: str = device
        self.precision: str = _choose_precision(bundle, device, precision)
        file = HALF_ONNX_FILE if self.precision == "fp16" else ONNX_FILE
        source = str(bundle.folder / file)
        ort = _import_onnxruntime()
        self._errors = _session_errors(ort)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = _providers(ort, bundle, device, self.precision)
        try:
            session = ort.InferenceSession(bundle.read(file), options, providers=providers, enable_fallback=0)
        except self._errors as error:
            kind = DeviceError if device == "cuda" else BundleError  # the CPU will tell if it is the file
            raise kind(f"{source}: ONNX Runtime cannot load it ({_first_line(error)})") from error
        _check_provider(session, *providers[0])
        session.disable_fallback()  # what 1.18 has instead of enable_fallback; a GPU would give way in mid-run, unsaid
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise BundleError(f"{source}: expected a network with one input and one output")
        check_network_shapes(bundle.plan, inputs[0].shape, outputs[0].shape, source)
        self._input_name = inputs[0].name
        self._input_shape, output_shape = network_shapes(bundle.plan)
        self._session = session
        self._logits: Float32Array = np.empty(output_shape, dtype=np.float32)
        self._binding = session.io_binding()
        self._binding.bind_output(outputs[0].name, "cpu", 0, np.float32, output_shape, self._logits.ctypes.data)
        if device == "cuda":
            self._try_out()

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``; the result lies in the same memory each time."""
        try:
            self._run(tile)
        except self._errors as error:
            raise CaseError(f"ONNX Runtime failed on a window ({_first_line(error)})") from error
        return self._logits.reshape(-1, *tile.shape)

    def _run(self, tile: Float32Array) -> None:
        self._binding.bind_cpu_input(self._input_name, tile.reshape(self._input_shape))
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def _try_out(self) -> None:
        """Runs one empty window: libraries, kernels and memory that are missing show now, and not in every case.

        Raises:
            DeviceError: it failed, so that the caller can take another device.
        """
        try:
            self._run(np.zeros(self._input_shape, dtype=np.float32))
        except self._errors as error:
            raise DeviceError(f"the GPU cannot run the network ({_first_line(error)}); use --device cpu") from error


def _choose_precision(bundle: Bundle, device: str, precision: str) -> str:
    """``fp16`` or ``fp32``: what is asked for, or the fastest that the bundle has for the device."""
    has_half = HALF_ONNX_FILE in bundle.sha256
    if precision == "auto":
        return "fp16" if device == "cuda" and has_half else "fp32"
    possible = ("fp32", "fp16") if device == "cuda" else ("fp32",)
    if precision not in possible:
        raise DeviceError(
            f"backend onnxruntime calculates this network in {' or '.join(possible)}, not {precision}; "
            "use --precision fp32"
        )
    if precision == "fp16" and not has_half:
        raise BundleError(
            f"{bundle.folder}: has no {HALF_ONNX_FILE}; write it with `python -m tools.convert onnx {bundle.folder}`, "
            "or use --precision fp32"
        )
    return precision


def _providers(ort: Any, bundle: Bundle, device: str, precision: str) -> list[tuple[str, dict[str, str]]]:
    """What ``InferenceSession`` takes: the one provider of the device, and its options."""
    if device == "cpu":
        return [("CPUExecutionProvider", {})]
    available = ort.get_available_providers()
    if cuda_provider.PROVIDER not in available:
        raise DeviceError(
            f"this onnxruntime has no {cuda_provider.PROVIDER} (it has {', '.join(available)}); "
            "install onnxruntime-gpu or use --device cpu"
        )
    cuda_provider.prepare(ort)
    return [(cuda_provider.PROVIDER, cuda_provider.provider_options(ort, bundle, precision))]


def _check_provider(session: Any, name: str, options: dict[str, str]) -> None:
    """Raises DeviceError if ONNX Runtime took the CPU, or CUDA without its limits: it tries both before it fails."""
    running = session.get_providers()[0]
    if running != name:
        raise DeviceError(
            f"asked ONNX Runtime for {name}, got {running}: driver or CUDA libraries are missing or too old; "
            "use --device cpu"
        )
    if options:
        kept = session.get_provider_options().get(name, {})
        limit = options["gpu_mem_limit"]
        if kept.get("gpu_mem_limit", limit) != limit:
            raise DeviceError(
                f"{name} runs with gpu_mem_limit {kept['gpu_mem_limit']}, expected {limit}: ONNX Runtime refused the "
                "options; use --device cpu"
            )


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(f"ONNX Runtime cannot be loaded ({error}); choose another --backend") from error
    return onnxruntime


def _session_errors(ort: Any) -> tuple[type[Exception], ...]:
    state = ort.capi.onnxruntime_pybind11_state
    names = (
        "Fail",
        "EPFail",
        "InvalidGraph",
        "InvalidProtobuf",
        "InvalidArgument",
        "NotImplemented",
        "NoModel",
        "RuntimeException",
    )
    return (*(getattr(state, name) for name in names), RuntimeError)  # the last by IO binding


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
