"""Scans and label maps small enough for a page: 8 bits a voxel on a grid of 2 mm or coarser, packed as text.

Grey levels are spent where the abdomen is: 2.9 HU a level from -200 to 300 HU, 20 HU below, 30 HU above. The page turns
them back into HU, so that a reader can choose the window.
"""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.resampling import nearest_indices
from app.volume import Float32Array, LabelArray, Shape, Vector
from tools.figures.labelled_scan import LabelledScan

FINEST_MM = 2.0
CASE_BYTES = 15_000_000
GREY_KNOTS = ((-1024, 0), (-200, 40), (300, 215), (1500, 255))  # (HU, level), straight between

_COARSER = 1.25
_ZLIB_LEVEL = 6  # 9 takes three times as long for 1 % on ct_001


@dataclass(frozen=True)
class PackedVolumes:
    """What the page gets of a case.

    Attributes:
        shape_zyx, spacing_zyx_mm: of the page's grid, on the patient's axes (LPS).
        scan: grey levels, packed.
        label_maps: packed, in the order in which they were given.
    """

    shape_zyx: Shape
    spacing_zyx_mm: Vector
    scan: str
    label_maps: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all its text in the page."""
        return len(self.scan) + sum(map(len, self.label_maps))


def pack_volumes(scans: Sequence[LabelledScan], most_bytes: int = CASE_BYTES) -> PackedVolumes:
    """A scan and its label maps on the finest grid, from 2 mm up, that fits into ``most_bytes``.

    Axes coarser than that keep their own voxels: 0.7 x 0.7 x 5 mm becomes 2 x 2 x 5 mm. Each try is a quarter coarser.

    Args:
        scans: one scan with each of its label maps; at least one.
        most_bytes: of base64 text.
    """
    spacing_mm = FINEST_MM
    while True:
        packed = _pack_at(scans, spacing_mm)
        if packed.size_bytes <= most_bytes or max(packed.shape_zyx) == 1:
            return packed
        spacing_mm *= _COARSER


def page_grid(shape_zyx: Shape, spacing_zyx_mm: Vector, finest_mm: float) -> tuple[Shape, Vector]:
    """(shape, spacing) that covers the same place. 512 voxels of 0.7 mm become 179 of 2.0022 mm at 2 mm."""
    pairs = list(zip(shape_zyx, spacing_zyx_mm, strict=True))
    z, y, x = (max(1, round(n * mm / finest_mm)) if mm < finest_mm else n for n, mm in pairs)
    new_z, new_y, new_x = (n * mm / n_new for (n, mm), n_new in zip(pairs, (z, y, x), strict=True))
    return (z, y, x), (new_z, new_y, new_x)


def averaging_matrix(n_in: int, n_out: int) -> Float32Array:
    """float32 (n_out, n_in): how much of each output voxel each input voxel fills.

    ``averaging_matrix(3, 2)`` is [[2/3, 1/3, 0], [0, 1/3, 2/3]]. Interpolation would keep the noise of one voxel.
    """
    inner, outer = np.arange(n_in + 1) / n_in, np.arange(n_out + 1)[:, None] / n_out
    shared = np.minimum(outer[1:], inner[1:]) - np.maximum(outer[:-1], inner[:-1])
    matrix: Float32Array = (np.maximum(shared, 0) * n_out).astype(np.float32)
    return matrix


def grey_levels(hu: Float32Array) -> npt.NDArray[np.uint8]:
    """uint8: the level of each HU. Water, 0 HU, is 110; air 0; what is above 1500 HU 255."""
    known, levels = zip(*GREY_KNOTS, strict=True)
    return np.rint(np.interp(hu, known, levels)).astype(np.uint8)


def pack(voxels: npt.NDArray[np.uint8]) -> str:
    """uint8 (z, y, x) as base64 of zlib of the differences along x, modulo 256: a third less than without them.

    [5, 7, 6] is kept as [5, 2, 255].
    """
    steps = np.diff(voxels, axis=-1, prepend=np.uint8(0))
    return base64.b64encode(zlib.compress(steps.tobytes(), _ZLIB_LEVEL)).decode()


def _pack_at(scans: Sequence[LabelledScan], finest_mm: float) -> PackedVolumes:
    geometry = scans[0].geometry
    shape, spacing = page_grid(geometry.shape_zyx, geometry.spacing_zyx_mm, finest_mm)
    label_maps = tuple(pack(_nearest(scan.label_map, shape)) for scan in scans)
    return PackedVolumes(shape, spacing, pack(grey_levels(_averaged(scans[0], shape))), label_maps)


def _averaged(scan: LabelledScan, shape_zyx: Shape) -> Float32Array:
    """float32 (z, y, x) HU, slice by slice."""
    along_z, along_y, along_x = map(averaging_matrix, scan.geometry.shape_zyx, shape_zyx)
    result = np.zeros(shape_zyx, dtype=np.float32)
    for index, shares in enumerate(along_z.T):
        plane = along_y @ scan.hu(index) @ along_x.T
        reached = np.flatnonzero(shares)
        result[reached] += shares[reached, None, None] * plane
    return result


def _nearest(label_map: LabelArray, shape_zyx: Shape) -> LabelArray:
    return label_map[np.ix_(*map(nearest_indices, label_map.shape, shape_zyx))]
