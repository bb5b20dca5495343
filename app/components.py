"""Connected components of all organs of a label map in one pass, by runs.

A run is a stretch of one label along x. Organs are compact: a row meets a few runs, not hundreds of voxels, and only
runs are compared with those of the next row and plane. ``scipy.ndimage.label`` needs four bytes a voxel and a pass
for every organ.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from app.volume import LabelArray, Shape

_VOXELS_AT_ONCE = 2**22
RUN_BYTES = 120  # start, stop, label and component of a run, and its pairs with runs of two other rows while they form

Int64Array = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Components:
    """Connected voxels of one label: by faces (6-connectivity) unless ``diagonal`` was asked for.

    Attributes:
        label: uint8 (components,), in the order of their first voxels.
        voxels: int64 (components,).
        runs: where they are.
        of_run: int32, the component of each run.
    """

    label: npt.NDArray[np.uint8]
    voxels: Int64Array
    runs: "_Runs"
    of_run: npt.NDArray[np.int32]

    def erase(self, label_map: LabelArray, dropped: Mask) -> None:
        """Makes the dropped components background, in place."""
        chosen = dropped[self.of_run]
        start, length = self.runs.start[chosen], (self.runs.stop - self.runs.start)[chosen]
        if not length.size:
            return
        blocks = np.cumsum(length) // _VOXELS_AT_ONCE
        edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1), len(length)]
        for first, last in pairwise(edges):
            label_map[_voxels(start[first:last], length[first:last], label_map.shape)] = 0


def find_components(label_map: LabelArray, wanted: Mask, diagonal: bool = False) -> Components:
    """The components of some labels.

    Args:
        label_map: uint8 (z, y, x).
        wanted: bool (256,), which labels count; not 0, the background.
        diagonal: voxels that share an edge or a corner are connected, too (26-connectivity).
    """
    runs = _find_runs(label_map, wanted)
    count, of_run = _connect(runs, label_map.shape, diagonal)
    label = np.zeros(count, dtype=np.uint8)
    label[of_run] = runs.label
    voxels = np.bincount(of_run, weights=runs.stop - runs.start, minlength=count).astype(np.int64)
    return Components(label, voxels, runs, of_run)


def largest_component(mask: Mask, diagonal: bool = False) -> Mask:
    """bool (z, y, x): the largest component of a mask, of equal ones the first; see ``find_components``."""
    largest = mask.astype(np.uint8)
    parts = find_components(largest, np.arange(256) == 1, diagonal)
    if len(parts.voxels) > 1:
        parts.erase(largest, np.arange(len(parts.voxels)) != parts.voxels.argmax())
    return largest.view(np.bool_)


def opened_in_slices(mask: Mask) -> Mask:
    """bool (z, y, x): what squares of 3x3 voxels within the slices of a mask can cover; nothing beyond its borders.

    ``scipy.ndimage.binary_opening`` with ones((1, 3, 3)).
    """
    for combine in (np.logical_and, np.logical_or):
        for axis in (1, 2):
            beside = np.zeros_like(mask)
            lines, of_mask = np.moveaxis(beside, axis, 0), np.moveaxis(mask, axis, 0)
            lines[1:-1] = combine(combine(of_mask[:-2], of_mask[1:-1]), of_mask[2:])
            if combine is np.logical_or and len(lines) > 1:
                lines[0], lines[-1] = of_mask[0] | of_mask[1], of_mask[-1] | of_mask[-2]
            mask = beside
    return mask


@dataclass(frozen=True)
class _Runs:
    """Runs in the order of their voxels.

    Attributes:
        start, stop: int64, first voxel and the one after the last, counted in a grid with one more column and row, so
            that no run touches one across an edge of the scan.
        label: uint8.
    """

    start: Int64Array
    stop: Int64Array
    label: npt.NDArray[np.uint8]


def _find_runs(label_map: LabelArray, wanted: Mask) -> _Runs:
    depth, height, width = label_map.shape
    plane = (height + 1) * (width + 1)
    planes = max(1, _VOXELS_AT_ONCE // plane)
    padded = np.zeros((planes, height + 1, width + 1), dtype=np.uint8)
    starts, stops, labels = [], [], []
    for first in range(0, depth, planes):
        part = label_map[first : first + planes]
        padded[: len(part), :height, :width] = part
        flat = padded[: len(part)].reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat[0]:
            changes = np.concatenate(([0], changes))
        # The last voxel is a column more and background: every run has an end among the changes.
        found = flat[changes[:-1]]
        inside = wanted[found]
        starts.append(changes[:-1][inside] + first * plane)
        stops.append(changes[1:][inside] + first * plane)
        labels.append(found[inside])
    return _Runs(np.concatenate(starts), np.concatenate(stops), np.concatenate(labels))


def _connect(runs: _Runs, shape: Shape, diagonal: bool) -> tuple[int, npt.NDArray[np.int32]]:
    """(number of components, component of each run): runs of one label that overlap in the next row or plane."""
    _, height, width = shape
    row = width + 1
    plane = (height + 1) * row
    shifts = (row, plane - row, plane, plane + row) if diagonal else (row, plane)
    # A step along x from one label to another ends a run; two runs of one label never touch there.
    one, other = (
        np.concatenate(side) for side in zip(*(_overlaps(runs, shift, int(diagonal)) for shift in shifts), strict=True)
    )
    first = _first_of_each(len(runs.start), one, other)
    firsts = first == np.arange(len(first), dtype=np.int32)
    return int(np.count_nonzero(firsts)), (np.cumsum(firsts, dtype=np.int32) - 1)[first]


def _first_of_each(number: int, one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """int32 (number,): the first run that each is connected with, by pairs of neighbours.

    Each knows of an earlier one (or itself). Of two neighbours' firsts the later learns of the earlier, and all follow
    the chains to their ends, until neighbours agree: 3 to 5 rounds for organs.
    """
    first = np.arange(number, dtype=np.int32)
    while one.size:
        np.minimum.at(first, np.maximum(first[one], first[other]), np.minimum(first[one], first[other]))
        while np.any((earlier := first[first]) != first):
            first = earlier
        apart = first[one] != first[other]
        one, other = one[apart], other[apart]
    return first


def _overlaps(runs: _Runs, shift: int, reach: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Pairs (run, run that it overlaps with once it is shifted and grown by ``reach`` at both ends), of one label."""
    first = np.searchsorted(runs.stop, runs.start + (shift - reach), side="right").astype(np.int32)
    last = np.searchsorted(runs.start, runs.stop + (shift + reach), side="left").astype(np.int32)
    counts = np.maximum(last - first, 0)
    one = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    within = np.arange(len(one), dtype=np.int32) - np.repeat((np.cumsum(counts) - counts).astype(np.int32), counts)
    other = first[one] + within
    same = runs.label[one] == runs.label[other]
    return one[same], other[same]


def _voxels(start: Int64Array, length: Int64Array, shape: Shape) -> tuple[Int64Array, Int64Array, Int64Array]:
    """The indices (z, y, x) of all voxels of some runs."""
    _, height, width = shape
    before = np.cumsum(length) - length
    place = np.repeat(start - before, length) + np.arange(int(length.sum()))
    row, x = np.divmod(place, width + 1)
    z, y = np.divmod(row, height + 1)
    return z, y, x
