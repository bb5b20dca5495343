"""Whether two label maps lie on one grid, and if not, in what they differ and by how much."""

from itertools import product

import numpy as np
import numpy.typing as npt

from app.orientation import axis_map_to_lps
from app.volume import Geometry, Shape

Float64Array = npt.NDArray[np.float64]

_TOLERATED_VOXELS = 0.1  # writers round affines to float32 and quaternions; a true shift is half a voxel or more
_ROUNDING = 1e-3
_AXES = "zyx"


def describe_difference(prediction: Geometry, reference: Geometry) -> str | None:
    """What tells the prediction's grid from the reference's, for people; None if they are one.

    Grids are one if their shapes are equal and no corner lies further from its twin than a tenth of the smallest
    spacing. A scan of 0.8 x 0.8 x 5 mm whose prediction starts one slice higher gives ``the first voxel lies 5 mm
    away: (z, y, x) +5, +0, +0 mm``.
    """
    parts = []
    if prediction.shape_zyx != reference.shape_zyx:
        parts.append(f"shape {_shape(prediction.shape_zyx)} instead of {_shape(reference.shape_zyx)} (z, y, x)")
    elif _corners_apart_mm(prediction, reference) <= _TOLERATED_VOXELS * min(reference.spacing_zyx_mm):
        return None
    parts += [*_spacing_parts(prediction, reference), *_axis_parts(prediction, reference)]
    parts += _origin_parts(prediction, reference)
    if _same_place(prediction, reference):
        parts.append("both cover the same place in the patient and are only stored in another order")
    if not parts:  # each too little to be named, but they add up over hundreds of voxels
        parts.append(f"corners lie up to {_corners_apart_mm(prediction, reference):.2g} mm apart")
        found, expected = (_lengths(each.spacing_zyx_mm, " x ", digits=8) for each in (prediction, reference))
        spacings = f"spacing {found} mm instead of {expected} mm (z, y, x)"
        parts.append("axes are turned a little" if found == expected else spacings)
    return "; ".join(parts)


def first_unequal_field(found: Geometry, expected: Geometry) -> str | None:
    """Name of the first field in which two geometries differ by more than rounding; None if they are equal.

    Stricter than ``describe_difference``: for label maps that are compared voxel by voxel with what they came from.
    """
    for field in ("shape_zyx", "spacing_zyx_mm", "direction", "origin_zyx_mm"):
        first, second = getattr(found, field), getattr(expected, field)
        if np.shape(first) != np.shape(second) or not np.allclose(second, first, rtol=0, atol=_ROUNDING):
            return field
    return None


def _spacing_parts(prediction: Geometry, reference: Geometry) -> list[str]:
    found, expected = np.asarray(prediction.spacing_zyx_mm), np.asarray(reference.spacing_zyx_mm)
    if np.allclose(found, expected, rtol=1e-3, atol=0):
        return []
    return [f"spacing {_lengths(found, ' x ')} mm instead of {_lengths(expected, ' x ')} mm (z, y, x)"]


def _axis_parts(prediction: Geometry, reference: Geometry) -> list[str]:
    """One entry for each axis that points elsewhere; 180 degrees is a flip."""
    parts = []
    pairs = zip(np.asarray(prediction.direction).T, np.asarray(reference.direction).T, strict=True)
    for name, (found, expected) in zip(_AXES, pairs, strict=True):
        degrees = float(np.degrees(np.arccos(np.clip(found @ expected, -1, 1))))
        if degrees > 179:
            parts.append(f"axis {name} runs the other way (flipped)")
        elif degrees > 0.1:
            parts.append(f"axis {name} points {degrees:.3g} degrees away")
    return parts


def _origin_parts(prediction: Geometry, reference: Geometry) -> list[str]:
    shift_mm = np.subtract(prediction.origin_zyx_mm, reference.origin_zyx_mm)
    distance_mm = float(np.linalg.norm(shift_mm))
    if distance_mm <= _TOLERATED_VOXELS * min(reference.spacing_zyx_mm):
        return []
    return [f"the first voxel lies {distance_mm:.4g} mm away: (z, y, x) {_lengths(shift_mm, ', ', '+')} mm"]


def _same_place(prediction: Geometry, reference: Geometry) -> bool:
    """Whether the two are one grid once both are turned to LPS."""
    found = axis_map_to_lps(prediction).apply_to_geometry(prediction)
    expected = axis_map_to_lps(reference).apply_to_geometry(reference)
    tolerated_mm = _TOLERATED_VOXELS * min(expected.spacing_zyx_mm)
    return found.shape_zyx == expected.shape_zyx and _corners_apart_mm(found, expected) <= tolerated_mm


def _corners_apart_mm(first: Geometry, second: Geometry) -> float:
    return float(np.linalg.norm(_corners_mm(first) - _corners_mm(second), axis=1).max())


def _corners_mm(geometry: Geometry) -> Float64Array:
    """(8, 3) world positions of the centres of the corner voxels."""
    indices = np.array(list(product(*((0, length - 1) for length in geometry.shape_zyx))), dtype=np.float64)
    edges = np.asarray(geometry.direction) * np.asarray(geometry.spacing_zyx_mm)
    corners: Float64Array = indices @ edges.T + np.asarray(geometry.origin_zyx_mm)
    return corners


def _shape(shape_zyx: Shape) -> str:
    return "x".join(map(str, shape_zyx))


def _lengths(values: npt.ArrayLike, separator: str, sign: str = "", digits: int = 4) -> str:
    return separator.join(f"{value + 0.0:{sign}.{digits}g}" for value in np.round(np.asarray(values, np.float64), 6))
