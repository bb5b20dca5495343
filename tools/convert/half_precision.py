"""A network as a GPU calculates it in half precision: ``network-fp16.onnx``, from ``network.onnx``.

Made here and not when a network is loaded: rewriting a graph takes the ``onnx`` package, whose import alone is 0.8 s.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.volume import Float32Array

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_NORM = "InstanceNormalization"
_LARGEST = float(np.finfo(np.float16).max)


def to_half_precision(content: bytes) -> bytes | None:
    """The serialised model with float16 weights and layers; None if a weight is beyond float16.

    Input, output and instance norms stay float32. A norm adds up a map, a million voxels in the default network, and
    float16 ends at 65504; so each stands between two casts, with its scale and shift unrounded: 18 norms, 38 casts.

    Args:
        content: a model whose float16 weights, if any, are cast to float32 before use, as ``build_onnx`` and
            ``store_as_half`` write them.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    weights = _take_weights(graph)
    if any(np.abs(weight).max() > _LARGEST for weight in weights.values()):
        return None
    (image,), (logits,) = graph.input, graph.output
    in_float32 = {name for node in graph.node if node.op_type == _NORM for name in node.input[1:]}
    rewritten = list(_with_casts(graph, image.name, logits.name))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(rewritten)
    for name, weight in weights.items():
        kind = np.float32 if name in in_float32 else np.float16
        graph.initializer.append(numpy_helper.from_array(weight.astype(kind), name))
    onnx.checker.check_model(model, full_check=True)  # the types of all layers, among others
    return bytes(model.SerializeToString(deterministic=True))


def _take_weights(graph: onnx.GraphProto) -> dict[str, Float32Array]:
    """The floating-point weights in float32, by the names that layers use, taken out of the graph with their casts."""
    stored = {weight.name: weight for weight in graph.initializer if weight.data_type in _FLOATS}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]
    names = {node.input[0]: node.output[0] for node in casts}
    for node in casts:
        graph.node.remove(node)
    for weight in stored.values():
        graph.initializer.remove(weight)
    return {names.get(n, n): numpy_helper.to_array(weight).astype(np.float32) for n, weight in stored.items()}


def _with_casts(graph: onnx.GraphProto, image: str, logits: str) -> Iterator[onnx.NodeProto]:
    """The layers, and the casts at the graph's ends and around its norms."""
    first, last = f"{image}.float16", f"{logits}.float16"
    renamed = {image: first, logits: last}
    yield _cast(image, first, TensorProto.FLOAT16)
    for node in graph.node:
        inputs, outputs = ([renamed.get(name, name) for name in names] for names in (node.input, node.output))
        if node.op_type == _NORM:
            source, result = inputs[0], outputs[0]
            inputs[0], outputs[0] = f"{result}.source", f"{result}.float32"
            yield _cast(source, inputs[0], TensorProto.FLOAT)
            yield _rewired(node, inputs, outputs)
            yield _cast(outputs[0], result, TensorProto.FLOAT16)
        else:
            yield _rewired(node, inputs, outputs)
    yield _cast(last, logits, TensorProto.FLOAT)


def _rewired(node: onnx.NodeProto, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    """A copy of the node between other tensors."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(inputs)
    copy.output.extend(outputs)
    return copy


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=kind)
