"""Writing a bundle, all files and their hashes."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from app.bundle import ONNX_FILE, PLAN_FILE, SAFETENSORS_FILE, load_bundle, write_hashes
from app.errors import BundleError
from app.plan import Plan
from tools.convert.onnx_graph import Weights, build_onnx


def write_bundle(folder: Path, plan: Plan, weights: Weights, model_card: str) -> None:
    """Writes plan, weights (float16 safetensors), ONNX, model card and hashes.

    Rounding weights to float16 halves the files; both files hold the same rounded values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Contiguous, since safetensors writes memory as it lies: channels-last weights of a training would be scrambled.
    rounded = {name: np.ascontiguousarray(value, dtype=np.float16) for name, value in weights.items()}
    (folder / PLAN_FILE).write_text(json.dumps(asdict(plan), indent=1) + "\n")
    (folder / SAFETENSORS_FILE).write_bytes(save(rounded))
    (folder / ONNX_FILE).write_bytes(build_onnx(plan, rounded))
    (folder / "MODEL_CARD.md").write_text(model_card)
    write_hashes(folder)


def rebuild_onnx(folder: Path) -> None:
    """Writes ``network.onnx`` of a bundle anew from its safetensors, and the hashes.

    Raises:
        BundleError: the bundle is altered or its weights do not fit its plan.
    """
    bundle = load_bundle(folder)
    try:
        content = build_onnx(bundle.plan, load(bundle.read(SAFETENSORS_FILE)))
    except ValueError as error:
        raise BundleError(
            f"{folder / SAFETENSORS_FILE}: {error}; expected the weights of the plan's network"
        ) from error
    (folder / ONNX_FILE).write_bytes(content)
    write_hashes(folder)
