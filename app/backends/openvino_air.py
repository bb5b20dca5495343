"""Air as bf16 holds it.

The HU of air, cut off by the plan, fill much of a window with one number. Rounded to bf16 it is wrong everywhere by the
same 0.3 %, say, which no average removes: the first normalisation moves by it, and with it every border of an organ.
Convolutions that are normalised take any scale, so the whole window is given one at which air is not rounded.
"""

from typing import Any

import numpy as np

from app.backends.openvino_graph import readers
from app.backends.openvino_norm import is_instance_norm


def scale_for_air(model: Any, air: float) -> float:
    """What a window's values are to be multiplied with before they become bf16: near 1, at most 1/256 away.

    1 for a network that does not begin with convolutions under instance normalisation, whose logits it would change.

    Args:
        model: an ``openvino.Model`` as read from ONNX, with one input.
        air: the value of air in a window, ``plan.intensity.normalised(-1024)``.
    """
    if not air or not all(_is_normalised_convolution(reader) for reader in readers(model.input())):
        return 1.0
    return _in_bf16(air) / air


def _is_normalised_convolution(node: Any) -> bool:
    """Whether it is a convolution whose sums, with or without a bias, are normalised and go nowhere else."""
    if node.get_type_name() != "Convolution":
        return False
    return all(is_instance_norm(reader) or _is_normalised_bias(reader) for reader in readers(node.output(0)))


def _is_normalised_bias(node: Any) -> bool:
    if node.get_type_name() != "Add":
        return False
    shape, dimensions = list(node.get_input_shape(1)), len(node.get_output_shape(0)) - 2
    if any(length > 1 for length in shape[-dimensions:]):  # one value for each channel, however many axes it has
        return False
    bias = node.input_value(1).get_node()
    while bias.get_type_name() in ("Convert", "Reshape"):
        bias = bias.input_value(0).get_node()
    return bias.get_type_name() == "Constant" and all(map(is_instance_norm, readers(node.output(0))))


def _in_bf16(value: float) -> float:
    """The nearest number with 8 significant bits, those of bf16; of two as near the even one."""
    mantissa, exponent = np.frexp(value)
    return float(np.ldexp(np.rint(mantissa * 2**8), exponent - 8))
