"""Sliding window inference with the weighted sum streamed: only one patch's thickness of logits is alive."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.errors import CaseError
from app.plan import Accumulator, SlidingWindowPlan
from app.volume import Float32Array, Shape

Importance = npt.NDArray[np.float32] | npt.NDArray[np.float16]

_PEAKS = {"float32": 1.0, "float16": 10.0}  # v2 multiplies its half-precision map by 10


class Predictor(Protocol):
    """A network that is ready to run on one device."""

    @property
    def backend(self) -> str:
        """What really runs it, for the report."""
        ...

    @property
    def device(self) -> str:
        """Where it runs."""
        ...

    @property
    def precision(self) -> str:
        """What it calculates in."""
        ...

    def predict(self, tile: Float32Array) -> Float32Array:
        """float32 (classes, z, y, x) logits of a float32 (z, y, x) tile of the plan's patch size.

        The result may be overwritten by the next call.
        """
        ...


class AirSkipper:
    """A predictor that calculates a tile of one value everywhere once, and then gives the same logits again.

    After clipping, air and lung are one number, so that windows beside the patient are such tiles, and the logits those
    that the network would give.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.backend, self.device, self.precision = predictor.backend, predictor.device, predictor.precision
        self._predictor = predictor
        self._value: float | None = None
        self._logits: Float32Array | None = None

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        value = float(tile[0, 0, 0])
        if not (tile == value).all():
            return self._predictor.predict(tile)
        if self._logits is None or value != self._value:
            self._value, self._logits = value, self._predictor.predict(tile).copy()
        return self._logits


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


def tile_starts(length: int, patch: int, tile_step_size: float) -> list[int]:
    """First voxels of the tiles along one axis: first at 0, last at the end, evenly spread (nnU-Net).

    Length 110, patch 64, step 0.5 give [0, 23, 46]: two steps of at most 32 voxels are needed to cover 46.
    A patch longer than the axis starts at 0; the caller pads.
    """
    last = length - patch
    if last <= 0:
        return [0]
    steps = ceil(last / max(1.0, patch * tile_step_size))
    return [round(last / steps * i) for i in range(steps + 1)]


@lru_cache(maxsize=4)
def gaussian_importance_map(patch_size: Shape, sigma_scale: float, accumulator: Accumulator = "float32") -> Importance:
    """(z, y, x): weight of each voxel of a tile (nnU-Net's ``_get_gaussian``, v2's ``compute_gaussian``).

    A unit impulse at ``patch // 2`` blurred with sigma = patch * sigma_scale and scaled to a maximum of 1, or for
    ``float16`` of 10, as v2 does; zeros become the smallest positive value, so that no voxel is left without weight.
    """
    impulse = np.zeros(patch_size)
    impulse[tuple(length // 2 for length in patch_size)] = 1
    blurred = ndimage.gaussian_filter(impulse, [length * sigma_scale for length in patch_size], mode="constant")
    weights: Importance = (blurred / blurred.max() * _PEAKS[accumulator]).astype(accumulator)
    weights[weights == 0] = weights[weights > 0].min()
    weights.setflags(write=False)
    return weights


def streaming_axis(shape_zyx: Shape, plan: SlidingWindowPlan) -> int:
    """The axis along which a live slab (patch thickness x full cross-section) is smallest, or the plan's first one.

    400 x 155 x 179 with patch 64 x 128 x 128: along z 64 x 155 x 179 voxels live, the least of the three.
    """
    if plan.sum_order == "by_axis":
        return 0
    return min(range(3), key=lambda axis: min(plan.patch_size[axis], shape_zyx[axis]) / shape_zyx[axis])


def count_windows(shape_zyx: Shape, plan: SlidingWindowPlan) -> int:
    """How many tiles a scan of this network shape takes."""
    z, y, x = _starts(shape_zyx, plan)
    return len(z) * len(y) * len(x)


def stream_logits(
    image: Float32Array,
    predictor: Predictor,
    classes: int,
    plan: SlidingWindowPlan,
    pad_value: float,
    mirror: bool = False,
    on_window: Callable[[], None] = lambda: None,
) -> Iterator[Slab]:
    """Yields the averaged logits (or probabilities) of ``image`` slab by slab along the streaming axis.

    A plane is final once no later tile can touch it; it is then averaged, handed out and its place used
    again. A scan smaller than the patch is surrounded by ``pad_value``, evenly on both sides.

    Args:
        image: float32 (z, y, x), normalised.
        predictor: gives logits of one tile.
        classes: channels of the logits.
        plan: patch, step, weights and mirror axes.
        pad_value: normalised value outside the scan.
        mirror: average over all flips along ``plan.mirror_axes`` (test-time mirroring).
        on_window: called after each tile.

    Raises:
        CaseError: the network returned the wrong shape or numbers that are not finite.
    """
    patch = plan.patch_size
    starts = _starts(_as_shape(image.shape), plan)
    padded = _as_shape(tuple(max(length, side) for length, side in zip(image.shape, patch, strict=True)))
    before = _as_shape(tuple((full - length) // 2 for full, length in zip(padded, image.shape, strict=True)))
    axis = streaming_axis(padded, plan)
    weights = gaussian_importance_map(patch, plan.gaussian_sigma_scale, plan.accumulator)
    sums = _RunningSums(axis, before, _as_shape(image.shape), padded, weights, classes)
    scratch = np.empty((classes, *patch), dtype=np.float32)
    across = [starts[other] if other != axis else [0] for other in range(3)]
    for position in starts[axis]:
        yield from sums.advance(position)
        for start in product(*across):
            corner = _as_shape(tuple(position if other == axis else start[other] for other in range(3)))
            tile = _extract(
                image, _as_shape(tuple(c - b for c, b in zip(corner, before, strict=True))), patch, pad_value
            )
            mean = _predict_mirrored(tile, predictor, classes, plan, mirror)
            np.multiply(mean, weights, out=scratch)
            sums.add(scratch, _as_shape(start))
            on_window()
    yield from sums.advance(padded[axis])


class _RunningSums:
    """Weighted sums of one patch's thickness along the streaming axis, moved along as planes are finished.

    They are of the type of the importance map; in float16 each sum is rounded once a tile, as v2's are.
    """

    def __init__(
        self, axis: int, before: Shape, shape: Shape, padded: Shape, importance: Importance, classes: int
    ) -> None:
        patch = _as_shape(importance.shape)
        self._axis, self._before, self._shape, self._patch, self._importance = axis, before, shape, patch, importance
        live = tuple(patch[a] if a == axis else padded[a] for a in range(3))
        self._logits = np.zeros((classes, *live), dtype=importance.dtype)
        self._weights = np.zeros(live, dtype=importance.dtype)
        self._position = 0

    def add(self, weighted: Float32Array, start: Shape) -> None:
        """Adds a tile whose corner, apart from the streaming axis, is ``start``."""
        place = tuple(slice(first, first + side) for first, side in zip(start, self._patch, strict=True))
        self._logits[:, *place] += weighted
        self._weights[place] += self._importance

    def advance(self, position: int) -> Iterator[Slab]:
        """Hands out the planes before ``position`` and makes room for tiles that start there."""
        finished = position - self._position
        if finished == 0:
            return
        thickness = self._patch[self._axis]
        slab = self._finish(slice(0, min(finished, thickness)))
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
        start = self._position + first - self._before[axis]
        return Slab(axis=axis, start=start, logits=logits.astype(np.float32, copy=False))


def _predict_mirrored(
    tile: Float32Array, predictor: Predictor, classes: int, plan: SlidingWindowPlan, mirror: bool
) -> Float32Array:
    """Mean over the flips of the tile: none, or every subset of the mirror axes."""
    axes = plan.mirror_axes if mirror else ()
    subsets = [
        tuple(a for a, chosen in zip(axes, picks, strict=True) if chosen) for picks in product((0, 1), repeat=len(axes))
    ]
    if len(subsets) == 1:
        return _predict_checked(tile, predictor, classes, plan)
    total = np.zeros((classes, *tile.shape), dtype=np.float32)
    for subset in subsets:
        flipped = np.ascontiguousarray(np.flip(tile, subset))
        logits = _predict_checked(flipped, predictor, classes, plan)
        total += np.flip(logits, tuple(a + 1 for a in subset))
    total /= len(subsets)
    return total


def _predict_checked(tile: Float32Array, predictor: Predictor, classes: int, plan: SlidingWindowPlan) -> Float32Array:
    try:
        logits = predictor.predict(tile)
    except RuntimeError as error:  # what runtimes raise when they cannot go on
        raise CaseError(f"the network failed on a window ({error})") from error
    if logits.shape != (classes, *tile.shape):
        raise CaseError(f"the network returned shape {logits.shape}; expected {(classes, *tile.shape)}")
    if not np.isfinite(logits.sum(dtype=np.float64)):
        raise CaseError("the network returned numbers that are not finite; try --precision fp32")
    return _softmax(logits) if plan.average == "probabilities" else logits


def _softmax(logits: Float32Array) -> Float32Array:
    shifted: Float32Array = np.exp(logits - logits.max(axis=0))
    shifted /= shifted.sum(axis=0)
    return shifted


def _starts(shape_zyx: Shape, plan: SlidingWindowPlan) -> list[list[int]]:
    return [
        tile_starts(length, patch, plan.tile_step_size)
        for length, patch in zip(shape_zyx, plan.patch_size, strict=True)
    ]


def _extract(image: Float32Array, corner: Shape, patch: Shape, pad_value: float) -> Float32Array:
    """The tile at ``corner`` (negative in padding), contiguous."""
    source = tuple(slice(max(0, c), min(n, c + p)) for c, n, p in zip(corner, image.shape, patch, strict=True))
    if all(cut.stop - cut.start == side for cut, side in zip(source, patch, strict=True)):
        return np.ascontiguousarray(image[source])
    tile = np.full(patch, pad_value, dtype=np.float32)
    tile[tuple(slice(cut.start - c, cut.stop - c) for cut, c in zip(source, corner, strict=True))] = image[source]
    return tile


def _as_shape(values: tuple[int, ...]) -> Shape:
    z, y, x = values
    return (z, y, x)
