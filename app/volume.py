"""A scan in memory: its voxels and where they lie in the patient."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]

Shape = tuple[int, int, int]
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]

AIR_HU = -1024.0


@dataclass(frozen=True)
class Geometry:
    """Where a voxel grid lies in the patient.

    World coordinates are millimetres in the order (z, y, x) = (superior, posterior, left): DICOM's
    LPS, reversed like the array axes. A grid stored the usual way (slices from feet to head, rows from
    front to back, columns from the patient's right to left) has the identity as its direction.

    Attributes:
        shape_zyx: voxels along each array axis.
        spacing_zyx_mm: distance between voxel centres along each array axis.
        direction: row r, column c is the world component r of the unit vector of array axis c. The
            columns of a sheared grid are not orthogonal; they are kept as they are.
        origin_zyx_mm: world position of the centre of voxel (0, 0, 0).
    """

    shape_zyx: Shape
    spacing_zyx_mm: Vector
    direction: Matrix
    origin_zyx_mm: Vector

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel: |determinant of its edge vectors|, so a sheared voxel counts right."""
        edges = np.asarray(self.direction) * np.asarray(self.spacing_zyx_mm)
        return float(abs(np.linalg.det(edges))) / 1000.0


@dataclass(frozen=True)
class Volume:
    """A scan as it is stored, with what turns its numbers into Hounsfield units.

    Attributes:
        voxels: (z, y, x) of the file's own numeric type; finite.
        geometry: where the grid lies; ``geometry.shape_zyx == voxels.shape``.
        slope, intercept: HU = slope * voxel + intercept.
        nifti_header: the file's header block, which the label map reuses; None if the scan was not NIfTI.
        warnings: what a user should know about the file.
    """

    voxels: Array
    geometry: Geometry
    slope: float = 1.0
    intercept: float = 0.0
    nifti_header: bytes | None = None
    warnings: tuple[str, ...] = ()


def as_text(lengths: npt.ArrayLike) -> str:
    """Lengths for a message: "2.5 x 0.7031 x 0.7031"."""
    return " x ".join(f"{length:.4g}" for length in np.asarray(lengths, dtype=np.float64))
