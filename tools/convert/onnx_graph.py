"""The U-Net as an ONNX graph, written node by node from the plan and the weights.

No tracing: the graph has one node per layer (InstanceNormalization among them, which every runtime has a kernel
for), a fixed shape, a pinned opset, no external data, and equal weights give equal bytes.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.backends.shapes import network_shapes
from app.plan import Plan

OPSET = 17
IR_VERSION = 8
_SLOPE = 0.01
_EPSILON = 1e-5

Weights = Mapping[str, npt.NDArray[np.generic]]


def build_onnx(plan: Plan, weights: Weights) -> bytes:
    """The serialised model: input ``image``, output ``logits``, shapes of one tile.

    Weights in float16 are stored as such with a Cast to float32 behind each, which runtimes fold when they load;
    all arithmetic is float32 either way.

    Args:
        plan: network, patch size and classes.
        weights: by the names of ``app.network.UNet``'s state dict.

    Raises:
        ValueError: weights are missing or left over.
    """
    graph = _Graph(plan, weights)
    graph.add_networks()
    if unused := sorted(set(weights) - graph.used):
        raise ValueError(f"weights without a place in the plan's network: {', '.join(unused)}")
    input_shape, output_shape = network_shapes(plan)
    proto = helper.make_graph(
        graph.nodes,
        "unet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output_shape)],
        graph.initializers,
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "tools.convert"
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def store_as_half(model: onnx.ModelProto) -> None:
    """Rounds the float32 weights of a model to float16, in place, with a Cast to float32 behind each."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            name = weight.name
            rounded = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(rounded, f"{name}.float16"))
            casts.append(helper.make_node("Cast", [f"{name}.float16"], [name], name=name, to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Graph:
    """Nodes and initializers in the order of the forward pass."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        self._network = plan.network
        self._weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        # Heads below full resolution serve training alone; they are in the weights and not in the graph.
        self._levels = len(plan.network.features_per_stage) - 1
        self.used: set[str] = set()

    def add_networks(self) -> None:
        """The network, or its siblings and the mean of their logits."""
        if self._network.siblings == 1:
            self._add_network("", "logits")
            return
        outputs = [f"{sibling}.logits" for sibling in range(self._network.siblings)]
        for sibling, output in enumerate(outputs):
            self._add_network(f"{sibling}.", output)
        self.nodes.append(helper.make_node("Mean", outputs, ["logits"], name="logits"))

    def _add_network(self, prefix: str, output: str) -> None:
        """Encoder, decoder and the full-resolution head."""
        network = self._network
        ones = (1,) * network.dimensions
        current, skips = "image", []
        for stage, stride in enumerate(network.strides):
            current = self._add_stage(f"{prefix}enc.{stage}", current, network.kernel_sizes[stage], stride)
            skips.append(current)
        skips.pop()
        for level in range(self._levels):
            stage = self._levels - level
            up = self._add_transposed(f"{prefix}up.{level}", current, network.strides[stage])
            joined = f"{prefix}dec.{level}.joined"
            self.nodes.append(helper.make_node("Concat", [up, skips.pop()], [joined], name=joined, axis=1))
            current = self._add_stage(f"{prefix}dec.{level}", joined, network.decoder_kernel(stage - 1), ones)
        unused = tuple(f"{prefix}seg.{level}." for level in range(self._levels - 1))
        self.used.update(name for name in self._weights if name.startswith(unused))
        last = f"{prefix}seg.{self._levels - 1}"
        self._add_convolution(last, current, ones, ones, output=output, bias=network.decoder_biases)

    def _add_stage(self, name: str, source: str, kernel: tuple[int, ...], stride: tuple[int, ...]) -> str:
        ones = (1,) * len(stride)
        first = self._add_block(f"{name}.0", source, kernel, stride)
        second = self._add_block(f"{name}.1", first, kernel, ones)
        if not self._network.residual:
            return second
        self.nodes.append(helper.make_node("Add", [second, first], [f"{name}.sum"], name=f"{name}.sum"))
        return f"{name}.sum"

    def _add_block(self, name: str, source: str, kernel: tuple[int, ...], stride: tuple[int, ...]) -> str:
        convolved = self._add_convolution(f"{name}.0", source, kernel, stride, output=f"{name}.convolved")
        normed, activated = f"{name}.normed", f"{name}.activated"
        scale, shift = self._weight(f"{name}.1.weight"), self._weight(f"{name}.1.bias")
        norm = helper.make_node(
            "InstanceNormalization", [convolved, scale, shift], [normed], name=normed, epsilon=_EPSILON
        )
        self.nodes.extend([norm, helper.make_node("LeakyRelu", [normed], [activated], name=activated, alpha=_SLOPE)])
        return activated

    def _add_convolution(
        self, name: str, source: str, kernel: tuple[int, ...], stride: tuple[int, ...], output: str, bias: bool = True
    ) -> str:
        inputs = [source, self._weight(f"{name}.weight")]
        if bias:
            inputs.append(self._weight(f"{name}.bias"))
        pads = [side // 2 for side in kernel] * 2
        node = helper.make_node(
            "Conv", inputs, [output], name=name, kernel_shape=list(kernel), strides=list(stride), pads=pads
        )
        self.nodes.append(node)
        return output

    def _add_transposed(self, name: str, source: str, stride: tuple[int, ...]) -> str:
        inputs = [source, self._weight(f"{name}.weight")]
        if self._network.decoder_biases:
            inputs.append(self._weight(f"{name}.bias"))
        steps = list(stride)
        node = helper.make_node("ConvTranspose", inputs, [f"{name}.out"], name=name, kernel_shape=steps, strides=steps)
        self.nodes.append(node)
        return f"{name}.out"

    def _weight(self, name: str) -> str:
        """The name under which a weight can be used as float32."""
        if name not in self._weights:
            raise ValueError(f"weight {name} is missing")
        self.used.add(name)
        array = np.ascontiguousarray(self._weights[name])
        self.initializers.append(numpy_helper.from_array(array, name))
        if array.dtype == np.float32:
            return name
        cast = f"{name}.float32"
        self.nodes.append(helper.make_node("Cast", [name], [cast], name=cast, to=TensorProto.FLOAT))
        return cast
