"""Separable interpolation as one small matrix per axis, applied by BLAS.

Splines on a grid are linear in the data, so zooming an axis is a matrix product. The matrices are what
``scipy.ndimage.zoom`` makes of unit impulses with the conventions of nnU-Net (skimage's ``resize``): voxels
are cells, so centres map as (i + 0.5) * n_in / n_out - 0.5, and the edge voxel continues outwards. For orders 0 and 1
they are written down, the same bits, since SciPy takes as long to import as a scan to be resampled.
"""

from collections.abc import Callable
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt

from app.volume import Array, Float32Array, Shape

# A cubic spline's weights fade out over hundreds of voxels; below 1e-38 a float is subnormal, and a product with it
# takes many times as long: ct_001 1.9 s in place of 0.2. What is dropped is lost in the rounding of any sum of HU.
_SMALLEST_WEIGHT = 1e-20

PICKED_PART = 8

SLAB_BYTES = 32 * 2**20  # of float32 at a time; 16 to 64 MiB time the same on ct_001, more only holds memory


@lru_cache(maxsize=32)
def interpolation_matrix(n_in: int, n_out: int, order: int) -> Float32Array:
    """float32 (n_out, n_in): row i gives the weights of the input voxels in output voxel i.

    ``interpolation_matrix(2, 4, 1)`` is [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]].
    """
    if n_in == n_out:
        matrix = np.eye(n_in)
    elif n_in == 1:
        matrix = np.ones((n_out, 1))
    elif order < 2:
        matrix = _between_neighbours(n_in, n_out, order)
    else:
        matrix = _zoomed_impulses(n_in, n_out, order)
    matrix[np.abs(matrix) < _SMALLEST_WEIGHT] = 0
    result = np.ascontiguousarray(matrix, dtype=np.float32)
    result.setflags(write=False)
    return result


def _between_neighbours(n_in: int, n_out: int, order: int) -> npt.NDArray[np.float64]:
    """Weights of the nearest voxel (the upper one of two as near), or of the two that a centre lies between."""
    centre = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1)
    matrix, row = np.zeros((n_out, n_in)), np.arange(n_out)
    if order == 0:
        matrix[row, np.floor(centre + 0.5).astype(np.intp)] = 1
        return matrix
    lower = np.floor(centre).astype(np.intp)
    matrix[row, np.minimum(lower + 1, n_in - 1)] = centre - lower
    matrix[row, lower] = 1 - (centre - lower)
    return matrix


def load_splines(order: int) -> None:
    """Imports what an order above 1 needs (20 MiB), so that a prediction of memory sees it."""
    if order > 1:
        import scipy.ndimage  # noqa: F401


def _zoomed_impulses(n_in: int, n_out: int, order: int) -> npt.NDArray[np.float64]:
    from scipy import ndimage

    columns = [
        ndimage.zoom(impulse, n_out / n_in, order=order, mode="nearest", grid_mode=True) for impulse in np.eye(n_in)
    ]
    matrix = np.stack(columns, axis=1)
    if matrix.shape != (n_out, n_in):
        raise ValueError(f"zoom of {n_in} to {n_out} voxels gave {matrix.shape[0]}")
    return matrix


def nearest_indices(n_in: int, n_out: int) -> npt.NDArray[np.intp]:
    """intp (n_out,): the input voxel nearest to each output voxel. 2 -> 4 voxels: [0, 0, 1, 1]."""
    indices: npt.NDArray[np.intp] = np.argmax(interpolation_matrix(n_in, n_out, 0), axis=1)
    return indices


def linear_neighbours(
    n_in: int, n_out: int, order: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Float32Array]:
    """(lower, upper, weight of upper) of each output voxel, for order 0 or 1.

    Order 1, 2 -> 4 voxels: lower [0, 0, 0, 0], upper [0, 1, 1, 1], weight [0, 0.25, 0.75, 1] up to the choice of
    a neighbour whose weight is 0. Under order 0 lower and upper are the same voxel.
    """
    matrix = interpolation_matrix(n_in, n_out, order)
    lower = np.argmax(matrix > 0, axis=1)
    upper = n_in - 1 - np.argmax(matrix[:, ::-1] > 0, axis=1)
    weight = np.where(upper > lower, matrix[np.arange(n_out), upper], np.float32(0))
    return lower, upper, weight.astype(np.float32)


def resample(
    voxels: Array,
    shape_zyx: Shape,
    orders: Shape,
    prepare: Callable[[Float32Array], None] = lambda slab: None,
    clip_overshoot: bool = False,
) -> Float32Array:
    """float32 (z, y, x): ``voxels`` interpolated to ``shape_zyx``.

    Works slab by slab along z: each slab alone becomes float, is shrunk in x and y, and adds its share to
    all output slices that it reaches. Peak memory is the result, the input as it came and one or two slabs
    (``memory_need``); of a grid so coarse that it uses an eighth of the input at most, those voxels besides.

    Args:
        voxels: (z, y, x) of any real type and memory order.
        shape_zyx: of the result.
        orders: spline order per axis: 0, 1 or 3.
        prepare: changes the voxels of a slab in place before they are interpolated (to HU, say).
        clip_overshoot: keep within the range of the input; where exactly one axis has order 0, within the range
            of the plane across it that a voxel comes from (see ``InterpolationPlan``).
    """
    matrices = [
        interpolation_matrix(n_in, n_out, order)
        for n_in, n_out, order in zip(voxels.shape, shape_zyx, orders, strict=True)
    ]
    if not clip_overshoot:
        voxels, matrices = _without_unused(voxels, matrices)
    along_z, along_y, along_x = matrices
    depth, height, width = voxels.shape
    result = np.zeros((shape_zyx[0], shape_zyx[1] * shape_zyx[2]), dtype=np.float32)
    extremes = _Extremes(voxels.shape, orders) if clip_overshoot else None
    # Linearly, of thin slices one or two have weights in a plane of the grid, and those between them none.
    used = np.arange(depth) if extremes else np.flatnonzero(along_z.any(axis=0))
    thickness = max(1, SLAB_BYTES // (4 * height * width))
    rows_at_once = max(1, SLAB_BYTES // result[0].nbytes)
    for start in range(0, len(used), thickness):
        planes = used[start : start + thickness]
        slab = np.empty((len(planes), height, width), dtype=np.float32)
        for plane, index in zip(slab, planes, strict=True):
            plane[...] = voxels[index]
        prepare(slab)
        if extremes:
            extremes.add(slab, start)
        narrow = slab.reshape(-1, width).dot(along_x.T).reshape(len(planes), height, -1)
        del slab, plane
        in_plane = np.empty((len(planes), len(along_y), narrow.shape[2]), dtype=np.float32)
        for plane, shrunk in zip(narrow, in_plane, strict=True):  # as matmul would, but signals get through: on a busy
            np.matmul(along_y, plane, out=shrunk)  # machine BLAS's threads wait for each other, 2 s for 64 planes
        del narrow, plane, shrunk
        weights = along_z[:, planes]
        reached = np.flatnonzero(np.any(weights != 0, axis=1))
        for first in range(reached[0], reached[-1] + 1, rows_at_once) if reached.size else ():
            rows = slice(first, min(first + rows_at_once, reached[-1] + 1))
            result[rows] += weights[rows] @ in_plane.reshape(len(planes), -1)
        del in_plane
    if extremes:
        extremes.clip(result.reshape(shape_zyx))
    return result.reshape(shape_zyx)


def _without_unused(voxels: Array, matrices: list[Float32Array]) -> tuple[Array, list[Float32Array]]:
    """The voxels that have weights, and those; as they are unless that is an eighth at most.

    A grid of 6 mm looks at two voxels of eight along axes of 0.7 mm. Where more is used, picking takes longer.
    """
    used = [np.flatnonzero(matrix.any(axis=0)) for matrix in matrices]
    if prod(map(len, used)) * PICKED_PART > voxels.size:
        return voxels, matrices
    columns = [np.ascontiguousarray(matrix[:, places]) for matrix, places in zip(matrices, used, strict=True)]
    return voxels[np.ix_(*used)], columns


class _Extremes:
    """Smallest and largest value of the input: of all of it, or plane by plane across the axis of order 0."""

    def __init__(self, shape_zyx: tuple[int, ...], orders: Shape) -> None:
        separate = [axis for axis, order in enumerate(orders) if order == 0]
        self._axis = separate[0] if len(separate) == 1 else None
        planes = 1 if self._axis is None else shape_zyx[self._axis]
        self._low = np.full(planes, np.inf, dtype=np.float32)
        self._high = np.full(planes, -np.inf, dtype=np.float32)

    def add(self, slab: Float32Array, start: int) -> None:
        """Takes note of the slab whose first plane along z is ``start``."""
        across = tuple(axis for axis in range(3) if axis != self._axis)
        place = slice(start, start + len(slab)) if self._axis == 0 else slice(None)
        self._low[place] = np.minimum(self._low[place], slab.min(axis=across))
        self._high[place] = np.maximum(self._high[place], slab.max(axis=across))

    def clip(self, result: Float32Array) -> None:
        """Brings the result (z, y, x) into range, in place."""
        low, high = self._low, self._high
        if self._axis is not None:
            planes = nearest_indices(len(low), result.shape[self._axis])
            shape = [1, 1, 1]
            shape[self._axis] = -1
            low, high = low[planes].reshape(shape), high[planes].reshape(shape)
        np.clip(result, low, high, out=result)
