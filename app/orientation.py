"""Turning a stored grid to LPS by permuting and flipping its axes, and back: no voxel is interpolated."""

from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from app.volume import Geometry, Matrix, Shape, Vector

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class AxisMap:
    """A permutation and flips of the three array axes, applied as a view.

    Attributes:
        order: axis k of the result is axis ``order[k]`` of the stored array.
        flips: whether axis k of the result then runs backwards.
    """

    order: Shape = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """The stored array (three spatial axes) seen along the mapped axes; a view."""
        return self._flip(array.transpose(self.order))

    def undo(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """The inverse of ``apply``; a view."""
        inverse = tuple(int(axis) for axis in np.argsort(self.order))
        return self._flip(array).transpose(inverse)

    def transposed(self, order: Shape) -> "AxisMap":
        """This map, and after it axis k is what axis ``order[k]`` was. (1, 2, 0) after (2, 0, 1) is (0, 1, 2)."""
        first, second, third = (self.order[axis] for axis in order)
        flip_first, flip_second, flip_third = (self.flips[axis] for axis in order)
        return AxisMap((first, second, third), (flip_first, flip_second, flip_third))

    def apply_to_geometry(self, geometry: Geometry) -> Geometry:
        """The geometry of ``apply(voxels)``: the same places in the patient, other axes."""
        direction = np.asarray(geometry.direction)
        edges = direction * np.asarray(geometry.spacing_zyx_mm)
        origin = np.asarray(geometry.origin_zyx_mm)
        for axis, flipped in zip(self.order, self.flips, strict=True):
            if flipped:
                origin = origin + edges[:, axis] * (geometry.shape_zyx[axis] - 1)
        signs = np.where(self.flips, -1.0, 1.0)
        first, second, third = self.order
        spacing = geometry.spacing_zyx_mm
        return Geometry(
            shape_zyx=(geometry.shape_zyx[first], geometry.shape_zyx[second], geometry.shape_zyx[third]),
            spacing_zyx_mm=(spacing[first], spacing[second], spacing[third]),
            direction=as_matrix(direction[:, list(self.order)] * signs),
            origin_zyx_mm=as_vector(origin),
        )

    def _flip(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        return array[tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flips)]


def axis_map_to_lps(geometry: Geometry) -> AxisMap:
    """The axis map after which z runs to the head, y to the back and x to the patient's left.

    Of the six permutations the one is taken whose axes lie closest to the patient's (largest sum of
    |cosines|); an oblique grid stays oblique. A grid stored (x, z, y) with x to the right maps with
    order (1, 2, 0) and the last axis flipped.
    """
    cosines = np.abs(np.asarray(geometry.direction))

    def closeness(order: tuple[int, ...]) -> float:
        return float(sum(cosines[world, axis] for world, axis in enumerate(order)))

    first, second, third = max(permutations(range(3)), key=closeness)
    order = (first, second, third)
    flip_z, flip_y, flip_x = (bool(geometry.direction[world][axis] < 0) for world, axis in enumerate(order))
    return AxisMap(order=order, flips=(flip_z, flip_y, flip_x))


def cranio_caudal_axis(geometry: Geometry) -> int:
    """The array axis that lies closest to the patient's long axis."""
    return axis_map_to_lps(geometry).order[0]


def as_vector(values: npt.ArrayLike) -> Vector:
    """Three numbers as a tuple of floats."""
    first, second, third = (float(value) for value in np.asarray(values, dtype=np.float64))
    return (first, second, third)


def as_matrix(values: npt.ArrayLike) -> Matrix:
    """A 3x3 array as a tuple of rows."""
    first, second, third = (as_vector(row) for row in np.asarray(values, dtype=np.float64))
    return (first, second, third)
