"""Kernels in OpenVINO as they are in the graph instead of twice in float32.

OpenVINO keeps the constants of a network in float32, and once more in the order in which its layers read them: 236 MiB
of the paper's 30.8 million weights. As inputs they stay what they are, 59 MiB in the bundle, and each layer converts
and orders its own when it runs: seldom in three dimensions, for each slice in two.
"""

from math import prod
from typing import Any

import numpy as np

from app.backends.openvino_graph import is_float, replace_result

_LARGE_KERNEL = 2**16  # weights; smaller ones are left
_READERS = ("Convolution", "ConvolutionBackpropData")
_RANK = 5  # of kernels in three dimensions


def take_kernels_as_inputs(model: Any) -> list[Any]:
    """Replaces, in place, the large kernels of a network in three dimensions by further inputs.

    Args:
        model: an ``openvino.Model`` as read from ONNX, with one input.

    Returns:
        The values of inputs 1, 2, ...
    """
    import openvino.opset13 as ops

    constants = {}
    for node in model.get_ops():
        if node.get_type_name() in _READERS and len(node.get_input_shape(1)) == _RANK:
            constant = _stored(node.input_value(1).get_node())
            if constant is not None:
                constants[constant.get_friendly_name()] = constant
    values = []
    for constant in constants.values():
        if prod(constant.get_output_shape(0)) < _LARGE_KERNEL:
            continue
        values.append(np.array(constant.get_data()))
        kernel = ops.parameter(constant.get_output_shape(0), constant.get_output_element_type(0))
        replace_result(constant, kernel.output(0))
        model.add_parameters([kernel])
    model.validate_nodes_and_infer_types()
    return values


def _stored(kernel: Any) -> Any | None:
    """The constant behind a kernel that is converted, or split for parts of joined channels; None if there is none."""
    while kernel.get_type_name() in ("Convert", "VariadicSplit"):
        kernel = kernel.input_value(0).get_node()
    return kernel if kernel.get_type_name() == "Constant" and is_float(kernel.output(0)) else None
