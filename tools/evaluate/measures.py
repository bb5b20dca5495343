"""HD95 and volume error of each organ: what the organisers do not compute and papers report.

Both look at what ``corrected`` looks at: the reference's slices of aorta, vena cava and esophagus, everything of the
other organs. What is not defined is None with a note, never 0:

=================  =============  ==============
organ in           HD95           volume error
=================  =============  ==============
both               mm             relative
neither            None           None
reference alone    None           -1 (-100 %)
prediction alone   None           None
=================  =============  ==============

So a method that misses an organ has fewer HD95, not worse ones: read HD95 beside its number of cases and the DSC, where
a missed organ is 0.
"""

from dataclasses import dataclass

import numpy as np

from app.volume import Vector
from tools.evaluate.flare import IN_NEITHER, compared_box
from tools.evaluate.metrics import LabelPair, hausdorff_95_mm
from tools.evaluate.presets import Organ, Rules

ONLY_IN_REFERENCE = "only in the reference"
ONLY_IN_PREDICTION = "only in the prediction"


@dataclass(frozen=True)
class Measures:
    """Of one organ in one case; None is missing, which is not 0, and ``note`` says why.

    Attributes:
        hd95_mm: see ``metrics.hausdorff_95_mm``.
        volume_error: (prediction - reference) / reference: 30 ml instead of 40 ml give -0.25.
        prediction_ml, reference_ml: the volumes in the slices that count.
    """

    hd95_mm: float | None
    volume_error: float | None
    prediction_ml: float
    reference_ml: float
    note: str | None = None


def measure_pair(
    pair: LabelPair, spacing_zyx_mm: Vector, voxel_volume_ml: float, rules: Rules, slice_axis: int = 0
) -> dict[str, Measures]:
    """The measures of one case by organ name.

    Args:
        pair: prediction and reference.
        spacing_zyx_mm: of their grid.
        voxel_volume_ml: likewise.
        rules: say which slices count.
        slice_axis: along which slices are counted.
    """
    return {
        organ.name: _measure(pair, organ, spacing_zyx_mm, voxel_volume_ml, rules, slice_axis) for organ in rules.organs
    }


def _measure(
    pair: LabelPair, organ: Organ, spacing_zyx_mm: Vector, voxel_volume_ml: float, rules: Rules, slice_axis: int
) -> Measures:
    if not pair.prediction_box(organ.label) and not pair.reference_box(organ.label):
        return Measures(None, None, 0.0, 0.0, IN_NEITHER)
    box = compared_box(pair, organ, rules, slice_axis)
    found, true = (int(np.count_nonzero(mask)) for mask in pair.masks(organ.label, box))
    volumes_ml = found * voxel_volume_ml, true * voxel_volume_ml
    if not true:
        return Measures(None, None, *volumes_ml, ONLY_IN_PREDICTION)
    error = (found - true) / true
    if not found:
        return Measures(None, error, *volumes_ml, ONLY_IN_REFERENCE)
    surfaces = pair.surfaces(organ.label, box, spacing_zyx_mm, within_mm=np.inf)
    return Measures(hausdorff_95_mm(surfaces), error, *volumes_ml)
