"""PyTorch, from the bundle's safetensors: the reference that the exported network is checked against."""

from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from app.backends.shapes import network_shapes
from app.bundle import SAFETENSORS_FILE, Bundle
from app.errors import BundleError, CaseError, DeviceError
from app.network import build_network
from app.volume import Float32Array

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchPredictor:
    """The U-Net of the plan with the bundle's weights; lower precision through autocast."""

    backend = "torch"

    def __init__(
        self, bundle: Bundle, device: Literal["cpu", "cuda"], precision: str, threads: int | None = None
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("this PyTorch sees no CUDA device; use --device cpu")
        if precision == "auto":
            precision = "fp16" if device == "cuda" else "fp32"
        if device == "cpu" and precision != "fp32" and not _calculates_in(precision):
            raise DeviceError(f"this CPU does not calculate in {precision}; use --precision fp32")
        source = bundle.folder / SAFETENSORS_FILE
        if bundle.plan.network.described_by == "onnx":
            raise BundleError(
                f"{bundle.folder}: only network.onnx describes this network, PyTorch cannot build it; "
                "use --backend openvino or onnxruntime"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        network = build_network(bundle.plan.network, bundle.plan.classes)
        try:
            weights = load(bundle.read(SAFETENSORS_FILE))
            network.load_state_dict({key: value.float() for key, value in weights.items()})
        except (SafetensorError, RuntimeError) as error:
            raise BundleError(f"{source}: does not fit the plan's network ({error})") from error
        self.device: str = device
        self.precision: str = precision
        try:
            self._network = network.eval().to(device)
        except RuntimeError as error:
            raise DeviceError(f"PyTorch cannot use the {device} device ({error}); use --device cpu") from error
        self._input_shape = network_shapes(bundle.plan)[0]

    @torch.inference_mode()
    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        try:
            batch = torch.from_numpy(tile.reshape(self._input_shape)).to(self.device)
            with torch.autocast(self.device, _TYPES[self.precision], enabled=self.precision != "fp32"):
                logits = self._network(batch)
            found: Float32Array = logits[0].float().cpu().numpy()
        except RuntimeError as error:  # CUDA's out-of-memory among them
            raise CaseError(f"PyTorch failed on a window ({error})") from error
        return found.reshape(-1, *tile.shape).astype(np.float32, copy=False)


def _calculates_in(precision: str) -> bool:
    """Whether the CPU has instructions for it; PyTorch would emulate them, slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(f"{unit}_{precision}", False) for unit in ("avx512", "amx"))
