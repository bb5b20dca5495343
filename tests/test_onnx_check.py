"""Networks that would open other files or other libraries are refused, by the app and by the converter alike."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from app.bundle import load_bundle, write_hashes
from app.errors import BundleError
from app.onnx_check import check_self_contained
from tests.conftest import run_app, tissue, write_scan, write_tiny_bundle
from tools.convert.bundles import set_shortcuts

FLOAT = TensorProto.FLOAT


def keep_weights_elsewhere(model: onnx.ModelProto) -> None:
    weights = model.graph.initializer[0]
    set_external_data(weights, location="../../secret.bin")
    weights.ClearField("raw_data")


def name_a_file_without_using_it(model: onnx.ModelProto) -> None:
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def call_a_foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example.plugin"


def import_foreign_operators(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def define_an_operator(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("", "Own", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)]))


def train(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(model.graph)


def branch(*nodes: onnx.NodeProto, **tensors: onnx.TensorProto) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("b", FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [output], list(tensors.values()))


def hide_in_a_branch(model: onnx.ModelProto) -> None:
    inner = branch(helper.make_node("Evil", [], ["b"], domain="com.example"))
    outer = branch(helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner))
    model.graph.node.append(helper.make_node("If", ["c"], ["b"], then_branch=branch(), else_branch=outer))


def hide_in_a_constant(model: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(3, np.float32), "zeros")
    set_external_data(value, location="/dev/zero")
    model.graph.node.append(helper.make_node("Constant", [], ["zeros"], value=value))


def hide_in_a_sparse_tensor(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "few")
    set_external_data(values, location="few.bin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "where")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "external data": (keep_weights_elsewhere, "keeps weights in another file"),
    "the name of a file alone": (name_a_file_without_using_it, "keeps weights in another file"),
    "foreign operator": (call_a_foreign_operator, "operators of the domain 'com.example.plugin'"),
    "foreign set of operators": (import_foreign_operators, "operators of the domain 'com.microsoft'"),
    "operator of its own": (define_an_operator, "defines operators of its own"),
    "training": (train, "holds a training graph"),
    "two branches deep": (hide_in_a_branch, "operators of the domain 'com.example'"),
    "in a constant": (hide_in_a_constant, "keeps weights in another file"),
    "in a sparse tensor": (hide_in_a_sparse_tensor, "keeps weights in another file"),
}


def spoil(bundle: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Changes the network of a bundle, hashes and all, as whoever made it could."""
    model = onnx.load(bundle / "network.onnx")
    change(model)
    (bundle / "network.onnx").write_bytes(model.SerializeToString())
    write_hashes(bundle)


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_is_not_self_contained_is_refused(tmp_path: Path, name: str) -> None:
    change, words = REFUSED[name]
    bundle = write_tiny_bundle(tmp_path / "bundle")
    load_bundle(bundle).read("network.onnx")
    spoil(bundle, change)
    with pytest.raises(BundleError, match=r"network\.onnx: .*expected one file with standard operators only") as error:
        load_bundle(bundle).read("network.onnx")
    assert words in str(error.value)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_app_ends_with_4_before_a_runtime_sees_it(tmp_path: Path, backend: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    spoil(bundle, keep_weights_elsewhere)
    scan, report = write_scan(tmp_path / "a.nii", tissue()), tmp_path / "report.json"
    files = ("--input", scan, "--output", tmp_path / "labels.nii", "--report", report)
    assert run_app(*files, "--bundle", bundle, "--backend", backend, "--device", "cpu") == 4
    assert "another file (external data)" in json.loads(report.read_text())["error"]
    assert not (tmp_path / "labels.nii").exists()


def test_the_converter_takes_no_such_locator(tmp_path: Path) -> None:
    bundle, locator = (write_tiny_bundle(tmp_path / name) for name in ("bundle", "locator"))
    spoil(locator, call_a_foreign_operator)
    with pytest.raises(BundleError, match="operators of the domain"):
        set_shortcuts(bundle, crop="organs", locator=locator)
    assert load_bundle(bundle).locator is None


def test_the_default_network_is_self_contained(default_bundle: Path) -> None:
    check_self_contained((default_bundle / "network.onnx").read_bytes(), "network.onnx")


def test_the_standard_domain_may_be_named(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle")
    model = onnx.load(bundle / "network.onnx")
    model.graph.node[0].domain = "ai.onnx"
    check_self_contained(model.SerializeToString(), "network.onnx")


MALFORMED = {
    "text": b"Dear colleague,\n" * 40,
    "cut": bytes([0x3A, 0x05, 0x0A]),  # graph of 5 bytes, one of them there
    "cut number": bytes([0x08, 0x80]),
    "endless number": b"\x08" + b"\xff" * 11,
    "no field number": bytes([0x00, 0x01]),
    "graph that is a number": bytes([0x38, 0x01]),
    "field number beyond protobuf's": bytes([0xF8, 0xFF, 0xFF, 0xFF, 0x7F, 0x01]),
    "domain that is a number": bytes([0x42, 0x02, 0x08, 0x01]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_onnx_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match=r"a\.onnx: not ONNX \(.*expected a network"):
        check_self_contained(MALFORMED[name], "a.onnx")


def test_endless_nesting_is_refused() -> None:
    """Graphs in attributes of nodes of graphs, each byte count correct."""
    content = b""
    for _ in range(60):
        for key in (0x32, 0x2A, 0x0A):  # attribute.g, node.attribute, graph.node
            content = bytes([key]) + _length(content) + content
    with pytest.raises(BundleError, match="messages within messages deeper than 16"):
        check_self_contained(b"\x3a" + _length(content) + content, "a.onnx")


def _length(content: bytes) -> bytes:
    """A protobuf varint, two bytes long."""
    return bytes([len(content) & 0x7F | 0x80, len(content) >> 7])
