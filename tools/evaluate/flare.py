"""FLARE's rules: which organs, which tolerances, and two ways to score them, ``OFFICIAL`` and ``CORRECTED``.

``OFFICIAL`` gives the organisers' numbers with every quirk of their script; ``PRESETS`` has those of each year:

1. **Both empty is perfect.** An organ in neither label map gets 1 and 1, which lifts the mean of scans that show less.
2. **One empty is nothing.** 0 and 0, however small the other is.
3. **Reference slices only.** Aorta (5), inferior vena cava (6) and esophagus (10) run out of the annotated range, so
   only the slices z_min to z_max of the reference count. What lies beyond is cut off, and the cut is surface of both.
4. **The top slice is dropped.** That range is half open: z_max itself is not scored.
5. **A single slice breaks it.** Half open, one slice is none: the script stops with an error if the prediction has the
   organ anywhere (if not, rule 2 comes first; in FLARE22's script it does not). There is no official number, so there
   is none here: both values are None, with a note.
6. **z is the third stored axis,** whatever it is in the patient.
7. **A low DSC has no NSD.** Below 0.2 NSD is 0, though surfaces may be close. This is FLARE24's script (tasks 2 and
   3) and ``OFFICIAL``; FLARE23's has 0.1 and FLARE22's no such rule.
8. **Spacing is the reference's pixdim,** float32 and without its unit, not the affine's. 5 mm in the one may be
   5.0000005 mm in the other, and a distance of exactly the tolerance counts.
9. **Four digits.** Each value is rounded before anything is averaged.
10. **No geometry.** Arrays are compared as they are stored; see ``--ignore-geometry``.
11. **A tumour is no organ.** FLARE23 scores label 14 as well (2 mm) and leaves it out of the mean over organs.

``CORRECTED`` is the same measurement with what is accidental taken away: an organ in neither label map has no score
(None, left out of means) instead of 1; slices run along the patient's long axis and include the top one; NSD is what
it is at any DSC; spacing is the affine's, and a distance counts up to 0.0001 mm above the tolerance so that rounding
in headers decides nothing; nothing is rounded. Rule 2 and the restriction to the reference's slices stay: they are
decisions, not accidents.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from app.volume import LabelArray, Vector
from tools.evaluate.metrics import Box, LabelPair, dice, surface_dice
from tools.evaluate.presets import CORRECTED, FLARE_ORGANS, OFFICIAL, Organ, Rules

__all__ = [  # with what presets.py has, which reads as one with it
    "CORRECTED",
    "FLARE_ORGANS",
    "IN_NEITHER",
    "NO_OFFICIAL_NUMBER",
    "OFFICIAL",
    "Organ",
    "Rules",
    "Score",
    "compared_box",
    "rules_as_json",
    "score_case",
    "score_pair",
]

NO_OFFICIAL_NUMBER = "the reference has it on a single slice, where the organisers' script stops with an error"
IN_NEITHER = "in neither label map"


@dataclass(frozen=True)
class Score:
    """Both metrics of one organ in one case, 0 to 1; None is missing, which is not 0. ``note`` says why."""

    dsc: float | None
    nsd: float | None
    note: str | None = None


def score_case(prediction: LabelArray, reference: LabelArray, spacing_zyx_mm: Vector, rules: Rules) -> dict[str, Score]:
    """The scores of one case by organ name.

    Args:
        prediction: uint8 (z, y, x), labels of ``rules.organs``.
        reference: uint8 (z, y, x), on the same grid.
        spacing_zyx_mm: of that grid.
        rules: ``OFFICIAL`` or ``CORRECTED``.

    Raises:
        ValueError: shapes differ or a label belongs to no organ.
    """
    return score_pair(LabelPair(prediction, reference, rules.largest_label), spacing_zyx_mm, rules)


def score_pair(pair: LabelPair, spacing_zyx_mm: Vector, rules: Rules, slice_axis: int = 0) -> dict[str, Score]:
    """``score_case`` for a pair that several rules look at; slices are counted along ``slice_axis``."""
    return {organ.name: _score_organ(pair, organ, spacing_zyx_mm, rules, slice_axis) for organ in rules.organs}


def rules_as_json(rules: Rules) -> Mapping[str, object]:
    """The rules' switches for the record; organs are recorded apart."""
    return {key: value for key, value in vars(rules).items() if key not in ("name", "organs")}


def compared_box(pair: LabelPair, organ: Organ, rules: Rules, slice_axis: int) -> Box:
    """The part of the grid that an organ is scored in; empty if its slices are none.

    One of the label maps must have the organ. An aorta in slices 3 to 5 of the reference and 1 to 9 of the prediction
    is scored in 3 and 4 officially, in 3 to 5 by ``corrected``.
    """
    box, in_reference = pair.joint_box(organ.label), pair.reference_box(organ.label)
    if not (organ.reference_slices_only and in_reference):
        return box
    start, stop = in_reference[slice_axis].start, in_reference[slice_axis].stop
    cut = slice(start, stop if rules.includes_top_slice else stop - 1)
    first, second, third = (cut if axis == slice_axis else whole for axis, whole in enumerate(box))
    return (first, second, third)


def _score_organ(pair: LabelPair, organ: Organ, spacing_zyx_mm: Vector, rules: Rules, slice_axis: int) -> Score:
    in_prediction, in_reference = pair.prediction_box(organ.label), pair.reference_box(organ.label)
    if not in_prediction and not in_reference:
        return Score(rules.both_empty, rules.both_empty, None if rules.both_empty is not None else IN_NEITHER)
    if not in_reference or (rules.missed_before_cut and not in_prediction):
        return Score(0.0, 0.0)
    box = compared_box(pair, organ, rules, slice_axis)
    if box[slice_axis].start == box[slice_axis].stop:
        return Score(None, None, NO_OFFICIAL_NUMBER)
    prediction, reference = pair.masks(organ.label, box)
    dsc = dice(prediction, reference)
    assert dsc is not None  # the reference has voxels on its own first slice
    nsd = 0.0
    if prediction.any() and dsc >= rules.no_nsd_below_dsc:
        surfaces = pair.surfaces(organ.label, box, spacing_zyx_mm, within_mm=organ.tolerance_mm + 1)
        nsd = surface_dice(surfaces, organ.tolerance_mm + rules.tolerance_slack_mm)
    return Score(_rounded(dsc, rules.digits), _rounded(nsd, rules.digits))


def _rounded(value: float, digits: int | None) -> float:
    """Numpy's rounding, like the organisers' numpy scalars: half to even after scaling."""
    return value if digits is None else float(np.round(value, digits))
