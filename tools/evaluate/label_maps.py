"""Reading label maps: whole numbers in the range of the organs, or an error that says what was found."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.errors import CaseError
from app.orientation import as_vector
from app.volume import Array, Geometry, LabelArray, Vector, Volume
from app.volume_io import read_volume

_NIFTI1_HEADER_BYTES = 348
_SHOWN = 5


@dataclass(frozen=True)
class LabelMap:
    """A label map in memory.

    Attributes:
        labels: uint8 (z, y, x).
        geometry: of its grid.
        pixdim_zyx_mm: the header's own spacing, which the organisers use: pixdim as it is stored, without its unit;
            the geometry's spacing if the file is not NIfTI.
        warnings: what a user should know about the file.
    """

    labels: LabelArray
    geometry: Geometry
    pixdim_zyx_mm: Vector
    warnings: tuple[str, ...]


def read_label_map(path: Path, largest_label: int) -> LabelMap:
    """The label map in a file.

    Raises:
        CaseError: the file cannot be read, or a voxel is none of 0 to ``largest_label``.
    """
    volume = read_volume(path)
    warnings = tuple(f"{path}: {warning}" for warning in volume.warnings)
    return LabelMap(_labels(volume, path, largest_label), volume.geometry, _pixdim_zyx_mm(volume), warnings)


def _labels(volume: Volume, path: Path, largest_label: int) -> LabelArray:
    """uint8 (z, y, x); slice by slice, since a scan of float64 may fill the memory once but not twice."""
    labels = np.empty(volume.geometry.shape_zyx, dtype=np.uint8)
    strange: set[float] = set()
    for found, plane in zip(labels, volume.voxels, strict=True):
        values = plane if (volume.slope, volume.intercept) == (1.0, 0.0) else volume.slope * plane + volume.intercept
        found[...], bad = _split(values, largest_label)
        strange.update(np.unique(bad).tolist())
    if strange:
        shown = ", ".join(f"{value:g}" for value in sorted(strange)[:_SHOWN])
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        raise CaseError(
            f"{path}: label {shown}{more}; expected whole numbers from 0 to {largest_label}. "
            f"Is this a label map, and of these organs?{''.join(f' ({warning})' for warning in volume.warnings)}"
        )
    return labels


def _split(values: Array, largest_label: int) -> tuple[LabelArray, Array]:
    """(labels with 0 for what is none, the values that are none)."""
    good: npt.NDArray[np.bool_] = (values >= 0) & (values <= largest_label)
    labels = np.where(good, values, 0).astype(np.uint8)
    good &= labels == values
    return labels, values[~good]


def _pixdim_zyx_mm(volume: Volume) -> Vector:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = volume.nifti_header
    if block is None:
        return volume.geometry.spacing_zyx_mm
    kind = Nifti1Header if len(block) == _NIFTI1_HEADER_BYTES else Nifti2Header
    return as_vector(kind(binaryblock=block, check=False).get_zooms()[2::-1])
