"""From a stored scan to the network's input, and the record that leads back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.orientation import AxisMap, axis_map_to_lps, cranio_caudal_axis
from app.plan import IntensityPlan, InterpolationPlan, Plan, SpacingKind
from app.resampling import resample
from app.spacing import NetworkGrid, network_grid
from app.volume import Array, Float32Array, Geometry, LabelArray, Shape, Vector, Volume

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Record:
    """What preprocessing did, so that restoration can undo it.

    Attributes:
        axis_map: stored axes -> the axes that the network sees.
        oriented: geometry of the scan after ``axis_map``, before cropping and resampling.
        box_zyx: the part of the oriented scan that is segmented.
        grid: spacing and shape of the network grid.
        restoration_orders: interpolation order per axis on the way back (1, or 0 along a separate z).
    """

    axis_map: AxisMap
    oriented: Geometry
    box_zyx: Box
    grid: NetworkGrid
    restoration_orders: Shape

    @property
    def cropped_shape_zyx(self) -> Shape:
        """Voxels of the box."""
        z, y, x = (side.stop - side.start for side in self.box_zyx)
        return (z, y, x)

    def undo_crop(self, label_map: LabelArray) -> LabelArray:
        """uint8 (z, y, x): the label map of the box in the oriented scan, background around it."""
        if label_map.shape == self.oriented.shape_zyx:
            return label_map
        whole = np.zeros(self.oriented.shape_zyx, dtype=np.uint8)
        whole[self.box_zyx] = label_map
        return whole


def preprocess(volume: Volume, plan: Plan, kind: SpacingKind, region: Box | None = None) -> tuple[Float32Array, Record]:
    """(float32 (z, y, x) network input, record): oriented, cropped, resampled, clipped and normalised.

    In nnU-Net v1's order, unless the plan says otherwise: the spline works on HU, the clip comes after it and removes
    its overshoot.

    Args:
        volume: as stored.
        plan: constants.
        kind: enforced spacing.
        region: the box of the oriented scan that is segmented; None: all, or what ``plan.crop_to_nonzero`` leaves.
    """
    axis_map = network_axes(volume.geometry, plan)
    oriented = axis_map.apply_to_geometry(volume.geometry)
    voxels = axis_map.apply(volume.voxels)
    box = region or _whole(oriented.shape_zyx)
    if plan.crop_to_nonzero:
        box = nonzero_box(voxels, volume)
    cropped = voxels[box]
    grid = grid_of_box(_shape(cropped), oriented, plan, kind)
    early = plan.intensity.normalise == "before_resampling"

    def prepare(slab: Float32Array) -> None:
        to_hu(slab, volume)
        if early:
            normalise(slab, plan.intensity)

    orders = interpolation_orders(grid, plan.interpolation, plan.interpolation.image_order)
    image = resample(cropped, grid.shape_zyx, orders, prepare, plan.interpolation.clip_overshoot)
    if not early:
        normalise(image, plan.intensity)
    orders_back = interpolation_orders(grid, plan.interpolation, 1)
    return image, Record(axis_map, oriented, box, grid, orders_back)


def network_axes(geometry: Geometry, plan: Plan) -> AxisMap:
    """From a scan as it is stored to the axes in which the plan's network sees it."""
    axis_map = axis_map_to_lps(geometry) if plan.orientation == "LPS" else AxisMap()
    return axis_map.transposed(plan.transpose_forward)


def grid_of_box(box_zyx: Shape, oriented: Geometry, plan: Plan, kind: SpacingKind) -> NetworkGrid:
    """The network grid of a box of that many voxels in an oriented scan, whose slices count whatever the box holds."""
    axis = cranio_caudal_axis(oriented)
    return network_grid(box_zyx, oriented.spacing_zyx_mm, axis, plan.spacing, kind, oriented.shape_zyx[axis])


def nonzero_box(voxels: Array, volume: Volume) -> Box:
    """The smallest box (z, y, x) that holds every voxel other than 0 HU; the whole scan if there is none.

    nnU-Net's ``crop_to_nonzero``: its filling of holes does not change the box. Air is -1000 HU, so for CT this cuts
    only what software filled with zeros.
    """
    columns = np.zeros(voxels.shape[1:], dtype=bool)
    planes = np.zeros(len(voxels), dtype=bool)
    for index in range(len(voxels)):
        plane = voxels[index].astype(np.float32)
        to_hu(plane, volume)
        filled = plane != 0
        columns |= filled
        planes[index] = filled.any()
    return spanned_box((planes, np.any(columns, axis=1), np.any(columns, axis=0))) or _whole(_shape(voxels))


def spanned_box(lines: Sequence[npt.NDArray[np.bool_]]) -> Box | None:
    """From the first to the last true place of each of three lines, along z, y and x; None if one has none."""
    places = [np.flatnonzero(line) for line in lines]
    if not all(found.size for found in places):
        return None
    z, y, x = (slice(int(found[0]), int(found[-1]) + 1) for found in places)
    return (z, y, x)


def normalise(image: Float32Array, plan: IntensityPlan) -> None:
    """HU -> network input, in place."""
    np.clip(image, *plan.clip_hu, out=image)
    image -= np.float32(plan.subtract_hu)
    image /= np.float32(plan.divide_hu)


def interpolation_orders(grid: NetworkGrid, plan: InterpolationPlan, order: int) -> Shape:
    """Interpolation order per axis: ``order``, but 0 along an anisotropic axis (nnU-Net's separate z).

    nnU-Net looks at the scan's spacing first and then at the target: 5 x 0.8 x 0.8 mm with a threshold of 3
    gives (0, 3, 3). If several axes share the largest spacing none is separated.
    """
    threshold = plan.separate_z_above
    for spacing in (grid.source_zyx_mm, grid.target_zyx_mm):
        if threshold is not None and max(spacing) > threshold * min(spacing):
            coarse = _coarsest_axes(spacing)
            if len(coarse) == 1:
                z, y, x = (0 if axis == coarse[0] else order for axis in range(3))
                return (z, y, x)
            break
    return (order, order, order)


def _coarsest_axes(spacing_zyx_mm: Vector) -> list[int]:
    return [axis for axis, spacing in enumerate(spacing_zyx_mm) if spacing == max(spacing_zyx_mm)]


def to_hu(stored: Float32Array, volume: Volume) -> None:
    """Stored values -> HU, in place."""
    if volume.slope != 1.0:
        stored *= np.float32(volume.slope)
    if volume.intercept != 0.0:
        stored += np.float32(volume.intercept)


def _whole(shape_zyx: Shape) -> Box:
    z, y, x = (slice(0, length) for length in shape_zyx)
    return (z, y, x)


def _shape(array: Array) -> Shape:
    z, y, x = array.shape
    return (z, y, x)
