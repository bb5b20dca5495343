"""The tiny bundle of these tools: a 1x1x1 convolution that OpenVINO runs in no time.

Its logits 0, n + 1, 2n + 1, 3n of the normalised n = (HU - 50) / 100 cross at -50, 50 and 150 HU: four tissues.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.bundle import ONNX_FILE, PLAN_FILE, write_hashes

PATCH_SIZE = (16, 16, 16)
_SPACING_MM = 6.0  # of the phantoms of the faults: 245 windows each
_LABELS = ("first", "second", "third")


def tiny_plan_text(spacing_mm: float = 3.0) -> str:
    """The content of its ``plan.json``, for a network grid of this spacing."""
    header = {"in_plane_mm": 0.75, "slice_mm": 0.5, "few_slices": 150, "many_slices": 600, "smallest_factor": 0.8}
    plan = {
        "schema_version": 1,
        "name": "hostile-tiny",
        "labels": _LABELS,
        "orientation": "LPS",
        "mode": "fastest",
        "network": {"features_per_stage": [2, 4], "strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 3]] * 2},
        "intensity": {"clip_hu": [-200, 300], "subtract_hu": 50, "divide_hu": 100},
        "spacing": {
            "target_zyx_mm": [spacing_mm] * 3,
            "enforce": "off",
            "largest_grid_zyx": [400, 320, 320],
            "header": header,
        },
        "interpolation": {"image_order": 1},
        "sliding_window": {
            "patch_size": PATCH_SIZE,
            "tile_step_size": 0.5,
            "gaussian_sigma_scale": 0.125,
            "average": "logits",
            "pad_hu": -1024,
            "mirror_axes": [],
        },
        "postprocessing": {},
    }
    return json.dumps(plan)


def write_bundle(folder: Path) -> Path:
    """Writes the tiny bundle; returns its folder."""
    folder.mkdir(parents=True)
    write_tissue_network(folder / ONNX_FILE, PATCH_SIZE)
    (folder / PLAN_FILE).write_text(tiny_plan_text(_SPACING_MM))
    (folder / "MODEL_CARD.md").write_text("Three thresholds, for `python -m tools.hostile`.\n")
    write_hashes(folder)
    return folder


def write_tissue_network(path: Path, patch_size: tuple[int, ...]) -> None:
    """Writes the convolution as ONNX for tiles of this size, of two or three axes."""
    slopes = np.arange(len(_LABELS) + 1, dtype=np.float32).reshape(-1, 1, *(1 for _ in patch_size))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights", "biases"], ["logits"])],
        "tissues",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, *patch_size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(slopes), *patch_size])],
        [
            numpy_helper.from_array(slopes, "weights"),
            numpy_helper.from_array(np.array([0, 1, 1, 0], np.float32), "biases"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
