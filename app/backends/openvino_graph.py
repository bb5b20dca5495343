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


def constant_data(value: Any) -> npt.NDArray[Any] | None:
    """The numbers of a constant, converted, reshaped or split as the graph says; None of what is not constant."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return np.array(node.get_data())
    if kind not in ("Convert", "Reshape", "VariadicSplit"):
        return None
    data = constant_data(node.input_value(0))
    if data is None:
        return None
    if kind == "Reshape":
        return data.reshape(tuple(node.get_output_shape(0)))
    if kind == "VariadicSplit":
        axis = int(node.input_value(1).get_node().get_data())
        lengths = [output.get_shape()[axis] for output in node.outputs()]
        data = np.split(data, np.cumsum(lengths)[:-1], axis)[int(value.get_index())]
    else:
        data = data.astype(value.get_element_type().to_dtype())
    return data
