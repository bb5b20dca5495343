"""Which part of a scan is segmented: all of it, the body, or the box of the organs.

The organs are found by a locator, a small network on a coarse grid (6 mm, say) that looks at the whole scan
first: a chest-to-pelvis scan then costs what its abdomen costs. This is the coarse-to-fine of the paper's future work.
"""

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
import numpy.typing as npt

from app.components import find_components, largest_component, opened_in_slices
from app.plan import Crop, Plan, SlidingWindowPlan, SpacingKind
from app.preprocessing import Box, grid_of_box, network_axes, preprocess, spanned_box, to_hu
from app.restoration import most_likely_class
from app.sliding_window import Predictor, stream_logits
from app.spacing import NetworkGrid
from app.volume import Array, Geometry, Shape, Vector, Volume

_BODY_ABOVE_HU = -500.0
_BODY_GRID_MM = 4.0
_BODY_MARGIN_MM = 8.0
_SMALLEST_FINDING_ML = 1.0  # what a locator finds below this is noise


@dataclass(frozen=True)
class Locator:
    """The network that finds the organs, and its plan."""

    plan: Plan
    predictor: Predictor


def find_region(volume: Volume, plan: Plan, crop: Crop, kind: SpacingKind, locator: Locator | None) -> Box | None:
    """The box (z, y, x) of the oriented scan that is to be segmented; None: all of it.

    It has a margin around what was found (the plan's around organs) and is then enlarged as far as costs no further
    window, so that no window looks at padding where there is body. If nothing is found, or less of organs than the
    plan expects at least, it is all of the scan.

    Args:
        volume: as stored.
        plan: of the network that segments.
        crop: what bounds the box.
        kind: enforced spacing of that network.
        locator: needed for ``organs``.
    """
    if crop == "none":
        return None
    axis_map = network_axes(volume.geometry, plan)
    oriented = axis_map.apply_to_geometry(volume.geometry)
    if crop == "organs":
        assert locator is not None
        found, margin_mm = _organ_box(volume, locator, plan.shortcuts.least_ml), plan.shortcuts.margin_mm
    else:
        found, margin_mm = _body_box(axis_map.apply(volume.voxels), volume, oriented.spacing_zyx_mm), _BODY_MARGIN_MM
    if found is None:
        return None
    return _fill_windows(_with_margin(found, oriented, margin_mm), oriented, plan, kind)


def _organ_box(volume: Volume, locator: Locator, least_ml: float) -> Box | None:
    """The smallest box of the oriented scan that holds all that the locator finds; None if that is too little."""
    plan = locator.plan
    image, record = preprocess(volume, plan, "resample")
    organs = np.zeros(record.grid.shape_zyx, dtype=np.uint8)
    pad_value = plan.intensity.normalised(plan.sliding_window.pad_hu)
    for slab in stream_logits(image, locator.predictor, plan.classes, plan.sliding_window, pad_value):
        planes = np.moveaxis(organs, slab.axis, 0)
        found = np.moveaxis(most_likely_class(slab.logits) != 0, slab.axis, 0)
        planes[slab.start : slab.start + len(found)] = found
    z, y, x = record.grid.target_zyx_mm
    voxel_ml = z * y * x / 1000
    _erase_specks(organs, _SMALLEST_FINDING_ML / voxel_ml)
    if np.count_nonzero(organs) * voxel_ml < least_ml:
        return None
    box = _bounding_box(organs)
    return box and _scaled(box, record.grid.shape_zyx, record.oriented.shape_zyx)


def _body_box(voxels: Array, volume: Volume, spacing_zyx_mm: Vector) -> Box | None:
    """The smallest box that holds the largest connected part denser than -500 HU, seen on a grid of about 4 mm."""
    steps = body_steps(spacing_zyx_mm)
    coarse = voxels[:: steps[0], :: steps[1], :: steps[2]].astype(np.float32)
    to_hu(coarse, volume)
    dense = coarse > _BODY_ABOVE_HU
    del coarse  # ``memory_need`` counts what is held from here on
    # Within each slice, since a scan may have one only: parts the table and clothes from the patient.
    box = _bounding_box(largest_component(opened_in_slices(dense)))
    return box and _scaled(box, _shape(dense), _shape(voxels))


def body_steps(spacing_zyx_mm: Vector) -> Shape:
    """Which voxels the search for the body looks at: every fifth along axes of 0.8 mm, every one from 2.7 mm on."""
    z, y, x = (max(1, round(_BODY_GRID_MM / spacing)) for spacing in spacing_zyx_mm)
    return (z, y, x)


def _with_margin(box: Box, oriented: Geometry, margin_mm: float) -> Box:
    """The box, larger on all sides as far as the scan reaches."""
    sides = []
    for side, length, spacing in zip(box, oriented.shape_zyx, oriented.spacing_zyx_mm, strict=True):
        margin = ceil(margin_mm / spacing)
        sides.append(slice(max(0, side.start - margin), min(length, side.stop + margin)))
    return _box(sides)


def _fill_windows(box: Box, oriented: Geometry, plan: Plan, kind: SpacingKind) -> Box:
    """The box, enlarged to what its windows cover at their largest step: 240 mm become 256 with a patch of 256 mm."""
    shape = _box_shape(box)
    grid, sides = grid_of_box(shape, oriented, plan, kind), []
    for axis, side in enumerate(box):
        covered = _covered(grid.shape_zyx[axis], axis, plan.sliding_window)
        wanted = max(shape[axis], floor(covered * grid.target_zyx_mm[axis] / grid.source_zyx_mm[axis]))
        while wanted > shape[axis]:
            larger = grid_of_box(_with_length(shape, axis, wanted), oriented, plan, kind)
            if _is_as_good(larger, grid, axis, covered):
                break
            wanted -= 1  # a length is rounded to whole voxels of the grid, a long one makes the grid coarser
        start = side.start - (wanted - shape[axis]) // 2
        start = max(0, min(start, oriented.shape_zyx[axis] - wanted))
        sides.append(slice(start, min(oriented.shape_zyx[axis], start + wanted)))
    return _box(sides)


def _is_as_good(longer: NetworkGrid, grid: NetworkGrid, axis: int, covered: int) -> bool:
    return longer.shape_zyx[axis] <= covered and longer.target_zyx_mm[axis] <= grid.target_zyx_mm[axis]


def _with_length(shape: Shape, axis: int, length: int) -> Shape:
    z, y, x = (length if a == axis else side for a, side in enumerate(shape))
    return (z, y, x)


def _covered(length: int, axis: int, plan: SlidingWindowPlan) -> int:
    """Voxels that the windows of a grid of this length could cover."""
    patch = plan.patch_size[axis]
    step = max(1.0, patch * plan.tile_step_size)
    return max(length, floor(patch + ceil(max(0, length - patch) / step) * step))


def _erase_specks(organs: npt.NDArray[np.uint8], smallest_voxels: float) -> None:
    parts = find_components(organs, np.arange(256) == 1)
    parts.erase(organs, parts.voxels < smallest_voxels)


def _bounding_box(mask: Array) -> Box | None:
    """The smallest box that holds every voxel other than 0; None if there is none."""
    return spanned_box([np.any(mask, axis=across) for across in ((1, 2), (0, 2), (0, 1))])


def _scaled(box: Box, from_zyx: Shape, to_zyx: Shape) -> Box:
    """The box on another grid of the same extent, rounded outwards."""
    sides = []
    for side, coarse, fine in zip(box, from_zyx, to_zyx, strict=True):
        sides.append(slice(floor(side.start * fine / coarse), ceil(side.stop * fine / coarse)))
    return _box(sides)


def _box(sides: list[slice]) -> Box:
    z, y, x = sides
    return (z, y, x)


def _box_shape(box: Box) -> Shape:
    z, y, x = (side.stop - side.start for side in box)
    return (z, y, x)


def _shape(array: Array) -> Shape:
    z, y, x = array.shape
    return (z, y, x)
