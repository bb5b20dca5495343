"""A scan with its label map on the patient's axes, and which planes of it are worth a picture.

After the turn z runs to the head, y to the back and x to the patient's left. Seen from the feet, as
radiologists look at an axial slice, rows run to the back and columns to the patient's left: the array
as it lies. Coronal and sagittal slices only need the head up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from app.errors import CaseError
from app.orientation import as_vector, axis_map_to_lps
from app.volume import Float32Array, Geometry, LabelArray, Shape, Volume
from app.volume_io import read_volume
from tools.evaluate.geometry import describe_difference
from tools.evaluate.label_maps import read_label_map

Box = tuple[slice, slice, slice]

_BODY_HU = -300.0  # between lung and fat
_BODY_STEP_MM = 4.0  # the body's outline is sought on this grid
_BODY_MARGIN_MM = 8.0
_ORGANS_MARGIN_MM = 45.0
_SHOWN_WELL = 0.4  # of an organ's largest area
_LARGEST_LABEL = 255


@dataclass(frozen=True)
class LabelledScan:
    """A scan and its label map on the patient's axes (LPS).

    Attributes:
        scan: voxels (z, y, x) as stored, turned; with slope and intercept to HU.
        label_map: (z, y, x) of the same grid.
        labels: organ names; the organ at index i has label i + 1.
    """

    scan: Volume
    label_map: LabelArray
    labels: tuple[str, ...]

    @property
    def geometry(self) -> Geometry:
        """The turned grid."""
        return self.scan.geometry

    def hu(self, box: Any) -> Float32Array:
        """float32 HU of a part of the grid."""
        hu: Float32Array = self.scan.voxels[box].astype(np.float32)
        hu *= np.float32(self.scan.slope)
        hu += np.float32(self.scan.intercept)
        return hu

    def slab(self, start: int, stop: int) -> "LabelledScan":
        """A copy of these slices, so that the others can be let go."""
        geometry = self.geometry
        shape = (stop - start, *geometry.shape_zyx[1:])
        step_mm = np.asarray(geometry.direction)[:, 0] * geometry.spacing_zyx_mm[0]
        moved = replace(geometry, shape_zyx=shape, origin_zyx_mm=as_vector(geometry.origin_zyx_mm + start * step_mm))
        scan = replace(self.scan, voxels=self.scan.voxels[start:stop].copy(), geometry=moved)
        return replace(self, scan=scan, label_map=self.label_map[start:stop].copy())


def read_labelled_scan(scan_path: Path, label_path: Path, labels: tuple[str, ...]) -> LabelledScan:
    """The scan and its label map, both turned to LPS.

    Raises:
        CaseError: a file cannot be read, the two are on different grids, the scan is no CT, or a label has no name.
    """
    return read_labelled_scans(scan_path, [label_path], labels)[0]


def read_labelled_scans(scan_path: Path, label_paths: Sequence[Path], labels: tuple[str, ...]) -> list[LabelledScan]:
    """The scan once with each of its label maps; ``read_labelled_scan`` for several of them."""
    scan = read_volume(scan_path)
    _check_is_ct(scan, scan_path)
    axis_map = axis_map_to_lps(scan.geometry)
    turned = Volume(
        voxels=axis_map.apply(scan.voxels),
        geometry=axis_map.apply_to_geometry(scan.geometry),
        slope=scan.slope,
        intercept=scan.intercept,
    )
    found = []
    for path in label_paths:
        label_map = read_label_map(path, len(labels))
        if (difference := describe_difference(label_map.geometry, scan.geometry)) is not None:
            raise CaseError(
                f"{path}: not on the grid of {scan_path}: {difference}. Give the label map of this scan, on its grid"
            )
        found.append(LabelledScan(scan=turned, label_map=axis_map.apply(label_map.labels), labels=labels))
    return found


def choose_planes(scan: LabelledScan) -> Shape:
    """The axial, coronal and sagittal position (z, y, x) that shows most of the organs well.

    An organ counts its area in the slice as a part of its largest area in any slice along that axis, and counts
    in full from 40 % up, so that many organs beat few large ones: a slice with 90 % of the liver and 10 % of the
    gallbladder gets 1 + 0.25. Of equally good positions the middle one is taken; without any organ all are.
    """
    boxes = ndimage.find_objects(scan.label_map, max_label=len(scan.labels))
    scores = [np.zeros(length) for length in scan.label_map.shape]
    for label, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = scan.label_map[box] == label
        for axis in range(3):
            areas = np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
            scores[axis][box[axis]] += np.minimum(areas / (areas.max() * _SHOWN_WELL), 1.0)
    z, y, x = (int(best[len(best) // 2]) for best in (np.flatnonzero(score == score.max()) for score in scores))
    return (z, y, x)


def visible_box(scan: LabelledScan) -> Box:
    """What the picture shows: in plane the body (and all organs), along z the organs, with a margin.

    The body is the largest connected part denser than lung after an opening by one cell of 4 mm, which takes
    tables and wires away.
    """
    spacing, shape = scan.geometry.spacing_zyx_mm, scan.label_map.shape
    steps = [max(1, round(_BODY_STEP_MM / length)) for length in spacing]
    z, y, x = (slice(None, None, step) for step in steps)
    dense = scan.hu((z, y, x)) > _BODY_HU
    cross = ndimage.generate_binary_structure(2, 1)[None]
    components, count = ndimage.label(ndimage.binary_opening(dense, cross))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    body = ndimage.find_objects(components)[int(np.argmax(sizes))] if count else None
    organs = next(iter(ndimage.find_objects((scan.label_map > 0).view(np.uint8))), None)
    ranges: list[list[tuple[float, float]]] = [[], [], []]
    for axis in range(3):
        if organs:
            margin = (_ORGANS_MARGIN_MM if axis == 0 else _BODY_MARGIN_MM) / spacing[axis]
            ranges[axis].append((organs[axis].start - margin, organs[axis].stop + margin))
        if body and axis > 0:
            start, stop = body[axis].start * steps[axis], body[axis].stop * steps[axis]
            ranges[axis].append((start - _BODY_MARGIN_MM / spacing[axis], stop + _BODY_MARGIN_MM / spacing[axis]))
    z, y, x = (_union(parts, length) for parts, length in zip(ranges, shape, strict=True))
    return (z, y, x)


def _check_is_ct(scan: Volume, path: Path) -> None:
    """A label map is no scan: nothing in it is below 0 or above what 8 bits hold, and all of it is whole."""
    low, high = (scan.slope * float(value) + scan.intercept for value in (scan.voxels.min(), scan.voxels.max()))
    if low >= 0 and high <= _LARGEST_LABEL and not np.any(scan.voxels % 1):
        raise CaseError(
            f"{path}: whole numbers from {low:g} to {high:g}; expected a CT scan in HU, where air is about -1000. "
            "This looks like a label map: give the scan"
        )


def _union(ranges: list[tuple[float, float]], length: int) -> slice:
    """The smallest slice within the array that holds all ranges; everything if there are none."""
    if not ranges:
        return slice(0, length)
    first, last = min(start for start, _ in ranges), max(stop for _, stop in ranges)
    return slice(max(0, int(first)), min(length, int(np.ceil(last))))
