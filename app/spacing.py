"""Enforced spacing: which spacing is assumed for the scan and which the network grid gets. Pure arithmetic."""

from dataclasses import dataclass

from app.plan import SliceCountRule, SpacingKind, SpacingPlan
from app.volume import Shape, Vector


@dataclass(frozen=True)
class NetworkGrid:
    """The grid that the network works on.

    Attributes:
        source_zyx_mm: spacing that the scan is taken to have (not the true one under ``header``).
        target_zyx_mm: spacing of the network grid.
        shape_zyx: voxels of the network grid.
    """

    source_zyx_mm: Vector
    target_zyx_mm: Vector
    shape_zyx: Shape


def network_grid(
    shape_zyx: Shape,
    spacing_zyx_mm: Vector,
    cranio_caudal_axis: int,
    plan: SpacingPlan,
    kind: SpacingKind,
    slices: int | None = None,
) -> NetworkGrid:
    """The network grid of a scan.

    ``off`` resamples from the true spacing to the plan's. ``resample`` does the same with a target coarse
    enough that no axis exceeds ``plan.largest_grid_zyx``: 621 slices of 2 mm with at most 400 along z get
    1242 / 400 = 3.105 mm in place of 2.5. ``header`` takes the scan to have the paper's spacing. With
    ``plan.keep_first_axis`` the first axis keeps the spacing that it has or is taken to have.

    Args:
        shape_zyx: voxels of the scan.
        spacing_zyx_mm: its true spacing.
        cranio_caudal_axis: the axis along which slices are counted.
        plan: constants.
        kind: which of the three.
        slices: of the stored scan, if ``shape_zyx`` is only a part of it.
    """
    source, target = spacing_zyx_mm, plan.target_zyx_mm
    if kind == "header":
        count = shape_zyx[cranio_caudal_axis] if slices is None else slices
        source = header_spacing(count, spacing_zyx_mm, cranio_caudal_axis, plan.header)
    if kind == "resample":
        target = bounded_spacing(shape_zyx, spacing_zyx_mm, plan)
    if plan.keep_first_axis:
        target = (source[0], target[1], target[2])
    z, y, x = (
        max(1, round(length * from_mm / to_mm))
        for length, from_mm, to_mm in zip(shape_zyx, source, target, strict=True)
    )
    return NetworkGrid(source_zyx_mm=source, target_zyx_mm=target, shape_zyx=(z, y, x))


def header_spacing(slices: int, spacing_zyx_mm: Vector, cranio_caudal_axis: int, rule: SliceCountRule) -> Vector:
    """The paper's override: a spacing chosen by the slice count, whatever the true one (see ``SliceCountRule``)."""
    if slices < rule.few_slices:
        slice_mm = spacing_zyx_mm[cranio_caudal_axis]
    elif slices <= rule.many_slices:
        slice_mm = rule.slice_mm
    else:
        slice_mm = rule.slice_mm * max(rule.smallest_factor, rule.many_slices / slices)
    z, y, x = (slice_mm if axis == cranio_caudal_axis else rule.in_plane_mm for axis in range(3))
    return (z, y, x)


def bounded_spacing(shape_zyx: Shape, spacing_zyx_mm: Vector, plan: SpacingPlan) -> Vector:
    """Per axis max(plan's target, extent / largest grid): the plan's own unless the scan is unusually long."""
    z, y, x = (
        max(target, length * spacing / largest)
        for target, length, spacing, largest in zip(
            plan.target_zyx_mm, shape_zyx, spacing_zyx_mm, plan.largest_grid_zyx, strict=True
        )
    )
    return (z, y, x)
