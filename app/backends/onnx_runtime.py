"""ONNX Runtime on the CPU or, with the CUDA provider, on an NVIDIA GPU."""

from typing import Any, Literal

from app.backends.shapes import check_network_shapes, network_shapes
from app.bundle import ONNX_FILE, Bundle
from app.errors import BundleError, CaseError, DeviceError
from app.volume import Float32Array

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimePredictor:
    """A session on the bundle's ONNX. The network is stored and calculated in fp32."""

    backend = "onnxruntime"
    precision = "fp32"

    def __init__(
        self, bundle: Bundle, device: Literal["cpu", "cuda"], precision: str, threads: int | None = None
    ) -> None:
        if precision not in ("auto", "fp32"):
            raise DeviceError(
                f"backend onnxruntime calculates this network in fp32, not {precision}; use --precision fp32"
            )
        ort = _import_onnxruntime()
        provider = _PROVIDERS[device]
        if device == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # finds the CUDA libraries of the nvidia-* wheels
        if provider not in ort.get_available_providers():
            raise DeviceError(
                f"this onnxruntime has no {provider} (it has {', '.join(ort.get_available_providers())}); "
                "install onnxruntime-gpu or use --device cpu"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        source = str(bundle.folder / ONNX_FILE)
        try:
            session = ort.InferenceSession(bundle.read(ONNX_FILE), options, providers=[provider])
        except _session_errors(ort) as error:
            raise BundleError(
                f"{source}: ONNX Runtime cannot load it ({str(error).strip().splitlines()[0]})"
            ) from error
        running = session.get_providers()[0]
        if running != provider:  # a CUDA provider that cannot start gives way to the CPU without an error
            raise DeviceError(
                f"asked ONNX Runtime for {provider}, got {running}: driver or CUDA libraries are missing; "
                "use --device cpu"
            )
        session.disable_fallback()  # else a failing GPU would give way to the CPU in mid-run, unsaid
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise BundleError(f"{source}: expected a network with one input and one output")
        check_network_shapes(bundle.plan, inputs[0].shape, outputs[0].shape, source)
        self.device: str = device
        self._input_name = inputs[0].name
        self._input_shape = network_shapes(bundle.plan)[0]
        self._session = session
        self._errors = _session_errors(ort)

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        try:
            (found,) = self._session.run(None, {self._input_name: tile.reshape(self._input_shape)})
        except self._errors as error:
            raise CaseError(f"ONNX Runtime failed on a window ({str(error).strip().splitlines()[0]})") from error
        logits: Float32Array = found.reshape(-1, *tile.shape)
        return logits


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
    return tuple(getattr(state, name) for name in names)
