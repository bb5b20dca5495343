"""A transposed convolution and the convolution after it in OpenVINO as one transposed convolution.

Nothing but a bias stands between the two in a U-Net's decoder, so both together are linear: 2 x 2 x 2 and 3 x 3 x 3
kernels make one of 4 x 4 x 4 at stride 2. A voxel of the result is then a sum over 2 x 2 x 2 voxels of the small map
instead of 3 x 3 x 3 of the large one, 0.55 of the multiplications where channels halve, and the large map, with one
from the encoder and the result the peak of a window's memory, is not made.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from app.backends.openvino_graph import constant_data, readers, replace_result
from app.volume import Float32Array

_LEAST_GAIN = 30.0  # multiplications that a window saves for each one that composing the kernels takes


def compose_upsampling(model: Any) -> None:
    """Replaces, in place, a transposed convolution and the convolution after it by one, where a window gains by it.

    Voxels stay the same but for rounding, at the border, too: beyond it both see zeros.

    Args:
        model: an ``openvino.Model`` of fixed shapes, as read from ONNX, joins already taken apart.
    """
    for node in model.get_ops():
        if node.get_type_name() != "Convolution" or not _is_plain(node):
            continue
        up = _upsampling(node.input_value(0))
        if up is None or not _is_worth_it(up.node, node):
            continue
        composed = _composed(up, node)
        if composed is not None:
            replace_result(node, composed)
    model.validate_nodes_and_infer_types()


def composed_kernel(up: Float32Array, kernel: Float32Array) -> Float32Array:
    """The kernel of the transposed convolution that does what one with ``up`` and a convolution after it do.

    With u[j] = sum over i of x[i] up[j - stride i] and y[o] = sum over t of kernel[t] u[o + t - pad],
    y[o] = sum over i of x[i] composed[o + size - 1 - pad - stride i], where
    composed[m] = sum over t of kernel[t] up[m + t + 1 - size].

    Args:
        up: (channels below, channels between, ...) of any size.
        kernel: (channels above, channels between, ...) of any size.

    Returns:
        (channels below, channels above, ...), as long as both together less 1.
    """
    up_size, size = up.shape[2:], kernel.shape[2:]
    up_taps, taps = np.moveaxis(up, (0, 1), (-2, -1)), np.moveaxis(kernel, (1, 0), (-2, -1))
    length = [a + b - 1 for a, b in zip(up_size, size, strict=True)]
    composed = np.zeros((*length, up.shape[0], kernel.shape[0]), np.float32)
    for at in np.ndindex(up_size):
        for tap in np.ndindex(size):
            place = tuple(a + side - 1 - t for a, side, t in zip(at, size, tap, strict=True))
            composed[place] += up_taps[at] @ taps[tap]
    return np.ascontiguousarray(np.moveaxis(composed, (-2, -1), (0, 1)))


@dataclass(frozen=True)
class _Upsampling:
    """A transposed convolution whose kernel is its stride, and what is added to its channels."""

    node: Any
    bias: Float32Array | None


def _upsampling(value: Any) -> _Upsampling | None:
    """What makes a value, if it is an upsampling and nothing else reads it."""
    node, bias = value.get_node(), None
    if node.get_type_name() == "Add":
        bias = constant_data(node.input_value(1))
        shape = list(node.get_output_shape(0))
        of_channels = [1, shape[1], *[1] * (len(shape) - 2)]
        if bias is None or [1] * (len(shape) - bias.ndim) + list(bias.shape) != of_channels:
            return None
        if list(node.get_input_shape(0)) != shape or len(readers(node.output(0))) > 1:
            return None
        node = node.input_value(0).get_node()
    if node.get_type_name() != "ConvolutionBackpropData" or node.get_input_size() != 2:
        return None
    how = node.get_attributes()
    is_padded = how["auto_pad"] != "explicit" or any([*how["pads_begin"], *how["pads_end"], *how["output_padding"]])
    is_plain = not is_padded and set(how["dilations"]) == {1} and _size(node) == list(how["strides"])
    return _Upsampling(node, bias) if is_plain and len(readers(node.output(0))) == 1 else None


def _is_plain(convolution: Any) -> bool:
    how = convolution.get_attributes()
    if how["auto_pad"] != "explicit" or set(how["strides"]) != {1} or set(how["dilations"]) != {1}:
        return False
    return all(
        p < side for pads in ("pads_begin", "pads_end") for p, side in zip(how[pads], _size(convolution), strict=True)
    )


def _is_worth_it(up: Any, convolution: Any) -> bool:
    """Whether a window saves much more multiplications than composing the kernels takes."""
    below, between = list(up.get_input_shape(1))[:2]
    above = convolution.get_input_shape(1)[0]
    size, stride = _size(convolution), _size(up)
    taps = prod((side + step - 1) / step for side, step in zip(size, stride, strict=True))
    saved = between * (above * prod(size) + below) - below * above * taps
    cost = below * between * above * prod(size) * prod(stride)
    return bool(prod(convolution.get_output_shape(0)[2:]) * saved > _LEAST_GAIN * cost)


def _composed(up: _Upsampling, convolution: Any) -> Any | None:
    """The result of both; None of kernels that are not constant, and in other precisions than single."""
    import openvino.opset13 as ops

    kernel, up_kernel = constant_data(convolution.input_value(1)), constant_data(up.node.input_value(1))
    image = up.node.input_value(0)
    if kernel is None or up_kernel is None or image.get_element_type().get_type_name() != "f32":
        return None
    if up.bias is not None:  # what it adds is less at the border: of a channel of ones it comes out right everywhere
        ones = np.ones((image.get_shape()[0], 1, *image.get_shape()[2:]), np.float32)
        image = ops.concat([image, ops.constant(ones)], 1).output(0)
        of_ones = np.broadcast_to(up.bias.reshape(1, -1, *[1] * (up_kernel.ndim - 2)), (1, *up_kernel.shape[1:]))
        up_kernel = np.concatenate([up_kernel, of_ones])
    how = convolution.get_attributes()
    return ops.convolution_backprop_data(
        image,
        composed_kernel(up_kernel, kernel),
        up.node.get_attributes()["strides"],
        pads_begin=[side - 1 - pad for side, pad in zip(_size(convolution), how["pads_begin"], strict=True)],
        pads_end=[side - 1 - pad for side, pad in zip(_size(convolution), how["pads_end"], strict=True)],
    ).output(0)


def _size(node: Any) -> list[int]:
    """The sides of a kernel."""
    return list(node.get_input_shape(1))[2:]
