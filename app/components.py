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
RUN_BYTES = 120  # start, stop, label and component of a run, and its edges to two other rows, once more as a graph

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Components:
    """Face-connected voxels (6-connectivity) of one label.

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

    def erase(self, label_map: LabelArray, dropped: npt.NDArray[np.bool_]) -> None:
        """Makes the dropped components background, in place."""
        chosen = dropped[self.of_run]
        start, length = self.runs.start[chosen], (self.runs.stop - self.runs.start)[chosen]
        if not length.size:
            return
        blocks = np.cumsum(length) // _VOXELS_AT_ONCE
        edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1), len(length)]
        for first, last in pairwise(edges):
            label_map[_voxels(start[first:last], length[first:last], label_map.shape)] = 0


def find_components(label_map: LabelArray, wanted: npt.NDArray[np.bool_]) -> Components:
    """The components of some labels.

    Args:
        label_map: uint8 (z, y, x).
        wanted: bool (256,), which labels count.
    """
    runs = _find_runs(label_map, wanted)
    count, of_run = _connect(runs, label_map.shape)
    label = np.zeros(count, dtype=np.uint8)
    label[of_run] = runs.label
    voxels = np.bincount(of_run, weights=runs.stop - runs.start, minlength=count).astype(np.int64)
    return Components(label, voxels, runs, of_run)


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


def _find_runs(label_map: LabelArray, wanted: npt.NDArray[np.bool_]) -> _Runs:
    depth, height, width = label_map.shape
    kept = np.where(wanted, np.arange(256), 0).astype(np.uint8)
    plane = (height + 1) * (width + 1)
    planes = max(1, _VOXELS_AT_ONCE // plane)
    padded = np.zeros((planes, height + 1, width + 1), dtype=np.uint8)
    starts, stops, labels = [], [], []
    for first in range(0, depth, planes):
        part = label_map[first : first + planes]
        np.take(kept, part, out=padded[: len(part), :height, :width])
        flat = padded[: len(part)].reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat[0]:
            changes = np.concatenate(([0], changes))
        # The last voxel is a column more and background: every run has an end among the changes.
        found = flat[changes[:-1]]
        inside = found != 0
        starts.append(changes[:-1][inside] + first * plane)
        stops.append(changes[1:][inside] + first * plane)
        labels.append(found[inside])
    return _Runs(np.concatenate(starts), np.concatenate(stops), np.concatenate(labels))


def _connect(runs: _Runs, shape: Shape) -> tuple[int, npt.NDArray[np.int32]]:
    """(number of components, component of each run): runs of one label that overlap in the next row or plane."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, height, width = shape
    pairs = [_overlaps(runs, width + 1), _overlaps(runs, (height + 1) * (width + 1))]
    # A step along x from one label to another ends a run; two runs of one label never touch there.
    one, other = (np.concatenate(side) for side in zip(*pairs, strict=True))
    number = len(runs.start)
    graph = coo_array((np.ones(len(one), dtype=np.bool_), (one, other)), shape=(number, number))
    count, of_run = connected_components(graph, directed=False)
    return int(count), of_run


def _overlaps(runs: _Runs, shift: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Pairs (run, run that it overlaps with once it is shifted), of one label."""
    first = np.searchsorted(runs.stop, runs.start + shift, side="right").astype(np.int32)
    last = np.searchsorted(runs.start, runs.stop + shift, side="left").astype(np.int32)
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
