"""Instance normalisation in OpenVINO whose sums keep their precision over large maps.

OpenVINO's own kernel (``MVN``) adds a map's voxels one after the other in float32. Where most of them are equal, as
air is, the roundings of a million additions all go one way: logits differed from PyTorch's by 0.05 in such a window.
"""

from math import prod
from typing import Any

from app.backends.openvino_graph import replace_result

_LARGE_MAP = 2**12  # voxels; the sums over smaller ones are exact enough
_FEW_MEANS = 2**9  # that are added one after the other
_LONGEST_BOX = 5  # voxels an axis, whose mean is taken first: of 8 an axis the sums are less exact


def use_exact_sums(model: Any) -> None:
    """Replaces ``MVN`` on large maps, in place, by means of means over small boxes.

    Args:
        model: an ``openvino.Model`` of fixed shapes, as read from ONNX.
    """
    for node in model.get_ops():
        if not is_instance_norm(node) or prod(node.get_output_shape(0)[2:]) < _LARGE_MAP:
            continue
        replace_result(node, _normalised(node.input_value(0), node.get_attributes()["eps"]))
    model.validate_nodes_and_infer_types()


def is_instance_norm(node: Any) -> bool:
    """Whether a node normalises each channel over all of its voxels."""
    if node.get_type_name() != "MVN":
        return False
    axes: list[int] = node.input_value(1).get_node().get_data().tolist()
    return axes == list(range(2, len(node.get_output_shape(0))))


def _normalised(image: Any, epsilon: float) -> Any:
    """(image - mean) / sqrt(variance + epsilon) of each channel.

    As image * factor - mean * factor, which OpenVINO calculates in one pass with what comes after it, and so is the
    squared distance from the mean: the centred image would be one more to be written and read.
    """
    import openvino.opset13 as ops

    centre = _mean(image)
    variance = ops.add(_mean(ops.squared_difference(image, centre).output(0)), ops.constant(epsilon, dtype="float32"))
    factor = ops.power(variance, ops.constant(-0.5, dtype="float32"))
    return ops.subtract(ops.multiply(image, factor), ops.multiply(centre, factor)).output(0)


def _mean(image: Any) -> Any:
    """(1, channels, 1, ...): mean of each channel, of means over boxes, of boxes of boxes, until there are few."""
    import openvino.opset13 as ops

    shape = tuple(image.get_shape())
    while prod(shape[2:]) > _FEW_MEANS and prod(box := _box(shape)) > 1:
        none = [0] * len(box)
        image = ops.avg_pool(image, list(box), none, none, list(box), exclude_pad=True).output(0)
        shape = tuple(image.get_shape())
    return ops.reduce_mean(image, ops.constant(list(range(2, len(shape))), dtype="int64"), keep_dims=True)


def _box(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The largest box that a map can be cut into without a rest."""
    return tuple(max(n for n in range(1, _LONGEST_BOX + 1) if size % n == 0) for size in shape[2:])
