"""From streamed logits at network resolution to a label map on the scan's own grid."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from app.plan import Accumulator, Mode
from app.resampling import linear_neighbours, nearest_indices
from app.running_sums import Slab
from app.volume import Float32Array, LabelArray, Shape

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

    A running maximum, since numpy's argmax over the slowest axis takes several times as long; plane by plane, each
    small enough for the processor's cache.
    """
    labels = np.zeros(logits.shape[1:], dtype=np.uint8)
    for plane, found in zip(np.moveaxis(logits, 1, 0), labels, strict=True):
        best = plane[0].copy()
        larger = np.empty(best.shape, dtype=bool)
        for label in range(1, len(plane)):
            np.greater(plane[label], best, out=larger)
            np.copyto(found, np.uint8(label), where=larger)
            np.maximum(best, plane[label], out=best)
    return labels


def _restore_fastest(slabs: Iterable[Slab], network_shape: Shape, shape_zyx: Shape) -> Restoration:
    labels = _on_network_grid(slabs, network_shape)
    for axis in range(3):
        labels = labels.take(nearest_indices(network_shape[axis], shape_zyx[axis]), axis=axis)
    return Restoration(label_map=labels, shortcut_share=1.0)


def _on_network_grid(slabs: Iterable[Slab], network_shape: Shape) -> LabelArray:
    """uint8 (z, y, x): the most likely classes. The last slab's logits are let go before the labels are enlarged."""
    labels = np.zeros(network_shape, dtype=np.uint8)
    for slab in slabs:
        planes = np.moveaxis(labels, slab.axis, 0)
        found = np.moveaxis(most_likely_class(slab.logits), slab.axis, 0)
        planes[slab.start : slab.start + len(found)] = found
    return labels


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


_Neighbours = tuple[Indices, Indices, Float32Array]  # lower, upper and its weight, of ``linear_neighbours``
_Plane = tuple[Float32Array, LabelArray]  # logits (rows, columns, classes) and labels of a plane of the network grid


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
        self._planes: dict[int, _Plane] = {}

    def add(self, slab: Slab) -> Iterator[tuple[int, LabelArray, int]]:
        """Yields (position, uint8 plane, voxels that took interpolation) of all planes that are now possible.

        A plane is borrowed: valid until the next one is asked for.
        """
        logits = np.moveaxis(slab.logits, slab.axis + 1, 1)
        labels = most_likely_class(logits)
        by_voxel = np.moveaxis(logits, 0, -1)
        for index, of_plane in enumerate(labels, start=slab.start):
            self._planes[index] = by_voxel[index - slab.start], of_plane
            while self._next < len(self._lower) and self._upper[self._next] <= index:
                yield from self._restore_layer()
            self._planes.pop(index - 1, None)
        last, of_plane = self._planes[index]
        self._planes = {index: (last.copy(), of_plane.copy())}

    def _restore_layer(self) -> Iterator[tuple[int, LabelArray, int]]:
        """The planes of the result from the next one on that lie between the same two of the network grid."""
        first, lower, upper = self._next, self._lower[self._next], self._upper[self._next]
        while self._next < len(self._lower) and (self._lower[self._next], self._upper[self._next]) == (lower, upper):
            self._next += 1
        near, far = self._planes[int(lower)], self._planes[int(upper)]
        plane, unsettled = self._settle(near[1], far[1])
        positions = range(first, self._next)
        if not unsettled.size:
            yield from ((position, plane, 0) for position in positions)
            return
        flat = plane.reshape(-1)
        found = self._interpolate(near[0], far[0], self._weight[first : self._next], unsettled)
        for position, labels in zip(positions, found, strict=True):
            flat[unsettled] = labels
            yield position, plane, int(unsettled.size)

    def _settle(self, near: LabelArray, far: LabelArray) -> tuple[LabelArray, Indices]:
        """(labels where all corners of the cell agree, flat indices of the other voxels) of a plane of the result.

        Only where one of the corners is no background is there something to look at.
        """
        plane = np.zeros((len(self._rows[0]), len(self._columns[0])), dtype=np.uint8)
        marked = np.maximum(near, far)
        rows = _beside(self._rows, np.flatnonzero(marked.any(axis=1)))
        columns = _beside(self._columns, np.flatnonzero(marked.any(axis=0)))
        row_lower, row_upper = (neighbours[rows] for neighbours in self._rows[:2])
        column_lower, column_upper = (neighbours[columns] for neighbours in self._columns[:2])
        tall = near.take(row_lower, axis=0)
        same = near == far
        same_rows = same.take(row_lower, axis=0)
        same_rows &= same.take(row_upper, axis=0)
        same_rows &= tall == near.take(row_upper, axis=0)
        labels = tall.take(column_lower, axis=1)
        settled = same_rows.take(column_lower, axis=1)
        settled &= same_rows.take(column_upper, axis=1)
        settled &= labels == tall.take(column_upper, axis=1)
        plane[rows, columns] = labels
        down, across = np.nonzero(~settled)
        return plane, (down + rows.start) * plane.shape[1] + (across + columns.start)

    def _interpolate(
        self, near: Float32Array, far: Float32Array, weights: Float32Array, voxels: Indices
    ) -> Iterator[LabelArray]:
        """uint8 (n,) for each weight: the most likely class of trilinear logits at these voxels of a plane.

        Args:
            near, far: float32 (rows, columns, classes), the planes of the network grid on both sides.
            weights: float32 (planes,), of ``far`` in each plane of the result.
            voxels: flat indices into such a plane.
        """
        cells = _Cells.around(voxels, near.shape[:2], self._rows, self._columns)
        if not weights.any():
            yield from repeat(self._argmax(cells.interpolate(near[cells.places])), len(weights))
            return
        if len(weights) == 1:  # along the streaming axis first, which has fewer voxels on the network grid
            yield self._argmax(cells.interpolate(_mix(near[cells.places], far[cells.places], weights[0])))
            return
        logits, rise = cells.interpolate(near[cells.places]), cells.interpolate(far[cells.places])
        rise -= logits
        for weight in weights:
            yield self._argmax(logits + weight * rise)

    def _argmax(self, logits: Float32Array) -> LabelArray:
        """uint8 (n,) of float32 (n, classes)."""
        labels: LabelArray = np.argmax(logits.astype(self._precision, copy=False), axis=1).astype(np.uint8)
        return labels


@dataclass(frozen=True)
class _Cells:
    """The four network voxels of a plane around each of some voxels of the result's.

    Attributes:
        places: (rows, columns) of all these network voxels, each once; a table (m, classes) has a row for each.
        corners: int32 (n,) four times, rows of a table: top left, top right, bottom left, bottom right.
        across, down: float32 (n, 1), weights of the right and of the lower corners.
    """

    places: tuple[Indices, Indices]
    corners: list[npt.NDArray[np.int32]]
    across: Float32Array
    down: Float32Array

    @classmethod
    def around(cls, voxels: Indices, shape: tuple[int, ...], rows: _Neighbours, columns: _Neighbours) -> "_Cells":
        """The cells of voxels, flat indices into a plane of the result, in a plane of ``shape`` of the network grid."""
        row, column = np.divmod(voxels, len(columns[0]))
        height, width = shape
        flat = [of_row.take(row) * width + of_column.take(column) for of_row in rows[:2] for of_column in columns[:2]]
        touched = np.zeros(height * width, dtype=bool)
        for corner in flat:
            touched[corner] = True
        rank = np.cumsum(touched, dtype=np.int32) - 1
        return cls(
            np.divmod(np.flatnonzero(touched), width),
            [rank.take(corner) for corner in flat],
            columns[2].take(column)[:, None],
            rows[2].take(row)[:, None],
        )

    def interpolate(self, table: Float32Array) -> Float32Array:
        """float32 (n, classes): bilinear between the corners' rows of a table."""
        top_left, top_right, bottom_left, bottom_right = (table.take(corner, axis=0) for corner in self.corners)
        top, bottom = _mix(top_left, top_right, self.across), _mix(bottom_left, bottom_right, self.across)
        return _mix(top, bottom, self.down)


def _beside(neighbours: _Neighbours, places: Indices) -> slice:
    """From the first to the last output voxel that lies beside one of these input voxels; empty if there are none."""
    if not places.size:
        return slice(0, 0)
    lower, upper, _ = neighbours
    return slice(int(np.searchsorted(upper, places[0])), int(np.searchsorted(lower, places[-1], side="right")))


def _mix(first: Float32Array, second: Float32Array, weight: Float32Array | np.float32) -> Float32Array:
    """``first`` + ``weight`` * (``second`` - ``first``), in place of both."""
    second -= first
    second *= weight
    first += second
    return first
