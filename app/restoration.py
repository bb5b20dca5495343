"""From streamed logits at network resolution to a label map on the scan's own grid."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.plan import Accumulator, Mode
from app.resampling import linear_neighbours, nearest_indices
from app.running_sums import Slab
from app.volume import Float32Array, LabelArray, Shape

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Restoration:
    """A label map and how it came about.

    Attributes:
        label_map: uint8 (z, y, x) on the oriented grid of the scan.
        shortcut_share: part of the voxels that needed no interpolation of logits (1 under ``fastest``).
        agreement: see ``app.agreement``; None without a twin.
    """

    label_map: LabelArray
    shortcut_share: float
    agreement: dict[str, float | None] | None = None


def restore(
    slabs: Iterable[Slab],
    network_shape: Shape,
    shape_zyx: Shape,
    orders: Shape,
    mode: Mode,
    logits_precision: Accumulator = "float32",
) -> Restoration:
    """The label map of a scan of ``shape_zyx`` voxels.

    ``fastest``: arg max on the network grid, then nearest neighbour (nnU-Net v1's fastest mode).
    ``normal``: arg max of the linearly interpolated logits, which are never held at full size.

    Args:
        slabs: finished logits in order along one axis, together the whole network grid.
        network_shape: voxels of the network grid.
        shape_zyx: voxels of the result.
        orders: interpolation order per axis for ``normal``: 1, or 0 along a separate z.
        mode: which of the two.
        logits_precision: of interpolated logits. Under ``float16`` two that were close may be equal, and the first
            class wins; not where all neighbours agree, which are not looked at.
    """
    if mode == "fastest":
        return _restore_fastest(slabs, network_shape, shape_zyx)
    return _restore_normal(slabs, network_shape, shape_zyx, orders, logits_precision)


def most_likely_class(logits: Float32Array) -> LabelArray:
    """uint8 (...): the class of the largest of float32 (classes, ...) logits; the first one of equals.

    A running maximum, since numpy's argmax over the slowest axis takes several times as long.
    """
    best = logits[0].copy()
    labels = np.zeros(best.shape, dtype=np.uint8)
    for label in range(1, len(logits)):
        labels[logits[label] > best] = label
        np.maximum(best, logits[label], out=best)
    return labels


def _restore_fastest(slabs: Iterable[Slab], network_shape: Shape, shape_zyx: Shape) -> Restoration:
    labels = np.zeros(network_shape, dtype=np.uint8)
    for slab in slabs:
        planes = np.moveaxis(labels, slab.axis, 0)
        found = np.moveaxis(most_likely_class(slab.logits), slab.axis, 0)
        planes[slab.start : slab.start + len(found)] = found
    for axis in range(3):
        labels = labels.take(nearest_indices(network_shape[axis], shape_zyx[axis]), axis=axis)
    return Restoration(label_map=labels, shortcut_share=1.0)


def _restore_normal(
    slabs: Iterable[Slab], network_shape: Shape, shape_zyx: Shape, orders: Shape, logits_precision: Accumulator
) -> Restoration:
    label_map = np.zeros(shape_zyx, dtype=np.uint8)
    interpolated = 0
    restorer: _PlaneRestorer | None = None
    planes: LabelArray = label_map
    for slab in slabs:
        if restorer is None:
            restorer = _PlaneRestorer(slab.axis, network_shape, shape_zyx, orders, logits_precision)
            planes = np.moveaxis(label_map, slab.axis, 0)
        for position, plane, count in restorer.add(slab):
            planes[position] = plane
            interpolated += count
    return Restoration(label_map=label_map, shortcut_share=1.0 - interpolated / label_map.size)


class _PlaneRestorer:
    """Makes the planes of the result across the streaming axis as soon as both their neighbours are there.

    Linear interpolation is a weighted mean of (up to) eight network voxels. If all eight have the same most
    likely class, the mean has it too, so only planes' voxels in cells on organ borders look at logits.
    """

    def __init__(
        self, axis: int, network_shape: Shape, shape_zyx: Shape, orders: Shape, logits_precision: Accumulator
    ) -> None:
        self._precision = logits_precision
        lower, upper, weight = linear_neighbours(network_shape[axis], shape_zyx[axis], orders[axis])
        self._lower, self._upper, self._weight = lower, upper, weight
        rows, columns = (other for other in range(3) if other != axis)
        self._rows = linear_neighbours(network_shape[rows], shape_zyx[rows], orders[rows])
        self._columns = linear_neighbours(network_shape[columns], shape_zyx[columns], orders[columns])
        self._next = 0
        self._last: tuple[Float32Array, LabelArray] | None = None

    def add(self, slab: Slab) -> Iterator[tuple[int, LabelArray, int]]:
        """Yields (position, uint8 plane, voxels that took interpolation) of all planes that are now possible."""
        logits = np.moveaxis(slab.logits, slab.axis + 1, 1)
        labels = most_likely_class(logits)
        stop = slab.start + logits.shape[1]
        while self._next < len(self._lower) and self._upper[self._next] < stop:
            near = self._plane(int(self._lower[self._next]), slab.start, logits, labels)
            far = self._plane(int(self._upper[self._next]), slab.start, logits, labels)
            plane, count = self._restore_plane(near, far, self._weight[self._next])
            yield self._next, plane, count
            self._next += 1
        self._last = (logits[:, -1].copy(), labels[-1].copy())

    def _plane(
        self, index: int, start: int, logits: Float32Array, labels: LabelArray
    ) -> tuple[Float32Array, LabelArray]:
        if index >= start:
            return logits[:, index - start], labels[index - start]
        assert self._last is not None and index == start - 1
        return self._last

    def _restore_plane(
        self, near: tuple[Float32Array, LabelArray], far: tuple[Float32Array, LabelArray], weight: np.float32
    ) -> tuple[LabelArray, int]:
        plane, settled = self._settled(near[1], far[1] if weight > 0 else near[1])
        open_rows, open_columns = np.nonzero(~settled)
        if open_rows.size:
            logits = near[0] if weight == 0 else near[0] + weight * (far[0] - near[0])
            plane[open_rows, open_columns] = self._interpolate(logits, open_rows, open_columns)
        return plane, int(open_rows.size)

    def _settled(self, near: LabelArray, far: LabelArray) -> tuple[LabelArray, Mask]:
        """(labels, where they are certain): all corners of the cell agree."""
        row_lower, row_upper, _ = self._rows
        column_lower, column_upper, _ = self._columns
        same = near == far
        same_rows = same[row_lower] & same[row_upper] & (near[row_lower] == near[row_upper])
        tall = near[row_lower]
        settled = same_rows[:, column_lower] & same_rows[:, column_upper]
        settled &= tall[:, column_lower] == tall[:, column_upper]
        return tall[:, column_lower], settled

    def _interpolate(self, logits: Float32Array, rows: Indices, columns: Indices) -> LabelArray:
        """uint8 (n,): the most likely class of bilinear logits at these voxels of the result."""
        classes, _, width = logits.shape
        by_voxel = np.ascontiguousarray(logits.reshape(classes, -1).T)
        row_lower, row_upper, row_weight = (self._rows[0][rows], self._rows[1][rows], self._rows[2][rows])
        column_lower, column_upper = self._columns[0][columns], self._columns[1][columns]
        column_weight = self._columns[2][columns]
        top = _mix(by_voxel, row_lower * width + column_lower, row_lower * width + column_upper, column_weight)
        bottom = _mix(by_voxel, row_upper * width + column_lower, row_upper * width + column_upper, column_weight)
        top += row_weight[:, None] * (bottom - top)
        labels: LabelArray = np.argmax(top.astype(self._precision, copy=False), axis=1).astype(np.uint8)
        return labels


def _mix(table: Float32Array, lower: Indices, upper: Indices, weight: Float32Array) -> Float32Array:
    first: Float32Array = table.take(lower, axis=0)
    first += weight[:, None] * (table.take(upper, axis=0) - first)
    return first
