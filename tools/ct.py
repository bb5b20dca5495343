"""A CT scan in HU on the patient's axes, with its label map if it has one; read from files and written to them."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.atomic_files import atomic_file
from app.nifti_header import ras_from_geometry
from app.orientation import axis_map_to_lps
from app.preprocessing import to_hu
from app.volume import Float32Array, Geometry, LabelArray, Volume
from app.volume_io import read_volume
from tools.figures.labelled_scan import read_labelled_scan

HuArray = npt.NDArray[np.int16]

_LOWEST_HU, _HIGHEST_HU = -32768, 32767


@dataclass(frozen=True)
class Ct:
    """A scan.

    Attributes:
        voxels_hu: int16 (z, y, x), HU; z runs to the head, y to the back, x to the patient's left.
        geometry: of the grid, obliqueness kept.
        label_map: uint8 (z, y, x); None if nobody labelled it.
    """

    voxels_hu: HuArray
    geometry: Geometry
    label_map: LabelArray | None = None

    @property
    def volume(self) -> Volume:
        """The scan as the app has it after reading."""
        return Volume(voxels=self.voxels_hu, geometry=self.geometry)


def read_ct(path: Path, label_path: Path | None, labels: tuple[str, ...]) -> Ct:
    """The scan in a file, turned to LPS, its values rounded to whole HU.

    Raises:
        CaseError: a file cannot be read, the two are on different grids, or a label is none of ``labels``.
    """
    if label_path is not None:
        found = read_labelled_scan(path, label_path, labels)
        label_map = np.ascontiguousarray(found.label_map)
        return Ct(as_hu(found.hu(...)), found.geometry, label_map)
    volume = read_volume(path)
    axis_map = axis_map_to_lps(volume.geometry)
    hu = axis_map.apply(volume.voxels).astype(np.float32)
    to_hu(hu, volume)
    return Ct(as_hu(hu), axis_map.apply_to_geometry(volume.geometry))


def as_hu(hu: Float32Array) -> HuArray:
    """int16 of the nearest whole HU, contiguous; what int16 cannot hold is clipped."""
    return np.ascontiguousarray(np.clip(np.rint(hu), _LOWEST_HU, _HIGHEST_HU), dtype=np.int16)


def write_ct(path: Path, voxels_hu: HuArray, geometry: Geometry) -> None:
    """Writes a scan as int16 .nii.gz, all at once or not at all; equal scans are equal files.

    Raises:
        FolderError: the folder cannot be written.
    """
    import nibabel

    affine = ras_from_geometry(geometry)
    image = nibabel.Nifti1Image(voxels_hu.T, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    packed = gzip.compress(image.to_bytes(), compresslevel=3, mtime=0)
    with atomic_file(path) as stream:
        stream.write(packed)
