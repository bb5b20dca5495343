"""onnxruntime-gpu on a machine without a GPU: it records what it is asked for and calculates on the CPU."""

import ctypes
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest


class CudaRuntime:
    """Stands for the module ``onnxruntime`` of a build for CUDA.

    Attributes:
        calls: what was called, in order, by name; with the arguments that matter.
        failure: raised instead of running a network, as ONNX Runtime raises it.
        changed_options: with which the provider runs, other than those that it was given.
    """

    def __init__(self, cuda_version: str = "12.8") -> None:
        self.cuda_version = cuda_version
        self.calls: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None
        self.changed_options: dict[str, str] = {}
        self.capi, self.SessionOptions = onnxruntime.capi, onnxruntime.SessionOptions
        if cuda_version:  # 1.18, for CUDA 11.8, has neither
            self.preload_dlls = lambda directory: self.calls.append(("preload_dlls", directory))

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, content: bytes, options: Any, providers: list[Any], enable_fallback: int) -> "_Session":
        assert enable_fallback == 0
        self.calls.append(("InferenceSession", content, providers))
        return _Session(self, onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]))

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def options(self) -> dict[str, str]:
        """Of the provider of the last session."""
        (((name, options),),) = [call[2] for call in self.calls if call[0] == "InferenceSession"][-1:]
        assert name == "CUDAExecutionProvider"
        found: dict[str, str] = options
        return found


class _Session:
    def __init__(self, runtime: CudaRuntime, real: Any) -> None:
        self._runtime, self._real = runtime, real
        self.get_inputs, self.get_outputs = real.get_inputs, real.get_outputs

    def get_providers(self) -> list[str]:
        return self._runtime.get_available_providers()

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        kept = {"device_id": "0", **self._runtime.options(), **self._runtime.changed_options}
        return {"CUDAExecutionProvider": kept, "CPUExecutionProvider": {}}

    def disable_fallback(self) -> None:
        self._runtime.calls.append(("disable_fallback",))

    def io_binding(self) -> "_Binding":
        return _Binding(self._runtime, self._real.io_binding())

    def run_with_iobinding(self, binding: "_Binding") -> None:
        self._runtime.calls.append(("run_with_iobinding",))
        if self._runtime.failure:
            raise self._runtime.failure
        self._real.run_with_iobinding(binding.real)


class _Binding:
    """Records each call and hands it on."""

    def __init__(self, runtime: CudaRuntime, real: Any) -> None:
        self._runtime, self.real = runtime, real

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            self._runtime.calls.append((name, *arguments))
            getattr(self.real, name)(*arguments)

        return call


class Libraries:
    """Stands for ``ctypes.CDLL``: a driver of some CUDA or none, and any other library.

    Attributes:
        loaded: names, in order.
    """

    def __init__(self, driver_cuda: int | None = 13000, init_status: int = 0) -> None:
        self.loaded: list[str] = []
        self._driver_cuda, self._init_status = driver_cuda, init_status

    def __call__(self, name: str) -> Any:
        if name == "libcuda.so.1" and self._driver_cuda is None:
            raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
        self.loaded.append(name)
        return SimpleNamespace(cuDriverGetVersion=self._driver_get_version, cuInit=lambda flags: self._init_status)

    def _driver_get_version(self, version: Any) -> int:
        assert isinstance(version._obj, ctypes.c_int)
        assert self._driver_cuda is not None
        version._obj.value = self._driver_cuda
        return 0


def install(monkeypatch: pytest.MonkeyPatch, runtime: CudaRuntime, libraries: Libraries) -> None:
    """Puts both in the place of what they stand for."""
    from app.backends import cuda_provider, onnx_runtime

    monkeypatch.setattr(onnx_runtime, "_import_onnxruntime", lambda: runtime)
    monkeypatch.setattr(cuda_provider, "CDLL", libraries)
