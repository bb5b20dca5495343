"""Headers of MetaImage, NRRD and DICOM series without their voxels, through SimpleITK."""

from pathlib import Path
from typing import Any

import numpy as np

from app.simpleitk_data_files import check_data_files
from app.simpleitk_geometry import geometry_from_lps
from app.volume import Geometry

_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}  # SimpleITK names types "16-bit signed integer", "32-bit float"


def read_header_with_simpleitk(path: Path) -> tuple[Geometry, int] | None:
    """(geometry, bytes of a voxel) of a file or a folder with one series; None if SimpleITK cannot tell.

    The slices of a series are counted, and its spacing is that of the first two.

    Raises:
        CaseError: the file's voxels lie in another folder, or its axes are not independent.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:  # would make SimpleITK end the process
        return None
    if not path.is_dir():
        check_data_files(path)
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        names = _series(sitk, path) if path.is_dir() else [str(path)]
        if not names:
            return None
        first = _information(sitk, names[0])
        second = _information(sitk, names[1]) if len(names) > 1 else None
    except RuntimeError:
        return None
    size = [*first.GetSize(), 1, 1][:3]
    spacing = [*first.GetSpacing(), 1.0, 1.0][:3]
    if second is not None:
        size[2] = len(names)
        spacing[2] = float(np.linalg.norm(np.subtract(second.GetOrigin(), first.GetOrigin()))) or spacing[2]
    if min(spacing) <= 0:
        return None
    direction = np.eye(3)
    dimension = min(3, first.GetDimension())
    stored = np.reshape(first.GetDirection(), (first.GetDimension(), -1))
    direction[:dimension, :dimension] = stored[:dimension, :dimension]
    geometry = geometry_from_lps((size[2], size[1], size[0]), spacing, direction, (0.0, 0.0, 0.0), path)
    bits = sitk.GetPixelIDValueAsString(first.GetPixelID()).rpartition("-bit")[0].rpartition(" ")[2]
    return geometry, _BYTES.get(bits, 8) * first.GetNumberOfComponents()


def _series(sitk: Any, folder: Path) -> list[str]:
    """The sorted slices of the folder's series; none if there is not exactly one series."""
    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), found[0])) if len(found) == 1 else []


def _information(sitk: Any, name: str) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    return reader
