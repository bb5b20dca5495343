"""The three backends: same network, same numbers; and what is refused where."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app import backends
from app.backends import create_predictor, cuda_provider, openvino_cpu
from app.backends.openvino_air import scale_for_air
from app.backends.openvino_cpu import OpenVinoPredictor
from app.backends.openvino_joins import convolve_parts_of_joins
from app.backends.openvino_norm import use_exact_sums
from app.backends.openvino_upsampling import compose_upsampling
from app.backends.openvino_weights import take_kernels_as_inputs
from app.backends.processor import is_fast_in_bf16
from app.bundle import Bundle, load_bundle
from app.errors import AppError, BundleError, DeviceError
from app.sliding_window import Predictor
from app.volume import Float32Array

DEFAULT = Path(__file__).parent.parent / "weights" / "default"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(DEFAULT)


@pytest.fixture(scope="module")
def tile(bundle: Bundle) -> Float32Array:
    """Smooth enough to look like tissue, rough enough to reach every filter."""
    noise = np.random.default_rng(0).normal(size=bundle.plan.sliding_window.patch_size)
    return np.clip(noise + np.linspace(-2, 2, noise.shape[2]), -2.27, 2.27).astype(np.float32)


def predictor(bundle: Bundle, backend: backends.Backend) -> Predictor:
    return create_predictor(bundle, backend, "cpu", "fp32")[0]


def test_backends_agree_on_the_default_network(bundle: Bundle, tile: Float32Array) -> None:
    reference = predictor(bundle, "torch").predict(tile)
    assert reference.shape == (14, *tile.shape)
    scale = np.abs(reference).max()
    for backend in ("openvino", "onnxruntime"):
        found = predictor(bundle, backend).predict(tile)
        assert np.abs(found - reference).max() < 5e-5 * scale, backend
        assert np.mean(np.argmax(found, axis=0) == np.argmax(reference, axis=0)) > 0.9999


@pytest.mark.parametrize(
    ("shape", "replaced"),
    [
        ((1, 3, 80, 128, 192), True),
        ((1, 3, 512, 384), True),
        ((1, 3, 20, 32, 48), True),
        ((1, 3, 16, 17, 19), True),
        ((1, 3, 15, 16, 17), False),
    ],
)
def test_openvino_normalises_large_maps_to_the_precision_of_float32(shape: tuple[int, ...], replaced: bool) -> None:
    import openvino
    import openvino.opset13 as ops

    image = ops.parameter(list(shape), dtype=np.float32)
    axes = ops.constant(list(range(2, len(shape))), dtype="int64")
    model = openvino.Model([ops.mvn(image, axes, True, 1e-5, "inside_sqrt")], [image])
    use_exact_sums(model)
    assert ("MVN" not in [node.get_type_name() for node in model.get_ops()]) is replaced
    random = np.random.default_rng(1)
    values = np.where(random.random(shape) < 0.8, 0.7313, random.normal(size=shape)).astype(np.float32)  # mostly air
    found = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: values})[0]
    inner = tuple(range(2, len(shape)))
    exact = values.astype(np.float64) - values.mean(inner, keepdims=True, dtype=np.float64)
    exact /= np.sqrt((exact**2).mean(inner, keepdims=True) + 1e-5)
    assert np.abs(found - exact).max() < (1e-5 if replaced else 1e-4)  # as it comes: 1e-3 and more of large maps


def test_openvino_leaves_other_normalisations_alone() -> None:
    import openvino
    import openvino.opset13 as ops

    image = ops.parameter([1, 2, 64, 64, 64], dtype=np.float32)
    over_channels = ops.mvn(image, ops.constant([1, 2, 3, 4], dtype="int64"), True, 1e-5, "inside_sqrt")
    model = openvino.Model([over_channels], [image])
    use_exact_sums(model)
    assert "MVN" in [node.get_type_name() for node in model.get_ops()]


@pytest.mark.parametrize(("shape", "stride"), [((12, 10, 8), (1, 1, 1)), ((12, 10, 8), (1, 2, 2)), ((32, 48), (1, 1))])
def test_openvino_convolves_joined_channels_without_joining_them(
    shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    import openvino
    import openvino.opset13 as ops

    random = np.random.default_rng(1)
    parts = [random.normal(size=(1, channels, *shape)).astype(np.float32) for channels in (5, 3, 2)]
    images = [ops.parameter(list(part.shape), dtype=np.float32) for part in parts]
    kernel = ops.constant(random.normal(size=(4, 10, *(3,) * len(shape))).astype(np.float32))
    ones = [1] * len(shape)
    model = openvino.Model([ops.convolution(ops.concat(images, 1), kernel, list(stride), ones, ones, ones)], images)
    given = dict(enumerate(parts))
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    expected = openvino.compile_model(model.clone(), "CPU", config)(given)[0]
    convolve_parts_of_joins(model)
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert "Concat" not in kinds
    assert kinds.count("Convolution") == 3
    np.testing.assert_allclose(openvino.compile_model(model, "CPU", config)(given)[0], expected, atol=1e-4)


def test_openvino_leaves_joins_along_space_alone() -> None:
    import openvino
    import openvino.opset13 as ops

    images = [ops.parameter([1, 2, 8, 8], dtype=np.float32) for _ in range(2)]
    kernel = ops.constant(np.ones((4, 2, 3, 3), dtype=np.float32))
    joined = ops.convolution(ops.concat(images, 2), kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    model = openvino.Model([joined], images)
    convolve_parts_of_joins(model)
    assert "Concat" in [node.get_type_name() for node in model.get_ops()]


@pytest.mark.parametrize(
    ("kind", "scaled"),
    [
        ("normalised", True),
        ("biased", True),
        ("biased voxel by voxel", False),
        ("biased column by column", False),
        ("activated", False),
        ("two readers of the sums", False),
        ("two readers of the image", False),
        ("no convolution", False),
    ],
)
def test_openvino_scales_air_only_where_a_norm_takes_any_scale(kind: str, scaled: bool) -> None:
    import openvino
    import openvino.opset13 as ops

    image = ops.parameter([1, 1, 8, 8, 8], dtype=np.float32)
    axes = ops.constant([2, 3, 4], dtype="int64")
    kernel = ops.constant(np.ones((4, 1, 3, 3, 3), dtype=np.float32))
    sums = image if kind == "no convolution" else ops.convolution(image, kernel, *[[1, 1, 1]] * 4)
    biases = {"biased": (1, 4, 1, 1, 1), "biased voxel by voxel": (1, 1, 8, 8, 8), "biased column by column": (8,)}
    biased = ops.add(sums, ops.constant(np.ones(biases[kind], dtype=np.float32))) if kind in biases else sums
    found = [ops.relu(biased) if kind == "activated" else ops.mvn(biased, axes, True, 1e-5, "inside_sqrt")]
    if kind.startswith("two readers"):
        found.append(ops.relu(sums if kind.endswith("sums") else image))
    model = openvino.Model(found, [image])
    assert scale_for_air(model, -2.2727272) == (-2.265625 / -2.2727272 if scaled else 1.0)
    assert scale_for_air(model, 0.0) == 1.0


def test_the_scale_for_air_changes_no_logit_of_the_default_network(bundle: Bundle, tile: Float32Array) -> None:
    air = np.float32(bundle.plan.intensity.normalised(-1024))
    scale = scale_for_air(openvino_cpu.shared_core().read_model(model=bundle.read("network.onnx")), float(air))
    assert abs(scale - 1) > 1e-3
    assert (air * np.float32(scale)).view(np.uint32) % 2**16 == 0  # what bf16 leaves out
    network, mostly_air = predictor(bundle, "openvino"), tile.copy()
    mostly_air[:, tile.shape[1] // 4 :] = air
    for window in (tile, mostly_air):
        expected = network.predict(window).copy()
        found = network.predict(window * np.float32(scale))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_windows_in_bf16_are_scaled(bundle: Bundle, tile: Float32Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where OpenVINO imitates bf16."""
    try:
        network, _ = create_predictor(bundle, "openvino", "cpu", "bf16")
    except DeviceError as reason:
        pytest.skip(f"no bf16 here: {reason}")
    found = network.predict(tile).copy()
    monkeypatch.setattr(openvino_cpu, "scale_for_air", lambda *_: 1.0)
    plain, _ = create_predictor(bundle, "openvino", "cpu", "bf16")
    assert not np.array_equal(plain.predict(tile), found)
    assert np.array_equal(plain.predict(tile * np.float32(-2.265625 / bundle.plan.intensity.normalised(-1024))), found)


@dataclass(frozen=True)
class Decoder:
    """Upsampling and convolution: ``up`` is the kernel and stride of the one, ``size`` and ``pad`` are the other's."""

    up: tuple[int, ...] = (2, 2, 2)
    stride: tuple[int, ...] | None = None
    up_pad: int = 0
    up_dilation: int = 1
    bias: tuple[int, ...] | None = None
    reshaped: bool = False
    size: tuple[int, ...] = (3, 3, 3)
    pad: tuple[int, ...] = (1, 1, 1)
    pad_end: tuple[int, ...] | None = None
    step: int = 1
    dilation: int = 1
    between: int = 8
    image: tuple[int, ...] = (1, 16, 16, 17, 18)
    type: str = "f32"
    stored: str = "f32"
    joined: bool = False
    read: str = ""

    def build(self) -> Any:
        """16 channels become 8, or what is ``between``, then 6; ``joined``, two upsampled maps are."""
        import openvino
        import openvino.opset13 as ops

        random = np.random.default_rng(1)

        def weights(*shape: int) -> Any:
            values = ops.constant(random.normal(size=shape).astype(np.float16), getattr(openvino.Type, self.stored))
            return values if self.stored == self.type else ops.convert(values, self.type)

        def upsampled() -> Any:
            kernel, stride = weights(16, self.between, *self.up), list(self.stride or self.up)
            pad, dilation = [self.up_pad for _ in stride], [self.up_dilation for _ in stride]
            return ops.convolution_backprop_data(
                image, kernel, stride, pads_begin=pad, pads_end=pad, dilations=dilation
            )

        image = ops.parameter(list(self.image), getattr(openvino.Type, self.type))
        large = up = upsampled()
        if self.bias:
            bias = (
                ops.reshape(weights(prod(self.bias)), list(self.bias), False) if self.reshaped else weights(*self.bias)
            )
            large = ops.add(up, bias)
        joined = ops.concat([large, upsampled()], 1) if self.joined else large
        steps, dilations = [self.step for _ in self.size], [self.dilation for _ in self.size]
        kernel = weights(6, joined.get_output_shape(0)[1], *self.size)
        found = ops.convolution(joined, kernel, steps, list(self.pad), list(self.pad_end or self.pad), dilations)
        also_read = {"up": [up], "sum": [large]}.get(self.read, [])
        return openvino.Model([found, *also_read], [image])


FLAT = Decoder(up=(2, 2), size=(3, 3), pad=(1, 1), image=(1, 16, 40, 40))
COMPOSED = {
    "2 x 2 x 2 and 3 x 3 x 3": Decoder(),
    "in plane": Decoder(up=(1, 2, 2)),
    "flat kernels": Decoder(up=(1, 2, 2), size=(1, 3, 3), pad=(0, 1, 1)),
    "three planes": Decoder(up=(3, 2, 2)),
    "five voxels": Decoder(size=(5, 5, 5), pad=(2, 2, 2)),
    "no padding": Decoder(pad=(0, 0, 0)),
    "uneven padding": Decoder(pad=(0, 2, 1), pad_end=(2, 1, 0)),
    "bias": Decoder(bias=(1, 8, 1, 1, 1)),
    "bias without batch": Decoder(bias=(8, 1, 1, 1), up=(1, 2, 2)),
    "bias of two images": Decoder(bias=(1, 8, 1, 1, 1), image=(2, 16, 16, 17, 18)),
    "as ONNX has a bias": Decoder(bias=(1, 8, 1, 1, 1), reshaped=True, stored="f16"),
    "half precision": Decoder(stored="f16"),
    "joined": Decoder(joined=True, stored="f16"),
    "two dimensions": FLAT,
    "two dimensions with a bias": replace(FLAT, bias=(1, 8, 1, 1)),
}
LEFT = {
    "a voxel comes from two": Decoder(up=(3, 3, 3), stride=(2, 2, 2)),
    "upsampled and cut": Decoder(up_pad=1),
    "upsampled with gaps": Decoder(up_dilation=2),
    "stride": Decoder(step=2, image=(1, 16, 30, 30, 30)),
    "dilation": Decoder(dilation=2, pad=(2, 2, 2)),
    "wide padding": Decoder(pad=(3, 3, 3)),
    "wide padding at the end": Decoder(pad_end=(1, 1, 3)),
    "a value of each voxel is added": Decoder(bias=(1, 1, 32, 34, 36)),
    "a value of each image is added": Decoder(bias=(8, 1, 1, 1, 1)),
    "a bias makes channels": Decoder(bias=(1, 8, 1, 1, 1), between=1),
    "small map": Decoder(image=(1, 16, 2, 3, 3)),
    "fewer multiplications as it is": Decoder(between=1),
    "kernels in bf16": Decoder(stored="bf16"),
    "all in half precision": Decoder(type="f16", stored="f16"),
    "read by another": Decoder(read="up"),
    "read by another before the bias": Decoder(read="up", bias=(1, 8, 1, 1, 1)),
    "read by another after the bias": Decoder(read="sum", bias=(1, 8, 1, 1, 1)),
}


@pytest.mark.parametrize("case", COMPOSED)
def test_openvino_upsamples_and_convolves_in_one(case: str) -> None:
    """The same numbers, at the border, too."""
    import openvino

    model = COMPOSED[case].build()
    values = np.random.default_rng(2).normal(size=list(model.input().shape)).astype(np.float32)
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    expected = openvino.compile_model(model.clone(), "CPU", config)({0: values})[0]
    convolve_parts_of_joins(model)
    compose_upsampling(model)
    assert "Convolution" not in [node.get_type_name() for node in model.get_ops()]
    found = openvino.compile_model(model, "CPU", config)({0: values})[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", LEFT)
def test_openvino_leaves_other_upsamplings_alone(case: str) -> None:
    model = LEFT[case].build()
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    compose_upsampling(model)
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before


def test_openvino_leaves_kernels_in_bf16_where_they_are() -> None:
    """What it gives of them as an array is not their numbers."""
    model = Decoder(between=1000, stored="bf16").build()
    assert take_kernels_as_inputs(model) == []
    assert len(take_kernels_as_inputs(Decoder(between=1000, stored="f16").build())) == 2


def test_openvino_gives_the_default_network_s_logits_upsampled_and_convolved_in_one(
    bundle: Bundle, tile: Float32Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = OpenVinoPredictor(bundle, "cpu", "fp32")
    found = composed.predict(tile).copy()
    monkeypatch.setattr(openvino_cpu, "compose_upsampling", lambda model: None)
    plain = OpenVinoPredictor(bundle, "cpu", "fp32").predict(tile)
    assert not np.array_equal(found, plain)  # sums in another order
    assert np.abs(found - plain).max() < 1e-5 * np.abs(plain).max()
    monkeypatch.setattr(openvino_cpu, "take_kernels_as_inputs", lambda model: [])
    assert len(composed._kernels) == 12
    assert np.array_equal(OpenVinoPredictor(bundle, "cpu", "fp32").predict(tile), plain)


def test_openvino_takes_each_kernel_once_however_many_layers_read_it() -> None:
    import openvino
    import openvino.opset13 as ops

    random = np.random.default_rng(1)
    stored = random.normal(size=(64, 64, 1, 5, 5)).astype(np.float16)
    small = ops.constant(random.normal(size=(3, 64, 1, 3, 3)).astype(np.float32))
    kernel = ops.convert(ops.constant(stored), "f32")
    image = ops.parameter([1, 64, 1, 12, 10], dtype=np.float32)
    unit, ones, twos = [1, 1, 1], [0, 1, 1], [0, 2, 2]
    twice = ops.convolution(ops.convolution(image, kernel, unit, twos, twos, unit), kernel, unit, twos, twos, unit)
    model = openvino.Model([ops.convolution(twice, small, unit, ones, ones, unit)], [image])
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    values = random.normal(size=(1, 64, 1, 12, 10)).astype(np.float32)
    expected = openvino.compile_model(model.clone(), "CPU", config)({0: values})[0]
    (taken,) = take_kernels_as_inputs(model)
    np.testing.assert_array_equal(taken, stored)
    found = openvino.compile_model(model, "CPU", config)({0: values, 1: taken})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())


def test_openvino_gives_the_same_bytes_twice(bundle: Bundle, tile: Float32Array) -> None:
    network = predictor(bundle, "openvino")
    first = network.predict(tile).copy()
    assert network.predict(tile).tobytes() == first.tobytes()


def test_auto_takes_openvino_on_a_machine_without_a_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "nvidia_device_present", lambda: False)
    found, warnings = create_predictor(bundle, "auto", "auto", "auto")
    assert (found.backend, found.device, warnings) == ("openvino", "cpu", ())


def test_auto_warns_once_where_a_gpu_cannot_be_used(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "nvidia_device_present", lambda: True)
    found, warnings = create_predictor(bundle, "auto", "auto", "auto")
    assert (found.backend, found.device) == ("openvino", "cpu")
    assert len(warnings) == 1
    assert "running on the CPU" in warnings[0]
    assert len([r for r in caplog.records if "CUDA cannot be used" in r.message]) == 1


class FakeSession:
    """A session whose CUDA provider did not start: ONNX Runtime then falls back without an error."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_cuda_provider_that_silently_fell_back_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(cuda_provider, "prepare", lambda ort: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    with pytest.raises(DeviceError, match="asked ONNX Runtime for CUDAExecutionProvider, got CPUExecutionProvider"):
        create_predictor(bundle, "onnxruntime", "cuda", "fp32")


@pytest.mark.parametrize(
    ("backend", "device", "precision", "message"),
    [
        ("openvino", "cuda", "fp32", "does not run on cuda"),
        ("onnxruntime", "cuda", "fp32", "CUDAExecutionProvider"),
        ("auto", "cuda", "fp32", "CUDA"),
        ("onnxruntime", "cpu", "bf16", "fp32, not bf16"),
    ],
)
def test_what_cannot_be_had_is_exit_4(
    bundle: Bundle, backend: backends.Backend, device: backends.Device, precision: backends.Precision, message: str
) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        create_predictor(bundle, backend, device, precision)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2 fma", False),
    ],
)
def test_which_processors_are_faster_in_bf16(tmp_path: Path, vendor: str, flags: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n")
    assert is_fast_in_bf16(cpuinfo) is expected
    assert not is_fast_in_bf16(tmp_path / "hidden")


@pytest.mark.parametrize(
    ("capabilities", "fast", "precision", "expected", "warnings"),
    [
        (["FP32"], True, "auto", "fp32", 0),
        (["FP32", "BF16"], True, "auto", "bf16", 0),
        (["FP32", "BF16"], False, "auto", "fp32", 0),
        (["FP32", "BF16"], True, "fp32", "fp32", 0),
        (["FP32", "BF16"], False, "bf16", "bf16", 0),
        (["FP32"], False, "bf16", "bf16", 1),
    ],
)
def test_openvino_precision_is_always_set(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capabilities: list[str],
    fast: bool,
    precision: str,
    expected: str,
    warnings: int,
) -> None:
    """On any CPU: the network is compiled in fp32 and told to be in what was asked for."""
    import openvino

    monkeypatch.setattr(openvino_cpu, "is_fast_in_bf16", lambda: fast)

    hints: list[str] = []
    compile_model = openvino.Core.compile_model

    class Compiled:
        def __init__(self, network: openvino.CompiledModel) -> None:
            self.create_infer_request = network.create_infer_request

        def get_property(self, name: str) -> openvino.Type:
            assert name == "INFERENCE_PRECISION_HINT"
            found: openvino.Type = getattr(openvino.Type, hints[-1])
            return found

    def watch(core: openvino.Core, model: openvino.Model, device: str, config: dict[str, str]) -> object:
        hints.append(config["INFERENCE_PRECISION_HINT"])
        return Compiled(compile_model(core, model, device, {**config, "INFERENCE_PRECISION_HINT": "f32"}))

    monkeypatch.setattr(openvino.Core, "compile_model", watch)
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: capabilities)
    openvino_cpu._warn_of_imitation.cache_clear()
    for _ in range(2):  # a segmenter and its locator: one warning for both
        found, _ = create_predictor(bundle, "openvino", "cpu", precision)  # type: ignore[arg-type]
        assert found.precision == expected
    assert hints == [{"fp32": "f32", "bf16": "bf16"}[expected]] * 2
    assert ["imitates" in record.message for record in caplog.records] == [True] * warnings


def test_auto_says_which_backend_it_could_not_take(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(openvino.Core, "compile_model", broken)
    found, (warning,) = create_predictor(bundle, "auto", "cpu", "fp32")
    assert found.backend == "onnxruntime"
    assert "OpenVINO cannot compile the network (broken)" in warning
    assert "running on onnxruntime instead" in warning


def test_a_precision_that_no_backend_has_is_not_swapped_for_another(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino
    import torch

    compile_model = openvino.Core.compile_model

    def without_bf16(core: openvino.Core, model: openvino.Model, device: str, config: dict[str, str]) -> object:
        return compile_model(core, model, device, {**config, "INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", without_bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(DeviceError, match="does not calculate in bf16"):
        create_predictor(bundle, "auto", "cpu", "bf16")


def test_a_backend_that_is_not_installed_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="torch is not installed"):
        create_predictor(bundle, "torch", "cpu", "fp32")


class Unwritten(Bundle):
    """The default bundle with one file replaced in memory."""

    content: bytes = b""

    def read(self, name: str) -> bytes:
        return self.content


def with_network(bundle: Bundle, content: bytes) -> Unwritten:
    changed = Unwritten(bundle.folder, bundle.plan, bundle.sha256)
    object.__setattr__(changed, "content", content)
    return changed


def foreign_network(classes: int) -> bytes:
    """A valid ONNX of one 1x1x1 convolution."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [classes, 1, 1, 1, 1], np.ones(classes))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["logits"])],
        "foreign",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 64, 128, 128])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes, 64, 128, 128])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
@pytest.mark.parametrize("content", [b"", b"no network at all", foreign_network(5)])
def test_a_foreign_network_is_refused(bundle: Bundle, backend: backends.Backend, content: bytes) -> None:
    with pytest.raises(AppError) as caught:
        create_predictor(with_network(bundle, content), backend, "cpu", "fp32")
    assert isinstance(caught.value, BundleError)
    assert "network." in str(caught.value)


def test_default_onnx_is_one_file_of_a_pinned_opset() -> None:
    model = onnx.load(DEFAULT / "network.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert sum(node.op_type == "InstanceNormalization" for node in model.graph.node) == 18
