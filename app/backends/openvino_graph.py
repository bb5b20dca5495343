"""What the rewriters of OpenVINO's graphs share."""

from typing import Any

import numpy as np
import numpy.typing as npt


def replace_result(node: Any, value: Any) -> None:
    """Makes all that read the only result of a node read another value."""
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(value)


def readers(value: Any) -> list[Any]:
    """The nodes that read the numbers of a value, not its shape alone."""
    nodes = [reader.get_node() for reader in value.get_target_inputs()]
    return [node for node in nodes if node.get_type_name() != "ShapeOf"]


def constant_data(value: Any) -> npt.NDArray[np.float32] | None:
    """The numbers of a constant, converted, reshaped or split as the graph says; None of what is not one.

    None, too, of other types than half and single precision: of bf16, say, OpenVINO's arrays are not the numbers.
    """
    node, kind = value.get_node(), value.get_node().get_type_name()
    if not is_float(value):
        return None
    if kind == "Constant":
        return np.array(node.get_data(), dtype=np.float32)
    data = constant_data(node.input_value(0)) if kind in ("Convert", "Reshape", "VariadicSplit") else None
    if data is None or kind == "Convert":
        return data
    if kind == "Reshape":
        return data.reshape(tuple(node.get_output_shape(0)))
    axis = node.input_value(1).get_node()
    if axis.get_type_name() != "Constant":
        return None
    along = int(axis.get_data().reshape(-1)[0])
    lengths = [output.get_shape()[along] for output in node.outputs()]
    return np.split(data, np.cumsum(lengths)[:-1], along)[int(value.get_index())]


def is_float(value: Any) -> bool:
    """Whether it is in half or single precision, which NumPy reads as OpenVINO does."""
    return value.get_element_type().get_type_name() in ("f16", "f32")
