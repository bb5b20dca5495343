"""What the fuzzer's inputs run through: a predictor whose answer is known, and plans that take every way."""

from dataclasses import replace
from typing import Any

import numpy as np

from app.options import Options
from app.plan import Plan, parse_plan
from app.volume import Float32Array
from tools.hostile.bundles import tiny_plan_text

LABEL = 2


class Finding(Exception):
    """The app did what it must not do."""


class ConstantPredictor:
    """Says ``LABEL`` for every voxel, and objects to input that no network could use."""

    backend, device, precision = "constant", "cpu", "fp32"

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        if not np.all(np.isfinite(tile)):
            raise Finding("the network was given numbers that are not finite")
        logits = np.zeros((self._classes, *tile.shape), dtype=np.float32)
        logits[LABEL] = 1
        return logits


def plans() -> tuple[tuple[Plan, Options], ...]:
    """(plan, options): restoration, spacing, crop, interpolation and order of normalisation, each in every way."""
    plan = parse_plan(tiny_plan_text(), "plan.json")
    bounded = replace(plan, spacing=replace(plan.spacing, enforce="resample", largest_grid_zyx=(48, 48, 48)))
    cubic: dict[str, Any] = {"image_order": 3, "separate_z_above": 3.0, "clip_overshoot": True}
    nnunet = replace(
        plan,
        interpolation=replace(plan.interpolation, **cubic),
        crop_to_nonzero=True,
        intensity=replace(plan.intensity, normalise="before_resampling"),
    )
    cleaning = replace(
        bounded, postprocessing=replace(plan.postprocessing, largest_component=plan.labels), transpose_forward=(2, 0, 1)
    )
    return (
        (bounded, Options("fastest", "resample")),
        (bounded, Options("normal", "resample", crop="body")),
        (plan, Options("normal", "off")),
        (plan, Options("fastest", "header")),
        (nnunet, Options("normal", "off")),
        (cleaning, Options("fastest", "resample")),
    )
