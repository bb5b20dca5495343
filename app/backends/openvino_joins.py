"""Convolutions over joined channels in OpenVINO without the joined copy.

A U-Net's decoder joins what comes up with what the encoder kept, and convolves both. At full resolution the copy that
OpenVINO makes of the two is the largest array of a window.
"""

from typing import Any

from app.backends.openvino_graph import replace_result


def convolve_parts_of_joins(model: Any) -> None:
    """Replaces, in place, the convolution of joined channels by the sum of one convolution for each part.

    It is linear, so only the order of summation changes; OpenVINO adds the second to the first without a copy.

    Args:
        model: an ``openvino.Model`` of fixed shapes, as read from ONNX.
    """
    for node in model.get_ops():
        if node.get_type_name() != "Convolution" or not _is_join(node.input_value(0).get_node()):
            continue
        whole = _sum_over_parts(node, node.input_value(0).get_node())
        replace_result(node, whole.output(0))
    model.validate_nodes_and_infer_types()


def _is_join(node: Any) -> bool:
    kind: str = node.get_type_name()
    return kind == "Concat" and int(node.get_attributes()["axis"]) == 1


def _sum_over_parts(convolution: Any, join: Any) -> Any:
    import openvino.opset13 as ops

    how = convolution.get_attributes()
    parts = join.input_values()
    channels = [part.get_shape()[1] for part in parts]
    kernels = ops.variadic_split(convolution.input_value(1), ops.constant(1, dtype="int64"), channels).outputs()
    total, *others = (
        ops.convolution(
            part, kernel, how["strides"], how["pads_begin"], how["pads_end"], how["dilations"], how["auto_pad"]
        )
        for part, kernel in zip(parts, kernels, strict=True)
    )
    for other in others:
        total = ops.add(total, other)
    return total
