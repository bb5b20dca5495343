"""From a stored scan to the network's input, and the record that leads back."""

from dataclasses import dataclass

import numpy as np

from app.orientation import AxisMap, axis_map_to_lps
from app.plan import InterpolationPlan, Plan, SpacingKind
from app.resampling import resample
from app.spacing import NetworkGrid, network_grid
from app.volume import Float32Array, Geometry, Shape, Vector, Volume


@dataclass(frozen=True)
class Record:
    """What preprocessing did, so that restoration can undo it.

    Attributes:
        axis_map: stored axes -> the axes that the network sees.
        oriented: geometry of the scan after ``axis_map``, before resampling.
        grid: spacing and shape of the network grid.
        restoration_orders: interpolation order per axis on the way back (1, or 0 along a separate z).
    """

    axis_map: AxisMap
    oriented: Geometry
    grid: NetworkGrid
    restoration_orders: Shape


def preprocess(volume: Volume, plan: Plan, kind: SpacingKind) -> tuple[Float32Array, Record]:
    """(float32 (z, y, x) network input, record): oriented, resampled, clipped and normalised.

    In nnU-Net v1's order: the spline works on HU, the clip comes after it and removes its overshoot.
    """
    axis_map = axis_map_to_lps(volume.geometry) if plan.orientation == "LPS" else AxisMap()
    oriented = axis_map.apply_to_geometry(volume.geometry)
    cranio_caudal = axis_map_to_lps(oriented).order[0]
    grid = network_grid(oriented.shape_zyx, oriented.spacing_zyx_mm, cranio_caudal, plan.spacing, kind)
    image = resample(
        axis_map.apply(volume.voxels),
        grid.shape_zyx,
        interpolation_orders(grid, plan.interpolation, plan.interpolation.image_order),
        volume.slope,
        volume.intercept,
    )
    intensity = plan.intensity
    np.clip(image, *intensity.clip_hu, out=image)
    image -= np.float32(intensity.subtract_hu)
    image /= np.float32(intensity.divide_hu)
    orders_back = interpolation_orders(grid, plan.interpolation, 1)
    return image, Record(axis_map=axis_map, oriented=oriented, grid=grid, restoration_orders=orders_back)


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
