"""Large maps in OpenVINO as slabs, so that a layer takes no more memory than the map that it reads, or makes.

A layer holds its input and its output, and in a decoder what the encoder kept: three maps of 280 MiB at full resolution
in the paper's network. Of slabs along the first axis of space, each is let go as soon as the last layer that wants it
has run, and OpenVINO gives its place to the next. A convolution over a slab reads the planes beside it, so no voxel is
calculated twice, and each is the sum that it was.
"""

from collections.abc import Callable
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from app.backends.openvino_graph import replace_result
from app.backends.openvino_norm import is_instance_norm, normalised

LARGE_MAP_BYTES = 2**27
SLAB_BYTES = 20 * 2**20  # thinner ones take less memory, but each has layers of its own

_MOST_READ_BYTES = 4 * SLAB_BYTES
_FLOAT = 4


def cut_large_maps(model: Any) -> None:
    """Replaces, in place, the layers that make or read large maps by layers of slabs.

    Layers that cannot be cut get the whole map, put together from its slabs.

    Args:
        model: an ``openvino.Model`` in float32, with fixed shapes, as read from ONNX.
    """
    maps: dict[int, _Slabs] = {}  # by the node that made the whole map
    for node in model.get_ordered_ops():
        values = node.input_values()
        is_large = node.get_output_size() == 1 and _bytes(node.output(0)) >= LARGE_MAP_BYTES
        if not is_large and not any(_id(value) in maps for value in values):
            continue
        if node.get_type_name() == "ShapeOf":
            replace_result(node, _constant_shape(node))
            continue
        cut = _LAYERS.get(node.get_type_name())
        found = cut(node, [maps.get(_id(value)) or _Slabs([value]) for value in values]) if cut else None
        if found is None:
            for port, value in enumerate(values):
                if _id(value) in maps:
                    node.input(port).replace_source_output(maps[_id(value)].whole())
        elif is_large:
            maps[_id(node.output(0))] = found
        else:
            replace_result(node, found.whole())
    model.validate_nodes_and_infer_types()


class _Slabs:
    """A map as consecutive slabs along its axis 2; a constant as a single one."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self._borders = [0]
        for part in parts:
            shape = part.get_shape()
            self._borders.append(self._borders[-1] + (shape[2] if len(shape) > 3 else 1))

    @property
    def length(self) -> int:
        """Planes along axis 2; 1 of what has no channels."""
        return self._borders[-1]

    @property
    def total_bytes(self) -> int:
        """Of all slabs, in float32."""
        return sum(map(_bytes, self.parts))

    def varies_along_axis_2(self, rank: int) -> bool:
        """Whether it does so when it is broadcast to this rank, last axis to last axis."""
        shape = list(self.parts[0].get_shape())
        if len(shape) == rank:
            return self.length != 1
        axis = 2 - rank + len(shape)
        return axis >= 0 and shape[axis] != 1

    def planes(self, start: int, stop: int) -> Any:
        """The planes from start to stop, copied unless they are a slab."""
        import openvino.opset13 as ops

        pieces = []
        for part, first, end in zip(self.parts, self._borders[:-1], self._borders[1:], strict=True):
            low, high = max(start, first), min(stop, end)
            if (low, high) == (first, end):
                pieces.append(part)
            elif low < high:
                pieces.append(ops.slice(part, [low - first], [high - first], [1], [2]).output(0))
        return pieces[0] if len(pieces) == 1 else ops.concat(pieces, 2).output(0)

    def whole(self) -> Any:
        """All planes."""
        return self.planes(0, self.length)


def _cuts(node: Any, inputs: list[_Slabs], multiple: int = 1) -> list[tuple[int, int]]:
    """(first plane, end) of the slabs of a layer's result, as thick as a multiple, each made of a few slabs at most.

    Not always of one: the planes that it reads beside it are kept for the layer that wants them next, in the decoder.
    32 maps of 112 x 160 x 128 voxels are 280 MiB: 14 slabs of 8 planes.
    """
    planes = node.get_output_shape(0)[2]
    read = max(value.total_bytes for value in inputs)
    thickness = ceil(planes / ceil(max(_bytes(node.output(0)) / SLAB_BYTES, read / _MOST_READ_BYTES)))
    thickness = ceil(thickness / multiple) * multiple
    return [(start, min(start + thickness, planes)) for start in range(0, planes, thickness)]


def _convolution(node: Any, inputs: list[_Slabs]) -> _Slabs | None:
    import openvino.opset13 as ops

    how = node.get_attributes()
    image, kernel = inputs[0], node.input_value(1)
    size, stride = kernel.get_shape()[2], how["strides"][0]
    before, after = how["pads_begin"][0], how["pads_end"][0]
    if how["auto_pad"] != "explicit" or how["dilations"][0] != 1 or max(before, after) >= size:
        return None
    if _ends_in_results(node) and _bytes(node.output(0)) > image.total_bytes:
        return None  # logits of many classes: putting them together would take them twice
    parts = []
    for start, stop in _cuts(node, inputs):
        low, high = start * stride - before, (stop - 1) * stride - before + size
        part = ops.convolution(
            image.planes(max(0, low), min(image.length, high)),
            kernel,
            how["strides"],
            [max(0, -low), *how["pads_begin"][1:]],
            [max(0, high - image.length), *how["pads_end"][1:]],
            how["dilations"],
        )
        parts.append(part.output(0))
    return _Slabs(parts)


def _ends_in_results(node: Any) -> bool:
    readers = node.output(0).get_target_inputs()
    return all(reader.get_node().get_type_name() == "Result" for reader in readers)


def _transposed_convolution(node: Any, inputs: list[_Slabs]) -> _Slabs | None:
    """Where kernel and stride are the same, so that each plane comes from one plane."""
    import openvino.opset13 as ops

    how = node.get_attributes()
    image, kernel = inputs[0], node.input_value(1)
    stride = how["strides"][0]
    is_padded = how["auto_pad"] != "explicit" or any(how["pads_begin"] + how["pads_end"] + how["output_padding"])
    if is_padded or set(how["dilations"]) != {1} or kernel.get_shape()[2] != stride or node.get_input_size() != 2:
        return None
    parts = [
        ops.convolution_backprop_data(image.planes(start // stride, stop // stride), kernel, how["strides"]).output(0)
        for start, stop in _cuts(node, inputs, multiple=stride)
    ]
    return _Slabs(parts)


def _instance_norm(node: Any, inputs: list[_Slabs]) -> _Slabs | None:
    if not is_instance_norm(node):
        return None
    parts = [inputs[0].planes(start, stop) for start, stop in _cuts(node, inputs)]
    return _Slabs(normalised(parts, node.get_attributes()["eps"]))


def _voxelwise(node: Any, inputs: list[_Slabs]) -> _Slabs | None:
    """Of maps, and of values that are the same in all planes: one for each channel, say."""
    import openvino.opset13 as ops

    shape = node.get_output_shape(0)
    varies = [value.varies_along_axis_2(len(shape)) for value in inputs]
    if any(v and value.length != shape[2] for v, value in zip(varies, inputs, strict=True)):
        return None
    make = getattr(ops, node.get_type_name().lower())
    parts = []
    for planes in _cuts(node, inputs):
        operands = [
            value.planes(*planes) if v else _own_constant(value.parts[0])
            for v, value in zip(varies, inputs, strict=True)
        ]
        parts.append(make(*operands).output(0))
    return _Slabs(parts)


def _own_constant(value: Any) -> Any:
    """A copy of a constant: OpenVINO adds a bias within the convolution before it only if no other layer reads it."""
    import openvino.opset13 as ops

    found = _constant_data(value.get_node())
    return value if found is None else ops.constant(found).output(0)


def _constant_data(node: Any) -> npt.NDArray[Any] | None:
    """What a node gives if it is a constant, converted or reshaped to a shape that is known; None if it is not."""
    kind = node.get_type_name()
    if kind == "Constant":
        return np.array(node.get_data())
    if kind not in ("Convert", "Reshape"):
        return None
    data = _constant_data(node.input_value(0).get_node())
    if data is None:
        return None
    if kind == "Reshape":
        return data.reshape(tuple(node.get_output_shape(0)))
    return data.astype(node.get_output_element_type(0).to_dtype())


_LAYERS: dict[str, Callable[[Any, list[_Slabs]], _Slabs | None]] = {
    "Convolution": _convolution,
    "ConvolutionBackpropData": _transposed_convolution,
    "MVN": _instance_norm,
    "Add": _voxelwise,
    "Multiply": _voxelwise,
    "PRelu": _voxelwise,
}


def _id(value: Any) -> int:
    """Of the node behind a value; layers have one result."""
    number: int = value.get_node().get_instance_id()
    return number


def _bytes(value: Any) -> int:
    shape: list[int] = list(value.get_shape())
    return _FLOAT * prod(shape)


def _constant_shape(node: Any) -> Any:
    import openvino.opset13 as ops

    return ops.constant(list(node.get_input_shape(0)), node.get_output_element_type(0)).output(0)
