"""What ONNX Runtime's CUDA provider needs: its libraries, found at run time, and bounds on the device's memory.

None of this has been run on a GPU. Options follow ONNX Runtime's source (core/providers/cuda/nn/conv.cc) of the builds
in requirements-gpu-cuda*.txt: 1.18 with cuDNN 8, later ones with cuDNN 9.
"""

from ctypes import CDLL, byref, c_int
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.bundle import LOCATOR_FOLDER, TWIN_FOLDER, Bundle
from app.errors import DeviceError

PROVIDER = "CUDAExecutionProvider"
# FLARE counts what a device holds above 2048 MB; what the arena leaves is for CUDA's context, cuBLAS and cuDNN.
ARENA_BYTES = 1_200_000_000
_LOCATOR_BYTES = 300_000_000
# What libonnxruntime_providers_cuda.so of 1.18 is linked with, each after what it needs itself. cuDNN finds the rest of
# itself; loading all of it would put every kernel on the device, since drivers before CUDA 11.7 load none lazily.
_CUDA_11_LIBRARIES = (
    "cuda_runtime/lib/libcudart.so.11.0",
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "cufft/lib/libcufft.so.10",
    "curand/lib/libcurand.so.10",
    "cudnn/lib/libcudnn.so.8",
)


def has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime is a build for CUDA, told without loading it."""
    spec = find_spec("onnxruntime")
    folders = spec.submodule_search_locations if spec else None
    return any((Path(folder) / "capi" / "libonnxruntime_providers_cuda.so").exists() for folder in folders or ())


def prepare(ort: Any) -> None:
    """Checks the driver, then loads CUDA, cuBLAS and cuDNN from the nvidia-* wheels; others are left to the system.

    Raises:
        DeviceError: there is no driver, it is too old or has no device, or a library cannot be loaded.
    """
    _check_driver(_cuda_major(ort))
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls(directory="")  # from the wheels, not from PyTorch
        return
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for path in (Path(folder) / name for name in _CUDA_11_LIBRARIES):
            if path.exists():
                _load(str(path), "install its wheel anew")


def provider_options(ort: Any, bundle: Bundle, precision: str) -> dict[str, str]:
    """Options of the provider: little device memory, and no time spent on trying out kernels.

    The builds for CUDA 11, 12 and 13 were seen to know these names and values, up to where they need a GPU. A bundle
    with a locator runs two networks, which share 1.2 GB: 900 MB and 300 MB; with a twin 450, 300 and 450 MB.
    """
    options = {
        "gpu_mem_limit": str(_arena_bytes(bundle)),
        "arena_extend_strategy": "kSameAsRequested",  # not the next power of two
        "cudnn_conv_use_max_workspace": "0",
        # Trying out (the default) is paid again by every container. With cuDNN 8 the heuristic minds no workspace, and
        # DEFAULT is a matrix product that needs little; with cuDNN 9 DEFAULT means slow fallbacks.
        "cudnn_conv_algo_search": "DEFAULT" if _cuda_major(ort) == 11 else "HEURISTIC",
    }
    if precision == "fp32":
        options["use_tf32"] = "0"  # with fp16 it would take the tensor cores away
    return options


def _arena_bytes(bundle: Bundle) -> int:
    """Its share of what all networks of a bundle may take; a twin's is that of its sibling, as if it had a locator."""
    if bundle.folder.name == LOCATOR_FOLDER:
        return _LOCATOR_BYTES
    if bundle.folder.name == TWIN_FOLDER or bundle.twin:
        return (ARENA_BYTES - _LOCATOR_BYTES) // 2
    return ARENA_BYTES if bundle.locator is None else ARENA_BYTES - _LOCATOR_BYTES


def _check_driver(needed: int) -> None:
    """Raises DeviceError if ONNX Runtime could not start: it says little then, and 1.18 without a driver crashes."""
    driver = _load("libcuda.so.1", "start the container with `--gpus`, or use --device cpu")
    version = c_int()
    driver.cuDriverGetVersion(byref(version))  # 11060 is CUDA 11.6
    major, minor = version.value // 1000, version.value % 1000 // 10
    if major < needed:
        raise DeviceError(
            f"NVIDIA's driver runs CUDA up to {major}.{minor}, this ONNX Runtime is for CUDA {needed}; expected "
            f"a newer driver or an image built with --build-arg CUDA={major}"
        )
    status = driver.cuInit(0)
    if status:
        raise DeviceError(f"NVIDIA's driver does not start (cuInit returned {status}; 100 is: no device)")


def _load(library: str, remedy: str) -> Any:
    try:
        return CDLL(library)
    except OSError as error:
        raise DeviceError(f"{library}: cannot be loaded ({error}); {remedy}") from error


def _cuda_major(ort: Any) -> int:
    """The CUDA that the build is for: ONNX Runtime 1.26 says 12.8; 1.18, which does not say, is for 11.8."""
    return int((ort.cuda_version or "11.8").split(".")[0])
