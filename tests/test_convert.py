"""Safetensors to ONNX, and the proof that the runtimes agree."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file

from app.backends import create_predictor
from app.backends.shapes import network_shapes
from app.bundle import load_bundle, write_hashes
from app.errors import BundleError
from app.network import build_network
from app.plan import NetworkPlan, Plan
from tests.conftest import default_plan, tiny_plan, write_tiny_bundle
from tools.convert.__main__ import main
from tools.convert.bundles import set_shortcuts, write_bundle
from tools.convert.onnx_graph import build_onnx

DEFAULT = Path(__file__).parent.parent / "weights" / "default"
FLAT = NetworkPlan(
    features_per_stage=(4, 8, 8), strides=((1, 1), (2, 2), (1, 2)), kernel_sizes=((3, 3), (3, 3), (1, 3))
)
SOLID = NetworkPlan(
    features_per_stage=(4, 8, 8),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
)


def plan_of(network: NetworkPlan, patch: tuple[int, int, int]) -> Plan:
    plan = default_plan()
    return replace(plan, network=network, sliding_window=replace(plan.sliding_window, patch_size=patch))


def random_bundle(folder: Path, plan: Plan) -> Path:
    torch.manual_seed(0)
    weights = {name: value.numpy() for name, value in build_network(plan.network, plan.classes).state_dict().items()}
    write_bundle(folder, plan, weights, "random weights")
    return folder


def test_weights_in_channels_last_order_are_written_in_their_logical_order(tmp_path: Path) -> None:
    plan = plan_of(SOLID, (8, 16, 24))
    network = build_network(plan.network, plan.classes)
    expected = {name: value.half().float() for name, value in network.state_dict().items()}
    last = {n: v.to(memory_format=torch.channels_last_3d) if v.ndim == 5 else v for n, v in expected.items()}
    write_bundle(tmp_path / "bundle", plan, {name: value.numpy() for name, value in last.items()}, "card")
    found = load_file(tmp_path / "bundle" / "network.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value, rtol=0, atol=0)


@pytest.mark.parametrize(("residual", "siblings"), [(False, 1), (True, 1), (False, 2)])
@pytest.mark.parametrize(("network", "patch"), [(FLAT, (1, 16, 24)), (SOLID, (8, 16, 24))])
def test_graph_says_what_torch_says(
    network: NetworkPlan, patch: tuple[int, int, int], residual: bool, siblings: int, tmp_path: Path
) -> None:
    plan = plan_of(replace(network, residual=residual, siblings=siblings), patch)
    bundle = load_bundle(random_bundle(tmp_path / "bundle", plan))
    tile = np.random.default_rng(0).normal(size=patch).astype(np.float32)
    expected = create_predictor(bundle, "torch", "cpu", "fp32")[0].predict(tile)
    for backend in ("openvino", "onnxruntime"):
        found = create_predictor(bundle, backend, "cpu", "fp32")[0].predict(tile)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_graph_is_one_file_with_a_node_per_norm(tmp_path: Path) -> None:
    folder = random_bundle(tmp_path / "bundle", plan_of(SOLID, (8, 16, 24)))
    model = onnx.load(folder / "network.onnx", load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert sum(node.op_type == "InstanceNormalization" for node in model.graph.node) == 10  # (3 + 2) stages x 2 blocks
    first = (folder / "network.onnx").read_bytes()
    assert main(["onnx", str(folder)]) == 0
    assert (folder / "network.onnx").read_bytes() == first


@pytest.mark.parametrize(("network", "patch"), [(FLAT, (1, 16, 24)), (SOLID, (8, 16, 24))])
def test_half_precision_rounds_layers_and_not_the_sums_of_norms(
    network: NetworkPlan, patch: tuple[int, int, int], tmp_path: Path
) -> None:
    """Evaluated by ONNX's own reference in NumPy, which rounds as the graph says; a map sums up to more than 65504."""
    bundle = load_bundle(random_bundle(tmp_path / "bundle", plan_of(network, patch)))
    tile = 200 + np.random.default_rng(0).normal(size=patch).astype(np.float32)
    assert tile.sum() > np.finfo(np.float16).max
    expected = create_predictor(bundle, "torch", "cpu", "fp32")[0].predict(tile)
    model = onnx.load_from_string(bundle.read("network-fp16.onnx"))
    image = tile.reshape(network_shapes(bundle.plan)[0])
    found = ReferenceEvaluator(model).run(None, {"image": image})[0].reshape(expected.shape)
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-5 < difference < 2e-2  # it is rounded, and not by more than a few layers of 2**-11
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in model.graph.node:
        expected_type = TensorProto.FLOAT if node.op_type == "InstanceNormalization" else TensorProto.FLOAT16
        assert node.op_type == "Cast" or types[node.output[0]] == expected_type, node.name


def test_weights_beyond_half_precision_leave_the_fp32_network_alone(tmp_path: Path) -> None:
    plan = plan_of(SOLID, (8, 16, 24))
    weights = {n: v.numpy() for n, v in build_network(plan.network, plan.classes).state_dict().items()}
    folder = random_bundle(tmp_path / "bundle", plan)
    assert (folder / "network-fp16.onnx").exists()
    weights["seg.1.weight"] = weights["seg.1.weight"] + np.float32(70000)
    write_bundle(folder, plan, weights, "card", half=False)
    assert not (folder / "network-fp16.onnx").exists()
    assert "network-fp16.onnx" not in load_bundle(folder).sha256


def test_weights_have_to_fit(tmp_path: Path) -> None:
    plan = plan_of(SOLID, (8, 16, 24))
    weights = {n: v.numpy() for n, v in build_network(plan.network, plan.classes).state_dict().items()}
    with pytest.raises(ValueError, match=r"up\.0\.weight is missing"):
        build_onnx(plan, {n: v for n, v in weights.items() if n != "up.0.weight"})
    with pytest.raises(ValueError, match=r"without a place .*: stranger"):
        build_onnx(plan, {**weights, "stranger": np.zeros(1)})


def test_verify_passes_on_agreement_and_fails_on_another_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_bundle(tmp_path / "bundle", plan_of(SOLID, (8, 16, 24)))
    assert main(["verify", str(folder)]) == 0
    assert "--scan FILE" in capsys.readouterr().out
    assert main(["verify", str(folder), "--random", "-1"]) == 2
    plan = plan_of(SOLID, (8, 16, 24))
    torch.manual_seed(1)
    other = {name: value.numpy() for name, value in build_network(plan.network, plan.classes).state_dict().items()}
    (folder / "network.onnx").write_bytes(build_onnx(plan, other))
    assert main(["verify", str(folder)]) == 4  # the hash is wrong
    from app.bundle import write_hashes

    write_hashes(folder)
    assert main(["verify", str(folder)]) == 1
    assert "beyond the limits" in capsys.readouterr().out


def test_verify_takes_real_scans(tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = random_bundle(tmp_path / "bundle", plan_of(SOLID, (8, 16, 24)))
    assert main(["verify", str(folder), "--scan", str(shared_data / "images" / "ct_002_0000.nii.gz")]) == 0
    found = capsys.readouterr().out
    assert [line.split()[1] for line in found.splitlines() if line.startswith("ct_002")] == ["openvino", "onnxruntime"]
    assert "no real scan" not in found


def test_a_missing_bundle_is_exit_4(tmp_path: Path) -> None:
    assert main(["onnx", str(tmp_path / "nowhere")]) == 4
    shutil.copytree(DEFAULT, tmp_path / "altered")
    (tmp_path / "altered" / "network.safetensors").write_bytes(b"x")
    assert main(["onnx", str(tmp_path / "altered")]) == 4


def test_hashes_after_an_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An edited plan is refused until its hash is written; a plan that is none stays refused."""
    folder = write_tiny_bundle(tmp_path / "bundle")
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace('"fastest"', '"normal"'))
    with pytest.raises(BundleError):
        load_bundle(folder)
    assert main(["hashes", str(folder)]) == 0
    assert load_bundle(folder).plan.mode == "normal"
    network = (folder / "network.onnx").read_bytes()
    (folder / "network.onnx").write_bytes(network[:-1])
    assert main(["hashes", str(folder)]) == 4
    error = capsys.readouterr().err
    assert "network.onnx: SHA-256" in error
    assert "the file was altered or is incomplete" in error
    (folder / "network.onnx").write_bytes(network)
    plan.write_text("{}")
    assert main(["hashes", str(folder)]) == 4
    assert "plan.json" in capsys.readouterr().err
    assert main(["hashes", str(tmp_path)]) == 4
    assert not (tmp_path / "SHA256SUMS").exists()


# --- shortcuts and parts -----------------------------------------------------------------------------------


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crop": "body"}, "plan.json: shortcuts.crop goes with neither crop_to_nonzero nor transpose_forward"),
        ({"margin": "-5"}, "plan.json: margin_mm and least_ml must not be negative"),
        ({"locator": "yes"}, "locator/plan.json: expected the orientation of"),
    ],
)
def test_shortcuts_that_cannot_be_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], words: str
) -> None:
    """As with an import of nnU-Net's, which crops to what is not 0 HU."""
    plan = tiny_plan() | {"crop_to_nonzero": True}
    bundle, locator = (write_tiny_bundle(tmp_path / name, plan) for name in ("bundle", "locator"))
    before = content_of(bundle)
    options = {"--crop": changes.get("crop"), "--margin": changes.get("margin")}
    given = [word for option, value in options.items() if value for word in (option, value)]
    given += ["--locator", str(locator)] if "locator" in changes else []
    assert main(["shortcuts", str(bundle), *given]) != 0
    assert words in capsys.readouterr().err
    assert content_of(bundle) == before


def test_a_locator_is_a_network_alone(tmp_path: Path) -> None:
    bundle, locator, coarse = (write_tiny_bundle(tmp_path / name) for name in ("bundle", "locator", "coarse"))
    set_shortcuts(locator, crop="organs", locator=coarse)
    with pytest.raises(BundleError, match="has a locator or a twin of its own"):
        set_shortcuts(bundle, crop="organs", locator=locator)
    assert load_bundle(bundle).locator is None


def test_a_locator_takes_the_place_of_another(tmp_path: Path) -> None:
    """Files that the new one does not have go; its own locator as it is may be given, too."""
    bundle, first, second = (write_tiny_bundle(tmp_path / name) for name in ("bundle", "first", "second"))
    (first / "network-fp16.onnx").write_bytes((first / "network.onnx").read_bytes())
    write_hashes(first)
    for locator in (first, bundle / "locator", second):
        set_shortcuts(bundle, crop="organs", locator=locator)
    assert load_bundle(bundle).locator is not None
    assert content_of(bundle / "locator") == content_of(second)


def test_a_new_network_takes_locator_and_twin_of_the_old_one_away(tmp_path: Path) -> None:
    plan = plan_of(SOLID, (8, 16, 24))
    bundle, locator = random_bundle(tmp_path / "bundle", plan), write_tiny_bundle(tmp_path / "locator")
    set_shortcuts(bundle, crop="organs", locator=locator)
    random_bundle(bundle, plan)
    assert load_bundle(bundle).locator is None
    assert not (bundle / "locator").exists()
