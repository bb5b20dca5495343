"""Instance normalisation in OpenVINO whose sums keep their precision over large maps.

OpenVINO's own kernel (``MVN``) adds a map's voxels one after the other in float32. Where most of them are equal, as
air is, the roundings of a million additions all go one way: logits differed from PyTorch's by 0.05 in such a window.
"""

from math import prod
from typing import Any

_LARGE_MAP = 2**16  # voxels; the sums over smaller ones are exact enough, and their layers many
_LONGEST_BOX = 8  # voxels an axis whose mean is taken first


def use_exact_sums(model: Any) -> None:
    """Replaces ``MVN`` on large maps, in place, by means of means over small boxes.

    Args:
        model: an ``openvino.Model`` of fixed shapes, as read from ONNX.
    """
    for node in model.get_ops():
        if not _is_instance_norm_of_large_map(node):
            continue
        exact = _normalised(node.input_value(0), tuple(node.get_output_shape(0)), node.get_attributes()["eps"])
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(exact.output(0))
    model.validate_nodes_and_infer_types()


def _is_instance_norm_of_large_map(node: Any) -> bool:
    if node.get_type_name() != "MVN":
        return False
    shape = tuple(node.get_output_shape(0))
    axes: list[int] = node.input_value(1).get_node().get_data().tolist()
    return axes == list(range(2, len(shape))) and prod(shape[2:]) >= _LARGE_MAP


def _normalised(image: Any, shape: tuple[int, ...], epsilon: float) -> Any:
    """(image - mean) / sqrt(variance + epsilon) over all but the first two axes."""
    import openvino.opset13 as ops

    box = list(_box(shape))
    none = [0] * len(box)
    axes = ops.constant(list(range(2, len(shape))), dtype="int64")

    def mean(values: Any) -> Any:
        boxes = ops.avg_pool(values, box, none, none, box, exclude_pad=True)
        return ops.reduce_mean(boxes, axes, keep_dims=True)

    centred = ops.subtract(image, mean(image))
    variance = mean(ops.multiply(centred, centred))
    deviation = ops.sqrt(ops.add(variance, ops.constant(epsilon, dtype="float32")))
    return ops.divide(centred, deviation)


def _box(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The largest box that a map can be cut into without a rest."""
    return tuple(max(n for n in range(1, _LONGEST_BOX + 1) if size % n == 0) for size in shape[2:])
