"""Does a scan look like CT of an abdomen, the right way up? It is segmented either way; warnings say what looks wrong.

All is judged on a coarse grid of the scan's own voxels, which takes milliseconds. Intensities are judged by fat and
soft tissue, which every patient has; the position by where lungs, spine, liver and spleen lie to each other, which no
header can change. Lungs and spine are found by their HU, liver and spleen by the network, which finds them turned, too.

What this cannot see: a scan turned by less than 90 degrees; one without liver; left and right swapped beside a liver of
more than 4 litres; MR or raw values that spread like HU; another patient's scan. ``tools.plausibility_check`` measures
how far apart good and bad scans are; the limits below lie in its gaps.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from app.components import largest_component, opened_in_slices
from app.orientation import AxisMap, axis_map_to_lps
from app.preprocessing import to_hu
from app.volume import Float32Array, Geometry, LabelArray, Shape, Vector, Volume

Mask = npt.NDArray[np.bool_]

LEAST_TISSUE_SHARE = 0.01  # of all voxels, for fat and for soft tissue each
LEAST_ORGANS_ML = 300.0  # of all organs; ct_009, the dome of a liver, has 417 ml, parts without abdomen up to 27
LEAST_COMPACTNESS = 0.7  # see ``Findings``
TURNED_MM = -10.0  # evidence below this speaks against the header

_GRID_MM = 8.0
_NO_LABEL = 255
_LEAST_VOXELS = 500  # of the coarse grid, a quarter of a litre: in less there need not be fat
_FAT_HU = (-150.0, -30.0)
_SOFT_TISSUE_HU = (0.0, 150.0)
_LUNG_HU = (-950.0, -600.0)
_BODY_ABOVE_HU = -300.0
_BONE_ABOVE_HU = 200.0
_SPINE_REACH_MM = 35.0  # to both sides of the middle: ribs, hips and contrast in kidneys lie further out
_LEAST_LUNG_ML = 100.0
_LEAST_KIDNEY_ML = 30.0
_LEAST_LIVER_ML = 150.0
_MOST_LIVER_ML = 4000.0  # beyond, something else was taken for it, too, and left and right cannot be told


@dataclass(frozen=True)
class Overview:
    """A scan on a coarse grid: z to the head, y to the back, x to the patient's left, as its header says.

    Attributes:
        hu_zyx: float32 (z, y, x) HU of every n-th voxel.
        spacing_zyx_mm: of this grid.
        axis_map: from the stored axes.
        steps_zyx: n along each axis.
    """

    hu_zyx: Float32Array
    spacing_zyx_mm: Vector
    axis_map: AxisMap
    steps_zyx: Shape

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel of this grid."""
        z, y, x = self.spacing_zyx_mm
        return z * y * x / 1000

    def view(self, stored: LabelArray) -> LabelArray:
        """uint8 (z, y, x): a label map on the scan's stored grid, seen on this one."""
        z, y, x = self.steps_zyx
        return self.axis_map.apply(stored)[::z, ::y, ::x]


@dataclass(frozen=True)
class Findings:
    """What was measured; evidence is positive if anatomy and header agree, None if it cannot be told.

    Attributes:
        tissue_share: of all voxels; of fat or of soft tissue, whichever is less. None for a scan of a few voxels.
        organs_ml: all organs.
        compactness: share of the organs' volume that is in the largest part of its organ.
        lungs_above_liver_mm: between the centres, along the header's axis from feet to head.
        liver_above_kidney_mm: likewise, of the right kidney.
        spine_behind_liver_mm: likewise, from front to back.
        liver_right_of_spine_mm: likewise, from left to right, of liver and spleen together: in a mirrored scan the
            network takes some of one for the other.
    """

    tissue_share: float | None
    organs_ml: float
    compactness: float
    lungs_above_liver_mm: float | None = None
    liver_above_kidney_mm: float | None = None
    spine_behind_liver_mm: float | None = None
    liver_right_of_spine_mm: float | None = None


def overview_shape(geometry: Geometry) -> Shape:
    """Voxels (z, y, x) of the overview of a scan."""
    oriented = axis_map_to_lps(geometry).apply_to_geometry(geometry)
    steps = _steps(oriented.spacing_zyx_mm)
    z, y, x = (ceil(length / step) for length, step in zip(oriented.shape_zyx, steps, strict=True))
    return (z, y, x)


def _steps(spacing_zyx_mm: Vector) -> Shape:
    z, y, x = (max(1, round(_GRID_MM / length)) for length in spacing_zyx_mm)
    return (z, y, x)


def look_at(volume: Volume) -> Overview:
    """The overview of a scan: 133 x 444 x 512 voxels of 2.5 x 0.7 x 0.7 mm give 45 x 41 x 47 of 7.5 x 7.7 x 7.7 mm."""
    axis_map = axis_map_to_lps(volume.geometry)
    spacing = axis_map.apply_to_geometry(volume.geometry).spacing_zyx_mm
    z, y, x = _steps(spacing)
    hu = axis_map.apply(volume.voxels)[::z, ::y, ::x].astype(np.float32)
    to_hu(hu, volume)
    return Overview(hu, (spacing[0] * z, spacing[1] * y, spacing[2] * x), axis_map, (z, y, x))


def examine(overview: Overview, label_map: LabelArray, labels: tuple[str, ...], organs_ml: float) -> Findings:
    """The findings on a scan and its label map.

    Args:
        overview: of the scan.
        label_map: uint8 (z, y, x) on the scan's stored grid.
        labels: organ names.
        organs_ml: counted on the stored grid, since the coarse one may miss a small organ.
    """
    seen, voxel_ml = overview.view(label_map), overview.voxel_ml
    values = {organ: label for label, organ in enumerate(labels, start=1)}
    in_largest = sum(int(largest_component(seen == label, diagonal=True).sum()) for label in values.values())
    findings = Findings(_tissue_share(overview.hu_zyx), organs_ml, in_largest / max(1, int(np.count_nonzero(seen))))
    liver = seen == values.get("liver", _NO_LABEL)
    liver_ml = float(np.count_nonzero(liver)) * voxel_ml
    if liver_ml < _LEAST_LIVER_ML:
        return findings
    lungs = _centre_mm(overview, _find_lungs(overview.hu_zyx), _LEAST_LUNG_ML)
    kidney = _centre_mm(overview, seen == values.get("right kidney", _NO_LABEL), _LEAST_KIDNEY_ML)
    parenchyma = _centre_mm(overview, liver | (seen == values.get("spleen", _NO_LABEL)))
    centre, spine = _centre_mm(overview, liver), _spine_centre_mm(overview, liver)
    return replace(
        findings,
        lungs_above_liver_mm=_difference(0, lungs, centre),
        liver_above_kidney_mm=_difference(0, centre, kidney),
        spine_behind_liver_mm=_difference(1, spine, centre),
        liver_right_of_spine_mm=_difference(2, spine, parenchyma) if liver_ml <= _MOST_LIVER_ML else None,
    )


def find_warnings(findings: Findings, labels: tuple[str, ...]) -> list[str]:
    """What a user should know; nothing for a scan of an abdomen, in HU, that lies as its header says."""
    found = []
    if findings.tissue_share is not None and findings.tissue_share < LEAST_TISSUE_SHARE:
        found.append(
            "the voxels do not look like Hounsfield units: "
            f"{findings.tissue_share:.1%} of them are fat ({_FAT_HU[0]:g} to {_FAT_HU[1]:g}) or soft tissue "
            f"({_SOFT_TISSUE_HU[0]:g} to {_SOFT_TISSUE_HU[1]:g}), whichever is less; expected {LEAST_TISSUE_SHARE:.0%} "
            "at least. Is this CT, and calibrated? If not, the label map means nothing"
        )
    if not findings.organs_ml:
        found.append("no organ was found; the label map is empty. Does the scan show the abdomen?")
    if found or "liver" not in labels:  # limits for other organs are not known
        return found
    if findings.organs_ml < LEAST_ORGANS_ML:
        return [
            f"only {findings.organs_ml:.0f} ml of organs were found, expected at least {LEAST_ORGANS_ML:.0f}; "
            "does the scan show the abdomen?"
        ]
    if findings.compactness < LEAST_COMPACTNESS:
        return [
            f"the largest piece of each organ holds only {findings.compactness:.0%} of their volume, expected at least "
            f"{LEAST_COMPACTNESS:.0%}; does the scan show the abdomen, the right way up?"
        ]
    return _position_warnings(findings)


def _position_warnings(findings: Findings) -> list[str]:
    """One for each axis along which anatomy speaks against the header."""
    lungs, kidney = findings.lungs_above_liver_mm, findings.liver_above_kidney_mm
    found = [
        (lungs, "lungs lie {:.0f} mm below the liver; is it upside down (feet first)?"),
        (kidney if lungs is None else None, "right kidney lies {:.0f} mm above the liver; is it upside down?"),
        (findings.spine_behind_liver_mm, "spine lies {:.0f} mm in front of the liver; is it back to front?"),
        (
            findings.liver_right_of_spine_mm,
            "liver lies {:.0f} mm to the left of the spine; are left and right swapped, or is this situs inversus?",
        ),
    ]
    return [
        f"as the header has it, the {text.format(-value)} Check the scan's orientation"
        for value, text in found
        if value is not None and value < TURNED_MM
    ]


def _tissue_share(hu: Float32Array) -> float | None:
    if hu.size < _LEAST_VOXELS:
        return None
    return min(float(np.mean(_between(hu, limits))) for limits in (_FAT_HU, _SOFT_TISSUE_HU))


def _between(hu: Float32Array, limits_hu: tuple[float, float]) -> Mask:
    mask: Mask = (hu >= limits_hu[0]) & (hu < limits_hu[1])
    return mask


def _find_lungs(hu: Float32Array) -> Mask:
    """Lung: its HU, thicker than the skin's blur, with dense tissue in front, behind, left and right; so no table."""
    lungs = opened_in_slices(_between(hu, _LUNG_HU))
    dense = largest_component(opened_in_slices(hu > _BODY_ABOVE_HU), diagonal=True)
    for axis in (1, 2):
        lungs &= np.logical_or.accumulate(dense, axis=axis)
        lungs &= np.flip(np.logical_or.accumulate(np.flip(dense, axis), axis=axis), axis)
    return lungs


def _spine_centre_mm(overview: Overview, liver: Mask) -> Vector | None:
    """(z, y, x) of the spine beside the lower half of the liver; None without bone there.

    Bone near the middle counts by the square of the share of slices in which it is there: a vertebra in each, contrast
    in heart or stomach in some.
    """
    slices = np.flatnonzero(liver.any(axis=(1, 2)))
    slices = slices[: max(1, len(slices) // 2)]
    hu = overview.hu_zyx[slices]
    middle = _centre_mm(overview, hu > _BODY_ABOVE_HU)
    if middle is None:
        return None
    across_mm = np.arange(hu.shape[2]) * overview.spacing_zyx_mm[2]
    bone = (hu > _BONE_ABOVE_HU) & (np.abs(across_mm - middle[2]) < _SPINE_REACH_MM)
    weights = np.broadcast_to(bone.mean(axis=0) ** 2, (1, *bone.shape[1:]))
    return _centre_mm(overview, weights)


def _centre_mm(overview: Overview, weights: npt.NDArray[Any], least_ml: float = 0.0) -> Vector | None:
    """(z, y, x) centre of a mask or of weights, from the first voxel; None if there is too little of it."""
    total = float(weights.sum())
    if total == 0 or total * overview.voxel_ml < least_ml:
        return None
    z, y, x = (
        float(weights.sum(axis=tuple({0, 1, 2} - {axis})) @ np.arange(weights.shape[axis])) / total * spacing
        for axis, spacing in enumerate(overview.spacing_zyx_mm)
    )
    return (z, y, x)


def _difference(axis: int, minuend: Vector | None, subtrahend: Vector | None) -> float | None:
    return None if minuend is None or subtrahend is None else minuend[axis] - subtrahend[axis]
