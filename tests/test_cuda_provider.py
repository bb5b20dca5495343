"""ONNX Runtime on CUDA, against stand-ins: there is no GPU, so that what is checked is what would be asked of one."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from app import backends
from app.backends import create_predictor, cuda_provider
from app.backends.cuda_provider import provider_options
from app.bundle import Bundle, load_bundle, write_hashes
from app.errors import BundleError, CaseError, DeviceError
from app.volume import Float32Array
from tests.conftest import TINY_PATCH, write_tiny_bundle
from tests.cuda_stand_in import CudaRuntime, Libraries, install
from tools.convert.half_precision import to_half_precision

RuntimeFailure = onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException
SMALL_MEMORY = {
    "gpu_mem_limit": "1200000000",
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_use_max_workspace": "0",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Logits 0, v + 1, 2 v + 1 and 3 v of a voxel v, as two networks: in fp32 and in fp16."""
    folder = write_tiny_bundle(tmp_path / "bundle")
    half = to_half_precision((folder / "network.onnx").read_bytes())
    assert half is not None
    (folder / "network-fp16.onnx").write_bytes(half)
    write_hashes(folder)
    return load_bundle(folder)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    found = CudaRuntime()
    install(monkeypatch, found, Libraries())
    return found


@pytest.fixture
def tile() -> Float32Array:
    return np.random.default_rng(0).normal(size=TINY_PATCH).astype(np.float32)


def test_a_gpu_gets_the_network_in_half_precision(bundle: Bundle, runtime: CudaRuntime, tile: Float32Array) -> None:
    predictor, warnings = create_predictor(bundle, "onnxruntime", "cuda", "auto")
    assert (predictor.backend, predictor.device, predictor.precision, warnings) == ("onnxruntime", "cuda", "fp16", ())
    (content,) = [call[1] for call in runtime.calls if call[0] == "InferenceSession"]
    assert content == (bundle.folder / "network-fp16.onnx").read_bytes()
    assert runtime.options() == {**SMALL_MEMORY, "cudnn_conv_algo_search": "HEURISTIC"}
    found = predictor.predict(tile)
    expected = np.stack([tile * 0, tile + 1, 2 * tile + 1, 3 * tile])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())  # twice an fp16's rounding


def test_windows_are_bound_to_memory_that_stays(bundle: Bundle, runtime: CudaRuntime, tile: Float32Array) -> None:
    predictor, _ = create_predictor(bundle, "onnxruntime", "cuda", "fp16")
    window = ["bind_cpu_input", "synchronize_inputs", "run_with_iobinding", "synchronize_outputs"]
    loading = ["preload_dlls", "InferenceSession", "disable_fallback", "bind_output"]
    assert runtime.names() == [*loading, *window]  # the first window is a trial
    name, device, device_id, kind, shape, address = runtime.calls[3][1:]
    assert (name, device, device_id, kind, shape) == ("logits", "cpu", 0, np.float32, [1, 4, *TINY_PATCH])
    runtime.calls.clear()
    first = predictor.predict(tile)
    second = predictor.predict(2 * tile)
    assert runtime.names() == window * 2
    assert first.ctypes.data == second.ctypes.data == address


def test_fp32_is_not_tf32(bundle: Bundle, runtime: CudaRuntime, tile: Float32Array) -> None:
    predictor, _ = create_predictor(bundle, "onnxruntime", "cuda", "fp32")
    assert predictor.precision == "fp32"
    assert runtime.options()["use_tf32"] == "0"
    np.testing.assert_allclose(predictor.predict(tile)[3], 3 * tile, rtol=1e-6)


def test_a_bundle_without_the_half_network(bundle: Bundle, runtime: CudaRuntime) -> None:
    (bundle.folder / "network-fp16.onnx").unlink()
    write_hashes(bundle.folder)
    older = load_bundle(bundle.folder)
    assert create_predictor(older, "onnxruntime", "cuda", "auto")[0].precision == "fp32"
    with pytest.raises(BundleError, match=r"has no network-fp16\.onnx; write it with `python -m tools\.convert onnx"):
        create_predictor(older, "onnxruntime", "cuda", "fp16")


def test_a_locator_and_its_network_share_the_arena(bundle: Bundle) -> None:
    locator = replace(bundle, folder=bundle.folder / "locator")
    pair = (replace(bundle, locator=locator), locator)
    limits = [int(provider_options(CudaRuntime(), part, "fp16")["gpu_mem_limit"]) for part in pair]
    assert limits == [900_000_000, 300_000_000]


def test_a_twin_takes_no_arena_on_top(bundle: Bundle) -> None:
    locator, twin = (replace(bundle, folder=bundle.folder / name) for name in ("locator", "twin"))
    three = (replace(bundle, locator=locator, twin=twin), locator, twin)
    limits = [int(provider_options(CudaRuntime(), part, "fp16")["gpu_mem_limit"]) for part in three]
    assert limits == [450_000_000, 300_000_000, 450_000_000]


def test_cuda_11_takes_a_kernel_of_little_memory(bundle: Bundle) -> None:
    """With cuDNN 8 the heuristic is not bound by the workspace limit."""
    expected = {**SMALL_MEMORY, "cudnn_conv_algo_search": "DEFAULT"}
    assert provider_options(CudaRuntime(cuda_version=""), bundle, "fp16") == expected


def test_libraries_of_the_wheels_are_loaded(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For CUDA 12 and 13 by ONNX Runtime itself; for 11 each after those that it needs, and only what is there."""
    newer = CudaRuntime()
    cuda_12 = Libraries(driver_cuda=12000)
    install(monkeypatch, newer, cuda_12)
    cuda_provider.prepare(newer)
    assert (newer.calls, cuda_12.loaded) == ([("preload_dlls", "")], ["libcuda.so.1"])
    wheels = ("cublas/lib/libcublas.so.11", "cublas/lib/libcublasLt.so.11", "cudnn/lib/libcudnn.so.8")
    for name in (*wheels, "cudnn/lib/libcudnn_adv_train.so.8"):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvidia" / name).write_bytes(b"no library")
    monkeypatch.syspath_prepend(tmp_path)
    cuda_11 = Libraries(driver_cuda=11060)
    install(monkeypatch, CudaRuntime(cuda_version=""), cuda_11)
    cuda_provider.prepare(CudaRuntime(cuda_version=""))
    found = [str(Path(name).relative_to(tmp_path / "nvidia")) for name in cuda_11.loaded[1:]]
    assert found == ["cublas/lib/libcublasLt.so.11", "cublas/lib/libcublas.so.11", "cudnn/lib/libcudnn.so.8"]


def test_a_broken_library_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "libcudnn.so.8"
    broken.write_bytes(b"no library")
    with pytest.raises(DeviceError, match=r"libcudnn\.so\.8: cannot be loaded \(.*\); install its wheel anew"):
        cuda_provider._load(str(broken), "install its wheel anew")


@pytest.mark.parametrize(
    ("cuda_version", "libraries", "message"),
    [
        ("", Libraries(driver_cuda=None), r"libcuda\.so\.1: cannot be loaded .*`--gpus`"),
        ("13.0", Libraries(driver_cuda=12040), r"up to 12\.4, this .* for CUDA 13; .* --build-arg CUDA=12"),
        ("12.8", Libraries(driver_cuda=11060), r"up to 11\.6, this .* for CUDA 12; .* --build-arg CUDA=11"),
        ("", Libraries(driver_cuda=11060, init_status=100), "cuInit returned 100"),
    ],
)
def test_a_driver_that_does_not_fit_is_found_before_a_session_is_made(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, cuda_version: str, libraries: Libraries, message: str
) -> None:
    runtime = CudaRuntime(cuda_version)
    install(monkeypatch, runtime, libraries)
    with pytest.raises(DeviceError, match=message) as caught:
        create_predictor(bundle, "onnxruntime", "cuda", "auto")
    assert caught.value.exit_code == 4
    assert runtime.calls == []


@pytest.mark.parametrize("failure", [RuntimeError("CUDNN failure 4: unknown\nstack"), RuntimeFailure("no memory")])
def test_a_gpu_that_fails_on_the_trial_gives_way_to_the_cpu(
    bundle: Bundle, runtime: CudaRuntime, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(backends, "nvidia_device_present", lambda: True)
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    runtime.failure = failure
    found, warnings = create_predictor(bundle, "auto", "auto", "auto")
    assert (found.backend, found.device) == ("openvino", "cpu")
    (warning,) = warnings
    assert f"the GPU cannot run the network ({str(failure).splitlines()[0]})" in warning
    assert warning.endswith("running on the CPU")


def test_a_provider_without_its_memory_limit_is_refused(bundle: Bundle, runtime: CudaRuntime) -> None:
    """What ONNX Runtime 1.18 does when it cannot read its options: it takes none of them."""
    runtime.changed_options = {"gpu_mem_limit": "18446744073709551615"}
    with pytest.raises(DeviceError, match=r"gpu_mem_limit 18446744073709551615, expected 1200000000"):
        create_predictor(bundle, "onnxruntime", "cuda", "auto")


def test_a_gpu_that_fails_later_fails_that_case(bundle: Bundle, runtime: CudaRuntime, tile: Float32Array) -> None:
    predictor, _ = create_predictor(bundle, "onnxruntime", "cuda", "auto")
    runtime.failure = RuntimeError("CUDA failure 700: an illegal memory access was encountered")
    with pytest.raises(CaseError, match=r"failed on a window .*CUDA failure 700"):
        predictor.predict(tile)


def test_the_gpu_image_without_a_gpu_says_so(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is the gpu image shows in the provider's library; the package is not imported for it."""
    monkeypatch.setattr(backends, "nvidia_device_present", lambda: False)
    assert create_predictor(bundle, "auto", "auto", "auto")[1] == ()
    capi = tmp_path / "packages" / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi.parent / "__init__.py").write_text("raise AssertionError('imported')")
    (capi / "libonnxruntime_providers_cuda.so").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "onnxruntime")
    found, warnings = create_predictor(bundle, "auto", "auto", "auto")
    assert (found.backend, found.device) == ("openvino", "cpu")
    assert warnings == ("no NVIDIA device is visible, is `--gpus` missing in `docker run`? Running on the CPU",)


def test_sets_of_requirements_are_complete_and_pinned() -> None:
    """Each brings ONNX Runtime and the libraries of one CUDA; one line a package, with hashes."""
    folder = Path(__file__).parent.parent / "app"
    sets = {path.name: _pins(path) for path in folder.glob("requirements-gpu-*.txt")}
    assert sorted(sets) == [f"requirements-gpu-cuda{major}.txt" for major in (11, 12, 13)]
    for name, pins in sets.items():
        suffix = {"11": "-cu11", "12": "-cu12", "13": ""}[name.removesuffix(".txt")[-2:]]
        libraries = {f"nvidia-{part}{suffix}" for part in ("cublas", "cuda-runtime", "cuda-nvrtc", "curand")}
        assert {"onnxruntime-gpu", *libraries} <= set(pins), name
        assert all(count > 0 for count in pins.values()), name


def _pins(path: Path) -> dict[str, int]:
    """Package -> how many hashes it may have."""
    found: dict[str, Any] = {}
    for line in path.read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            package = line.partition("==")[0]
            found[package] = 0
        elif "--hash=sha256:" in line:
            found[package] += 1
    return found
