"""The weighted sums of overlapping tiles: only one patch's thickness of them is alive."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from app.errors import CaseError
from app.plan import Accumulator
from app.volume import Float32Array, Shape

Importance = npt.NDArray[np.float32] | npt.NDArray[np.float16]

_BLOCK_VOXELS = 2**16  # four arrays of 256 KiB
_WIDENED_PLANES = 8  # of half-precision sums that are handed out as float32 at a time
_PEAKS = {"float32": 1.0, "float16": 10.0}  # v2 multiplies its half-precision map by 10


@dataclass(frozen=True)
class Slab:
    """Finished logits of consecutive planes of the network grid.

    Attributes:
        axis: the streaming axis.
        start: index of the first plane along it.
        logits: float32 (classes, z, y, x), averaged; borrowed: valid until the next slab is asked for.
    """

    axis: int
    start: int
    logits: Float32Array


@lru_cache(maxsize=4)
def gaussian_importance_map(patch_size: Shape, sigma_scale: float, accumulator: Accumulator = "float32") -> Importance:
    """(z, y, x): weight of each voxel of a tile (nnU-Net's ``_get_gaussian``, v2's ``compute_gaussian``).

    A unit impulse at ``patch // 2`` blurred with sigma = patch * sigma_scale and scaled to a maximum of 1, or for
    ``float16`` of 10, as v2 does; zeros become the smallest positive value, so that no voxel is left without weight.
    Blurred axis by axis it is a product of three: the same numbers, a hundredth of the time.
    """
    along_z, along_y, along_x = (_blurred_impulse(length, length * sigma_scale) for length in patch_size)
    blurred = (along_z[:, None] * along_y)[:, :, None] * along_x
    weights: Importance = (blurred / blurred.max() * _PEAKS[accumulator]).astype(accumulator)
    weights[weights == 0] = weights[weights > 0].min()
    weights.setflags(write=False)
    return weights


def _blurred_impulse(length: int, sigma: float) -> npt.NDArray[np.float64]:
    """(length,): what ``scipy.ndimage.gaussian_filter1d`` makes of 1 at ``length // 2``, to the bit: a cut Gaussian."""
    reach = int(4 * sigma + 0.5)
    distance = np.arange(-reach, reach + 1)
    gaussian = np.exp(-0.5 / (sigma * sigma) * distance**2)
    gaussian /= gaussian.sum()
    blurred = np.zeros(length)
    places = distance + length // 2
    inside = (places >= 0) & (places < length)
    blurred[places[inside]] = gaussian[inside]
    return blurred


def block_planes(patch_size: Shape) -> int:
    """Planes of a tile that are weighted and added at a time: 4 of 128 x 128 voxels."""
    return max(1, min(patch_size[0], _BLOCK_VOXELS // (patch_size[1] * patch_size[2])))


def slab_planes(patch_planes: int, accumulator: Accumulator) -> int:
    """The most planes of a slab: all that a tile finishes, but few at a time where they have to be made wider."""
    return patch_planes if accumulator == "float32" else min(patch_planes, _WIDENED_PLANES)


def softmax(logits: Float32Array, out: Float32Array | None = None) -> Float32Array:
    """float32 (classes, ...): probabilities of float32 (classes, ...) logits, in ``out`` if that is given."""
    shifted: Float32Array = np.subtract(logits, logits.max(axis=0), out=out)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=0)
    return shifted


class RunningSums:
    """Weighted sums of one patch's thickness along the streaming axis, moved along as planes are finished.

    They are of the type of the importance map; in float16 each sum is rounded once a tile, as v2's are. With
    ``takes_softmax`` what is summed are probabilities of the logits that are added.
    """

    def __init__(
        self,
        axis: int,
        before: Shape,
        shape: Shape,
        padded: Shape,
        importance: Importance,
        classes: int,
        takes_softmax: bool,
    ) -> None:
        patch = importance.shape
        self._axis, self._before, self._shape, self._patch, self._importance = axis, before, shape, patch, importance
        live = tuple(patch[a] if a == axis else padded[a] for a in range(3))
        self._accumulator: Accumulator = "float16" if importance.dtype == np.float16 else "float32"
        self._logits = np.zeros((classes, *live), dtype=importance.dtype)
        self._weights = np.zeros(live, dtype=importance.dtype)
        block = (block_planes(patch), *patch[1:])
        self._weighted = np.empty(block, dtype=np.float32)
        self._probabilities = np.empty((classes, *block), dtype=np.float32) if takes_softmax else None
        self._position = 0

    def add(self, logits: Float32Array, start: Shape) -> None:
        """Adds a tile, weighted, whose corner, apart from the streaming axis, is ``start``.

        Block by block, each small enough for the processor's cache: a tile of 112 x 160 x 128 with 14 classes takes
        0.1 s with softmax; with arrays of its size, which the kernel has to clear first, 0.5 s.
        """
        rows, columns = (slice(first, first + side) for first, side in zip(start[1:], self._patch[1:], strict=True))
        for first in range(0, self._patch[0], len(self._weighted)):
            planes = slice(first, min(first + len(self._weighted), self._patch[0]))
            place = slice(start[0] + planes.start, start[0] + planes.stop)
            weights, weighted = self._importance[planes], self._weighted[: planes.stop - planes.start]
            self._weights[place, rows, columns] += weights
            block = logits[:, planes]
            if self._probabilities is not None:
                block = softmax(block, out=self._probabilities[:, : planes.stop - planes.start])
            for of_class, sums in zip(block, self._logits, strict=True):
                np.multiply(of_class, weights, out=weighted)
                sums[place, rows, columns] += weighted

    def advance(self, position: int) -> Iterator[Slab]:
        """Hands out the planes before ``position`` and makes room for tiles that start there."""
        finished = position - self._position
        if finished == 0:
            return
        thickness = self._patch[self._axis]
        last, most = min(finished, thickness), slab_planes(thickness, self._accumulator)
        for first in range(0, last, most):
            slab = self._finish(slice(first, min(first + most, last)))
            if slab is not None:
                yield slab
        for plane_stack in (*self._logits, self._weights):
            moved = np.moveaxis(plane_stack, self._axis, 0)
            moved[: thickness - finished] = moved[finished:]
            moved[max(0, thickness - finished) :] = 0
        self._position = position

    def _finish(self, planes: slice) -> Slab | None:
        """Averages these planes and cuts the padding off; None if nothing but padding is left."""
        axis = self._axis
        first = max(planes.start, self._before[axis] - self._position)
        stop = min(planes.stop, self._before[axis] + self._shape[axis] - self._position)
        if first >= stop:
            return None
        inner = tuple(
            slice(first, stop) if a == axis else slice(self._before[a], self._before[a] + self._shape[a])
            for a in range(3)
        )
        logits = self._logits[:, *inner]
        logits /= self._weights[inner]
        if not np.isfinite(logits.sum(dtype=np.float64)):
            raise CaseError("the network returned numbers that are not finite; try --precision fp32")
        start = self._position + first - self._before[axis]
        return Slab(axis=axis, start=start, logits=logits.astype(np.float32, copy=False))
