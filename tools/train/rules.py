"""nnU-Net's published rules: from a data set's fingerprint to spacing, patch, network and batch size.

Isensee et al., Nature Methods 2021, online methods and supplementary note 2; the numbers that the text leaves open
are those of nnU-Net v1's planners "v2.1". There is no cascade here and axes are not transposed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from app.plan import NetworkPlan
from app.volume import Shape, Vector

SMALLEST_EDGE = 4  # no axis is halved below this in the deepest feature map
ANISOTROPY = 3.0
BASE_FEATURES = 32
MOST_FEATURES = {2: 480, 3: 320}

_BLOCKS_PER_LEVEL = 5  # two convolutions down, two up, one transposed: feature maps held per level
_LARGEST_PATCH_MM = 512
_SMALLEST_BATCH = 2
_LARGEST_DATA_PART = 0.05  # a batch covers at most 5 % of the data set's voxels
# Feature-map voxels that fit 11 GB; features are counted as 30, 32 cost no more in half precision.
_BUDGET_3D = 520_000_000 * 32 / 30
_BUDGET_2D = 19_739_648 * 50 / 2


@dataclass(frozen=True)
class Topology:
    """Where a network pools.

    Attributes:
        patch_size: voxels per axis (3 or 2 axes), divisible by the total stride.
        strides: of each pooling, per axis.
        kernel_sizes: of each stage, per axis; one more than strides.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """Total stride per axis."""
        return tuple(int(total) for total in np.prod(self.strides, axis=0)) if self.strides else (1,) * self.dimensions

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    def network(self) -> NetworkPlan:
        """The U-Net: 32 features, doubled from stage to stage up to 320 (3-D) or 480 (2-D)."""
        stages = range(len(self.kernel_sizes))
        most = MOST_FEATURES[self.dimensions]
        return NetworkPlan(
            features_per_stage=tuple(min(BASE_FEATURES * 2**stage, most) for stage in stages),
            strides=((1,) * self.dimensions, *self.strides),
            kernel_sizes=self.kernel_sizes,
        )


@dataclass(frozen=True)
class Configuration:
    """What the rules say: a patch (3 or 2 axes), the network for it, and how many of them make a batch."""

    patch_size: tuple[int, ...]
    network: NetworkPlan
    batch_size: int


def target_spacing(spacings_zyx_mm: Sequence[Vector], shapes_zyx: Sequence[Shape]) -> Vector:
    """The median spacing; along a very anisotropic axis the 10th percentile, though no finer than the others.

    An axis counts as very anisotropic if its median spacing is more than 3 times the next one's and its median
    length less than a third of the others'. KiTS (10th percentile 0.5, in plane 0.78) gets 0.78 along z.
    """
    spacings = np.asarray(spacings_zyx_mm, dtype=np.float64)
    target = np.median(spacings, axis=0)
    lengths = np.median(np.asarray(shapes_zyx, dtype=np.float64), axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarsest_other = float(target[others].max())
    if target[worst] > ANISOTROPY * coarsest_other and lengths[worst] * ANISOTROPY < lengths[others].min():
        target[worst] = max(float(np.percentile(spacings[:, worst], 10)), coarsest_other)
    z, y, x = (float(length) for length in target)
    return (z, y, x)


def median_shape(spacings_zyx_mm: Sequence[Vector], shapes_zyx: Sequence[Shape], target_zyx_mm: Vector) -> Shape:
    """Median voxels (z, y, x) of the scans at the target spacing. One scan of 100 x 5 mm at 2.5 mm: 200."""
    shapes = np.asarray(shapes_zyx) * np.asarray(spacings_zyx_mm) / np.asarray(target_zyx_mm)
    z, y, x = (max(1, round(float(length))) for length in np.median(shapes, axis=0))
    return (z, y, x)


def topology(spacing_mm: Sequence[float], patch_size: Sequence[int]) -> Topology:
    """Halve, again and again, all axes whose spacing is within a factor of 2 of the finest and that are long enough.

    Convolutions span an axis (3, not 1) once its spacing is within a factor of 2 of the largest group of axes.
    Spacing 2.5 x 0.8 x 0.8 with 40 x 224 x 192 voxels: 1x2x2, 2x2x2, 2x2x2, 2x2x2, 1x2x2; first kernel 1x3x3.
    """
    spacing, lengths = list(spacing_mm), list(patch_size)
    axes = range(len(lengths))
    strides, kernels = [], []
    while True:
        finest = min(spacing)
        halved = [axis for axis in axes if spacing[axis] / finest < 2 and lengths[axis] >= 2 * SMALLEST_EDGE]
        if not halved:
            break
        alike = max(([b for b in axes if 0.5 < spacing[b] / spacing[a] < 2] for a in axes), key=len)
        kernels.append(tuple(3 if axis in alike else 1 for axis in axes))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            spacing[axis] *= 2
            lengths[axis] = ceil(lengths[axis] / 2)
    kernels.append((3,) * len(lengths))
    totals = [int(np.prod([stride[axis] for stride in strides])) for axis in axes]
    padded = tuple(ceil(length / total) * total for length, total in zip(patch_size, totals, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels))


def plan_3d(spacing_zyx_mm: Vector, median_zyx: Shape, cases: int, classes: int, channels: int = 1) -> Configuration:
    """The 3-D configuration: the largest patch that fits the memory, shaped like the median scan, and its network.

    It starts with 512 mm along the coarsest axis and as many voxels' worth of mm along the others, cut to the
    median scan; while too large, the axis that covers most of the median scan gives way.
    """
    coarsest = max(spacing_zyx_mm)
    start = [
        min(round(_LARGEST_PATCH_MM * coarsest / spacing), length)
        for spacing, length in zip(spacing_zyx_mm, median_zyx, strict=True)
    ]
    found, used = _fit(spacing_zyx_mm, start, median_zyx, _BUDGET_3D, BASE_FEATURES, classes + channels)
    batch = floor(max(_BUDGET_3D / used, 1) * _SMALLEST_BATCH)
    most = max(_part_of_data(median_zyx, cases, found.patch_size), _SMALLEST_BATCH)
    return Configuration(found.patch_size, found.network(), min(batch, most))


def plan_2d(spacing_zyx_mm: Vector, median_zyx: Shape, cases: int, classes: int, channels: int = 1) -> Configuration:
    """The 2-D configuration: a whole median slice, and as many as fit the memory. 512 x 512: batches of 12."""
    found, used = _fit(spacing_zyx_mm[1:], median_zyx[1:], median_zyx[1:], _BUDGET_2D, 30, classes + channels)
    batch = floor(_BUDGET_2D / used) * _SMALLEST_BATCH
    most = max(_part_of_data(median_zyx, cases, found.patch_size), 1)
    return Configuration(found.patch_size, found.network(), min(batch, most))


def _fit(
    spacing_mm: Sequence[float],
    start: Sequence[int],
    median: Sequence[int],
    budget: float,
    base_features: int,
    channels: int,
) -> tuple[Topology, float]:
    """(topology, voxels of its feature maps): cut from ``start`` until it fits the budget."""
    found = topology(spacing_mm, start)
    while (used := feature_map_voxels(found, base_features, channels)) > budget:
        covered = [length / whole for length, whole in zip(found.patch_size, median, strict=True)]
        axis = max(range(len(covered)), key=lambda i: (covered[i], i))
        base_features = BASE_FEATURES
        step = topology(spacing_mm, _shortened(found.patch_size, axis, found.divisors[axis])).divisors[axis]
        found = topology(spacing_mm, _shortened(found.patch_size, axis, step))
    return found, used


def feature_map_voxels(found: Topology, base_features: int, channels: int) -> float:
    """nnU-Net's estimate of memory: voxels x features of all feature maps, and of ``channels`` in and out."""
    voxels = float(np.prod(found.patch_size))
    total = voxels * (_BLOCKS_PER_LEVEL * base_features + channels)
    features = base_features
    for level, stride in enumerate(found.strides):
        voxels /= float(np.prod(stride))
        features = min(2 * features, MOST_FEATURES[found.dimensions])
        deepest = level == len(found.strides) - 1
        total += voxels * features * (2 if deepest else _BLOCKS_PER_LEVEL)
    return total


def _shortened(lengths: Sequence[int], axis: int, step: int) -> list[int]:
    return [length - step if index == axis else length for index, length in enumerate(lengths)]


def _part_of_data(median_zyx: Shape, cases: int, patch_size: Sequence[int]) -> int:
    """Patches that make up 5 % of the data set."""
    return round(_LARGEST_DATA_PART * float(np.prod(median_zyx)) * cases / float(np.prod(patch_size)))
