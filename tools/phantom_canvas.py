"""Painting a phantom: shapes in the anatomy's millimetres become voxels with soft edges and hard labels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from app.resampling import resample
from app.volume import Float32Array, LabelArray, Vector
from tools import phantom_anatomy as anatomy
from tools.phantom_anatomy import Ellipsoid, Parts, Tube

Box = tuple[slice, slice, slice]
Point = npt.NDArray[np.float64]

_SHIFT_MM, _LOG_SCALE, _TURN_DEGREES, _DENSITY = 3.0, 0.08, 6.0, 0.05  # standard deviations per organ
_TURNED_FULLY_MM = 100.0  # a longer organ turns less: its ends should not leave their place
_BOWEL_NODES = (14, 18, 18)


@dataclass(frozen=True)
class Variant:
    """An organ of one patient: the anatomy's parts, scaled and turned about their centre, and moved.

    Attributes:
        parts: of the anatomy.
        centre: about which they turn, mm.
        turn: 3x3 rotation.
        scale: of all lengths.
        shift: mm.
        density: factor on the organ's HU.
    """

    parts: Parts
    centre: Point
    turn: Point
    scale: float = 1.0
    shift: Vector = (0.0, 0.0, 0.0)
    density: float = 1.0

    def bounds(self) -> tuple[Point, Point]:
        """(lowest, highest) corner of a box around it, mm."""
        low, high = _bounds(self.parts)
        corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1).T
        moved = (corners - self.centre) @ self.turn.T * self.scale + self.centre + self.shift
        return moved.min(axis=0), moved.max(axis=0)

    def depth_mm(self, places: Float32Array) -> Float32Array:
        """Signed distance (about) of places (3, z, y, x) from its surface, negative inside."""
        start = (self.centre + self.shift).astype(np.float32)
        turned = np.einsum("ij,izyx->jzyx", self.turn.astype(np.float32), places - start[:, None, None, None])
        own = turned / np.float32(self.scale) + self.centre.astype(np.float32)[:, None, None, None]
        depths = [_ellipsoid(part, own) if isinstance(part, Ellipsoid) else _tube(part, own) for part in self.parts]
        depth: Float32Array = np.minimum.reduce(depths) * np.float32(self.scale)
        return depth


def vary(parts: Parts, patient: np.random.Generator) -> Variant:
    """One patient's variant of an organ."""
    low, high = _bounds(parts)
    degrees = _TURN_DEGREES * min(1.0, _TURNED_FULLY_MM / float(np.max(high - low)))
    turn = Rotation.from_rotvec(patient.normal(0, degrees, 3), degrees=True).as_matrix()
    z, y, x = (float(shift) for shift in patient.normal(0, _SHIFT_MM, 3))
    scale, density = np.exp(patient.normal(0, _LOG_SCALE)), 1 + patient.normal(0, _DENSITY)
    return Variant(parts, (low + high) / 2, turn, float(scale), (z, y, x), float(density))


class Canvas:
    """HU and labels on the phantom's grid.

    Attributes:
        places: float32 (3, z, y, x): where in the anatomy each voxel lies, mm.
        hu: float32 (z, y, x).
        label_map: uint8 (z, y, x).
    """

    def __init__(self, places: Float32Array, spacing_zyx_mm: Vector) -> None:
        self.places = places
        self.hu: Float32Array = np.full(places.shape[1:], anatomy.AIR_HU, dtype=np.float32)
        self.label_map: LabelArray = np.zeros(places.shape[1:], dtype=np.uint8)
        self._voxel_mm = np.float32(np.mean(spacing_zyx_mm))
        self._lowest = [places[axis].min(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        self._highest = [places[axis].max(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]

    def box(self, variant: Variant) -> Box | None:
        """The part of the grid that a variant can touch; None if that is nothing."""
        slices = []
        for axis, (low, high) in enumerate(zip(*variant.bounds(), strict=True)):
            near = (self._highest[axis] >= low - self._voxel_mm) & (self._lowest[axis] <= high + self._voxel_mm)
            touched = np.flatnonzero(near)
            if not touched.size:
                return None
            slices.append(slice(int(touched[0]), int(touched[-1]) + 1))
        return (slices[0], slices[1], slices[2])

    def blend(self, depth_mm: Float32Array, hu: float | Float32Array, box: Box | None = None) -> None:
        """Paints ``hu`` by the part of each voxel that lies inside: half at depth 0, all half a voxel further in."""
        target = self.hu[box] if box else self.hu
        target += np.clip(0.5 - depth_mm / self._voxel_mm, 0, 1) * (np.asarray(hu, dtype=np.float32) - target)


def paint_organ(canvas: Canvas, variant: Variant, hu: float, label: int | None = None) -> None:
    """Paints an organ, and labels the voxels that are at least half inside."""
    box = canvas.box(variant)
    if box is None:
        return
    depth = variant.depth_mm(canvas.places[(slice(None), *box)])
    canvas.blend(depth, hu * variant.density, box)
    if label is not None:
        canvas.label_map[box][depth <= 0] = label


def paint_body(canvas: Canvas, patient: np.random.Generator, phase: int) -> None:
    """Paints what is not labelled: skin, fat, muscle, bowel, lungs, heart, ribs and spine."""
    fat_mm = anatomy.FAT_RIM_MM * float(np.exp(patient.normal(0, 0.4)))
    bowel = resample(patient.normal(0, 1, _BOWEL_NODES), canvas.label_map.shape, (3, 3, 3))
    z, y, _ = canvas.places
    wall = _ellipsoid(Ellipsoid((0, 0, 0), (1e4, *anatomy.BODY_RADII_YX_MM)), canvas.places)
    canvas.blend(wall - np.float32(fat_mm - anatomy.FAT_RIM_MM), anatomy.FAT_HU)
    muscle = wall + np.float32(anatomy.FAT_RIM_MM)
    canvas.blend(muscle, anatomy.MUSCLE_HU[phase])
    cavity = muscle + np.float32(anatomy.MUSCLE_RIM_MM)
    share = np.clip(bowel * 1.5 + 0.2, 0, 1)
    canvas.blend(cavity, anatomy.FAT_HU + share * (anatomy.BOWEL_HU - anatomy.FAT_HU))
    for parts, hu in ((anatomy.LUNGS, anatomy.LUNG_HU), (anatomy.HEART, anatomy.HEART_HU[phase])):
        paint_organ(canvas, vary(parts, patient), hu)
    # Ribs: 10 mm high every 30 mm, in the muscle, rising to the back, above the lowest organs.
    ribs = np.abs((z - 0.4 * y) % 30 - 15) - 5
    canvas.blend(np.maximum.reduce([ribs, np.abs(muscle + 6) - 4, 10 - z + 0.4 * y]), anatomy.BONE_HU)
    paint_organ(canvas, vary(anatomy.SPINE, patient), anatomy.BONE_HU)


def _bounds(parts: Parts) -> tuple[Point, Point]:
    """(lowest, highest) corner of a box around all parts, mm."""
    spheres = []
    for part in parts:
        if isinstance(part, Ellipsoid):
            spheres.append((np.array(part.centre), np.array(part.radii)))
        else:
            spheres.extend(
                (np.array(point), np.full(3, radius)) for point, radius in zip(part.points, part.radii, strict=True)
            )
    return np.min([c - r for c, r in spheres], axis=0), np.max([c + r for c, r in spheres], axis=0)


def _ellipsoid(part: Ellipsoid, places: Float32Array) -> Float32Array:
    """k (k - 1) / |p / r^2| with k = |p / r|: the distance to first order at the surface (Quilez, ellipsoids)."""
    offset = places - np.array(part.centre, dtype=np.float32)[:, None, None, None]
    radii = np.array(part.radii, dtype=np.float32)[:, None, None, None]
    relative = np.sqrt(np.sum((offset / radii) ** 2, axis=0))
    gradient = np.sqrt(np.sum((offset / radii**2) ** 2, axis=0))
    depth: Float32Array = relative * (relative - 1) / np.maximum(gradient, np.float32(1e-6))
    return depth


def _tube(part: Tube, places: Float32Array) -> Float32Array:
    """Distance from the nearest point of the segments less the radius there."""
    depths = []
    for start, end, first, last in zip(part.points[:-1], part.points[1:], part.radii[:-1], part.radii[1:], strict=True):
        axis = np.subtract(end, start).astype(np.float32)
        offset = places - np.array(start, dtype=np.float32)[:, None, None, None]
        along = np.clip(np.einsum("i,izyx->zyx", axis / (axis @ axis), offset), 0, 1)
        offset -= axis[:, None, None, None] * along
        depths.append(np.sqrt(np.einsum("izyx,izyx->zyx", offset, offset)) - (first + (last - first) * along))
    depth: Float32Array = np.minimum.reduce(depths)
    return depth
