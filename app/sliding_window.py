"""Sliding window inference with the weighted sum streamed: only one patch's thickness of logits is alive."""

from collections.abc import Callable, Iterator
from itertools import product
from math import ceil
from typing import Protocol

import numpy as np

from app.errors import CaseError
from app.plan import SlidingWindowPlan
from app.running_sums import RunningSums, Slab, gaussian_importance_map, softmax
from app.volume import Float32Array, Shape


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
    again. A scan smaller than the patch is surrounded, evenly on both sides, by what ``plan.padding`` says.

    Args:
        image: float32 (z, y, x), normalised.
        predictor: gives logits of one tile.
        classes: channels of the logits.
        plan: patch, step, weights, padding and mirror axes.
        pad_value: normalised value outside the scan, if ``plan.padding`` is constant.
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
    flips = _flips(plan.mirror_axes if mirror else ())
    averages_probabilities = plan.average == "probabilities"
    sums = RunningSums(
        axis,
        before,
        _as_shape(image.shape),
        padded,
        weights,
        classes,
        takes_softmax=averages_probabilities and len(flips) == 1,
    )
    across = [starts[other] if other != axis else [0] for other in range(3)]
    for position in starts[axis]:
        yield from sums.advance(position)
        for start in product(*across):
            corner = _as_shape(tuple(position if other == axis else start[other] for other in range(3)))
            inside = _as_shape(tuple(c - b for c, b in zip(corner, before, strict=True)))
            tile = _extract(image, inside, patch, None if plan.padding == "edge" else pad_value)
            sums.add(_predict(tile, predictor, classes, flips, averages_probabilities), _as_shape(start))
            on_window()
    yield from sums.advance(padded[axis])


def _flips(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every subset of the axes: () and (2,) of (2,)."""
    picks = product((False, True), repeat=len(axes))
    return [tuple(axis for axis, chosen in zip(axes, pick, strict=True) if chosen) for pick in picks]


def _predict(
    tile: Float32Array, predictor: Predictor, classes: int, flips: list[tuple[int, ...]], averages_probabilities: bool
) -> Float32Array:
    """Logits of the tile; of several flips the mean of logits or probabilities."""
    if len(flips) == 1:
        return _predict_checked(tile, predictor, classes)
    total = np.zeros((classes, *tile.shape), dtype=np.float32)
    for axes in flips:
        flipped = np.ascontiguousarray(np.flip(tile, axes))
        logits = _predict_checked(flipped, predictor, classes)
        total += np.flip(softmax(logits) if averages_probabilities else logits, tuple(axis + 1 for axis in axes))
    total /= len(flips)
    return total


def _predict_checked(tile: Float32Array, predictor: Predictor, classes: int) -> Float32Array:
    try:
        logits = predictor.predict(tile)
    except RuntimeError as error:  # what runtimes raise when they cannot go on
        raise CaseError(f"the network failed on a window ({error})") from error
    if logits.shape != (classes, *tile.shape):
        raise CaseError(f"the network returned shape {logits.shape}; expected {(classes, *tile.shape)}")
    return logits


def _starts(shape_zyx: Shape, plan: SlidingWindowPlan) -> list[list[int]]:
    return [
        tile_starts(length, patch, plan.tile_step_size)
        for length, patch in zip(shape_zyx, plan.patch_size, strict=True)
    ]


def _extract(image: Float32Array, corner: Shape, patch: Shape, pad_value: float | None) -> Float32Array:
    """The tile at ``corner`` (negative in padding), contiguous; without a pad value edges are repeated."""
    source = tuple(slice(max(0, c), min(n, c + p)) for c, n, p in zip(corner, image.shape, patch, strict=True))
    if all(cut.stop - cut.start == side for cut, side in zip(source, patch, strict=True)):
        return np.ascontiguousarray(image[source])
    if pad_value is None:
        beyond = [(max(0, -c), max(0, c + p - n)) for c, n, p in zip(corner, image.shape, patch, strict=True)]
        return np.pad(image[source], beyond, mode="edge")
    tile = np.full(patch, pad_value, dtype=np.float32)
    tile[tuple(slice(cut.start - c, cut.stop - c) for cut, c in zip(source, corner, strict=True))] = image[source]
    return tile


def _as_shape(values: tuple[int, ...]) -> Shape:
    z, y, x = values
    return (z, y, x)
