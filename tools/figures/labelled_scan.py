"""A scan with its label map on the patient's axes, and which planes of it are worth a picture.

After the turn z runs to the head, y to the back and x to the patient's left. Seen from the feet, as
radiologists look at an axial slice, rows run to the back and columns to the patient's left: the array
as it lies. Coronal and sagittal slices only need the head up.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from app.errors import CaseError
from app.orientation import axis_map_to_lps
from app.volume import Array, Float32Array, Geometry, LabelArray, Shape, Volume
from app.volume_io import read_volume

Box = tuple[slice, slice, slice]

_BODY_HU = -300.0  # between lung and fat
_BODY_STEP_MM = 4.0  # the body's outline is sought on this grid
_BODY_MARGIN_MM = 8.0
_ORGANS_MARGIN_MM = 45.0
_SHOWN_WELL = 0.4  # of an organ's largest area
_GRID_TOLERANCE_MM = 0.1


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


def read_labelled_scan(scan_path: Path, label_path: Path, labels: tuple[str, ...]) -> LabelledScan:
    """The scan and its label map, both turned to LPS.

    Raises:
        CaseError: a file cannot be read, the two are on different grids, or a label has no name.
    """
    scan, label_volume = read_volume(scan_path), read_volume(label_path)
    _check_same_grid(scan.geometry, label_volume.geometry, scan_path, label_path)
    label_map = _as_label_map(label_volume, len(labels), label_path)
    axis_map = axis_map_to_lps(scan.geometry)
    turned = Volume(
        voxels=axis_map.apply(scan.voxels),
        geometry=axis_map.apply_to_geometry(scan.geometry),
        slope=scan.slope,
        intercept=scan.intercept,
    )
    return LabelledScan(scan=turned, label_map=axis_map.apply(label_map), labels=labels)


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
    dense = scan.hu(tuple(slice(None, None, step) for step in steps)) > _BODY_HU
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


def _check_same_grid(scan: Geometry, label_map: Geometry, scan_path: Path, label_path: Path) -> None:
    def corners(geometry: Geometry) -> Array:
        edges = np.asarray(geometry.direction) * np.asarray(geometry.spacing_zyx_mm)
        last = np.asarray(geometry.shape_zyx) - 1
        ends = np.array(np.meshgrid(*[(0, end) for end in last], indexing="ij")).reshape(3, -1)
        return edges @ ends + np.asarray(geometry.origin_zyx_mm)[:, None]  # type: ignore[no-any-return]

    def text(shape: Shape) -> str:
        return "x".join(map(str, shape))

    if scan.shape_zyx != label_map.shape_zyx:
        raise CaseError(
            f"{label_path}: {text(label_map.shape_zyx)} voxels (z, y, x); expected {text(scan.shape_zyx)} as in "
            f"{scan_path}. Give the label map of this scan"
        )
    apart = float(np.abs(corners(scan) - corners(label_map)).max())
    if apart > _GRID_TOLERANCE_MM:
        raise CaseError(
            f"{label_path}: its grid lies {apart:.1f} mm from that of {scan_path}; expected the same place. "
            "Give the label map of this scan"
        )


def _as_label_map(volume: Volume, largest: int, path: Path) -> LabelArray:
    values = volume.voxels
    if volume.slope != 1 or volume.intercept != 0 or values.dtype.kind == "f":
        values = values * volume.slope + volume.intercept
    if values.min() < 0 or values.max() > largest or np.any(values % 1):
        raise CaseError(
            f"{path}: values from {values.min():g} to {values.max():g}; expected whole labels from 0 to {largest}. "
            "Is this the label map?"
        )
    return values.astype(np.uint8)


def _union(ranges: list[tuple[float, float]], length: int) -> slice:
    """The smallest slice within the array that holds all ranges; everything if there are none."""
    if not ranges:
        return slice(0, length)
    first, last = min(start for start, _ in ranges), max(stop for _, stop in ranges)
    return slice(max(0, int(first)), min(length, int(np.ceil(last))))
