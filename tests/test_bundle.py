"""Bundles: only what was hashed is used, and every way to break one ends a run with 4 and says why."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.backends import nvidia_device_present
from app.backends import openvino_cpu as openvino_backend
from app.bundle import load_bundle, write_hashes
from app.errors import BundleError
from tests.conftest import run_app, tiny_plan, tissue, write_scan, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path, tiny_bundle: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def run_with(bundle: Path, tmp_path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """(exit code, report) of a run on one scan with OpenVINO on the CPU, unless ``options`` say otherwise."""
    scan = write_scan(tmp_path / "a.nii", tissue())
    report = tmp_path / "report.json"
    files = ("--input", scan, "--output", tmp_path / "labels.nii", "--report", report)
    code = run_app(*files, "--bundle", bundle, "--backend", "openvino", "--device", "cpu", *options)
    return code, json.loads(report.read_text())


def replan(bundle: Path, plan: dict[str, Any]) -> None:
    (bundle / "plan.json").write_text(json.dumps(plan))
    write_hashes(bundle)


def forge(bundle: Path) -> None:
    (bundle / "network.onnx").write_bytes(b"no network")
    write_hashes(bundle)


def widen(bundle: Path) -> None:
    shutil.rmtree(bundle)
    write_tiny_bundle(bundle, patch=(16, 16, 32))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_bundle_is_read_and_its_hashes_are_sha256sums(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.plan.name == "tiny"
    for name in ("plan.json", "network.onnx", "MODEL_CARD.md"):
        assert loaded.sha256[name] == hashlib.sha256((bundle / name).read_bytes()).hexdigest()
        assert loaded.read(name) == (bundle / name).read_bytes()
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{loaded.sha256[name]}  {name}" for name in ("MODEL_CARD.md", "network.onnx", "plan.json")]


def test_the_default_bundle_is_whole(default_bundle: Path) -> None:
    bundle = load_bundle(default_bundle)
    for name in ("plan.json", "network.onnx", "network.safetensors", "MODEL_CARD.md"):
        assert bundle.read(name)


def test_hidden_files_are_no_strangers(bundle: Path) -> None:
    (bundle / ".DS_Store").write_bytes(b"x")
    load_bundle(bundle)


BREAKS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no folder": (shutil.rmtree, ("bundle: no such bundle", "expected a folder with SHA256SUMS, plan.json")),
    "no hashes": (lambda b: (b / "SHA256SUMS").unlink(), ("SHA256SUMS: cannot be read", "expected the hashes")),
    "no plan": (lambda b: (b / "plan.json").unlink(), ("plan.json: cannot be read", "the bundle is incomplete")),
    "no network": (lambda b: (b / "network.onnx").unlink(), ("network.onnx: cannot be read", "incomplete")),
    "altered plan": (lambda b: flip_byte(b / "plan.json"), ("plan.json: SHA-256", "expected", "was altered")),
    "altered network": (lambda b: flip_byte(b / "network.onnx"), ("network.onnx: SHA-256", "expected", "was altered")),
    "cut network": (lambda b: (b / "network.onnx").write_bytes(b"\x08"), ("network.onnx: SHA-256", "is incomplete")),
    "foreign file": (
        lambda b: (b / "weights.pkl").touch(),
        ("weights.pkl is not listed in SHA256SUMS", "nothing else"),
    ),
    "foreign folder": (lambda b: (b / "old").mkdir(), ("old is not listed in SHA256SUMS",)),
    "foreign hash": (
        lambda b: (b / "SHA256SUMS").write_text(f"{'0' * 64}  ../other\n"),
        ("SHA256SUMS: line", "../other", "expected '<sha256>"),
    ),
    "garbled hashes": (lambda b: (b / "SHA256SUMS").write_bytes(b"\xff\xfe"), ("SHA256SUMS: cannot be read",)),
    "plan not hashed": (
        lambda b: (b / "SHA256SUMS").write_text(
            "".join(line for line in (b / "SHA256SUMS").read_text().splitlines(True) if "plan.json" not in line)
        ),
        ("plan.json is not listed in SHA256SUMS",),
    ),
    "not ONNX": (forge, ("network.onnx: not ONNX (", "expected a network. Convert it again")),
    "unknown key": (lambda b: replan(b, {**tiny_plan(), "patch": 1}), ("plan.json: plan: unknown key patch",)),
    "missing key": (
        lambda b: replan(b, {key: value for key, value in tiny_plan().items() if key != "mode"}),
        ("plan.json: plan: missing key mode",),
    ),
    "wrong type": (lambda b: replan(b, {**tiny_plan(), "labels": "liver"}), ("plan.labels: found 'liver'", "a list")),
    "bad value": (lambda b: replan(b, {**tiny_plan(), "orientation": "RAS"}), ("plan.orientation: found 'RAS'", "LPS")),
    "other classes": (
        lambda b: replan(b, {**tiny_plan(), "labels": ["liver"]}),
        ("network.onnx: network maps [1, 1, 16, 16, 16] to [1, 4, 16, 16, 16]", "expects", "[1, 2, 16, 16, 16]"),
    ),
    "other patch": (widen, ("network.onnx: network maps [1, 1, 16, 16, 32]", "the plan expects [1, 1, 16, 16, 16]")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_bundle_ends_the_run_with_4_and_says_why(bundle: Path, tmp_path: Path, name: str) -> None:
    breaks, words = BREAKS[name]
    breaks(bundle)
    code, report = run_with(bundle, tmp_path)
    assert code == report["exit_code"] == 4
    for word in words:
        assert word in report["error"], report["error"]
    assert not (tmp_path / "labels.nii").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_not_loaded_need_not_be_there(bundle: Path, tmp_path: Path) -> None:
    """Hashes of what is loaded are verified: a slim image may leave the other backend's weights out."""
    (bundle / "MODEL_CARD.md").unlink()
    assert run_with(bundle, tmp_path)[0] == 0


def test_the_network_is_checked_even_if_no_scan_can_be_read(bundle: Path, tmp_path: Path) -> None:
    (bundle / "network.onnx").unlink()
    (tmp_path / "broken.nii").touch()
    files = ("--input", tmp_path / "broken.nii", "--output", tmp_path / "labels.nii")
    assert run_app(*files, "--bundle", bundle, "--device", "cpu") == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "cuda", "--backend", "openvino"), ("backend openvino does not run on cuda", "choose --backend")),
        (
            ("--backend", "onnxruntime", "--precision", "bf16"),
            ("onnxruntime calculates this network in fp32, not bf16",),
        ),
    ],
)
def test_what_cannot_be_had_ends_the_run_with_4(
    tiny_bundle: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, report = run_with(tiny_bundle, tmp_path, *options)
    assert code == report["exit_code"] == 4
    for word in words:
        assert word in report["error"]
    assert report["network"] is None


@pytest.mark.skipif(nvidia_device_present(), reason="CUDA may work here")
@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "torch"])
def test_cuda_on_a_machine_without_it_ends_the_run_with_4(tiny_bundle: Path, tmp_path: Path, backend: str) -> None:
    code, report = run_with(tiny_bundle, tmp_path, "--backend", backend, "--device", "cuda")
    assert code == 4
    assert "CUDA" in report["error"]
    assert "--device cpu" in report["error"]


@pytest.mark.parametrize(("precision", "code"), [("bf16", 4), ("fp16", 4), ("fp32", 0), ("auto", 0)])
def test_a_precision_that_the_cpu_lacks_ends_the_run_with_4(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, code: int
) -> None:
    class OldCpu:
        _core = openvino_backend.shared_core()

        def get_property(self, device: str, name: str) -> object:
            found = self._core.get_property(device, name)
            return ["FP32", "INT8"] if name == "OPTIMIZATION_CAPABILITIES" else found

        def compile_model(self, model: object, device: str, config: dict[str, str]) -> object:
            return self._core.compile_model(model, device, {**config, "INFERENCE_PRECISION_HINT": "f32"})

        def __getattr__(self, name: str) -> Any:
            return getattr(self._core, name)

    monkeypatch.setattr(openvino_backend, "shared_core", OldCpu)
    found, report = run_with(tiny_bundle, tmp_path, "--precision", precision)
    assert found == code
    if code:
        assert f"this CPU does not calculate in {precision}; use --precision fp32" in report["error"]
    else:
        assert report["network"] == {"backend": "openvino", "device": "cpu", "precision": "fp32"}


def test_reading_an_unlisted_file_is_refused(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    (bundle / "network.safetensors").write_bytes(b"later")
    with pytest.raises(BundleError, match=r"network\.safetensors: not listed in SHA256SUMS; it cannot be verified"):
        loaded.read("network.safetensors")
