"""Reading scans and writing label maps, whatever the format: the door between files and arrays.

Behind it ``nifti`` and ``simpleitk_formats`` know formats, xyz order and RAS affines; nothing else does.
"""

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
from isal import igzip

from app.atomic_files import atomic_file
from app.errors import CaseError
from app.memory_terms import ScanHeader
from app.nifti import label_header, read_nifti, read_nifti_header, shear_warnings, write_nifti
from app.simpleitk_formats import read_dicom, read_with_simpleitk
from app.simpleitk_headers import read_header_with_simpleitk
from app.volume import AIR_HU, Geometry, LabelArray, Volume, as_text

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SIMPLEITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")

_LARGEST_EXTENT_MM = 5_000.0  # no patient is longer; a header that says so would make a grid without end
_LARGEST_HU = 1e6  # metal is 30,000; what lies beyond marks missing voxels (-2^31, -3.4e38) and would spread
_GZIP_LEVEL = 2  # label maps: level 3 saves 2 % more and takes twice the time


def read_volume(path: Path) -> Volume:
    """The scan in a NIfTI, MetaImage or NRRD file or in a folder with one DICOM series.

    Raises:
        CaseError: the file cannot be read as one 3-D scan with a usable geometry.
    """
    try:
        if _is_series(path):
            volume = read_dicom(path)
        elif path.name.lower().endswith(NIFTI_SUFFIXES):
            volume = read_nifti(path)
        else:
            volume = read_with_simpleitk(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise CaseError(f"{path}: the scan does not fit into memory; free some, or crop the scan") from error
    _check_extent(volume.geometry, path)
    return _checked(volume, path)


def read_header(path: Path) -> ScanHeader | None:
    """What a scan will take, without reading its voxels; None if that cannot be told (reading will say why).

    Raises:
        CaseError: as ``read_volume``, for what shows in the header.
    """
    try:
        if _is_series(path) or not path.name.lower().endswith(NIFTI_SUFFIXES):
            found, copies = read_header_with_simpleitk(path), 2  # SimpleITK's and numpy's
        else:
            found, copies = read_nifti_header(path), 1
    except OSError:
        return None
    if found is None:
        return None
    geometry, voxel_bytes = found
    _check_extent(geometry, path)
    return ScanHeader(geometry, voxel_bytes, copies * voxel_bytes)


def content_state(path: Path) -> tuple[tuple[str, int, int], ...]:
    """(name, bytes, time of the last change) of a file, or of all files in a folder: equal as long as nobody writes.

    Raises:
        CaseError: it cannot be looked at.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        states = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise _unreadable(path, error) from error
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def without_voxels(volume: Volume) -> Volume:
    """The volume with an empty array in place of its voxels: what writing a label map still needs."""
    return replace(volume, voxels=np.empty((0, 0, 0), dtype=volume.voxels.dtype))


def write_label_map(path: Path, label_map: LabelArray, volume: Volume) -> None:
    """Writes uint8 (z, y, x) on the grid of ``volume`` as NIfTI, all at once or not at all.

    Of the scan's header the fields of geometry are reused (sform, qform, codes, units), nothing else. A dot-file beside
    the target is written, flushed to disk and renamed. The gzip stream carries no time and no name, so that equal
    label maps are equal files.

    Only the header and geometry of ``volume`` are looked at: its voxels may have been dropped (``without_voxels``).

    Raises:
        CaseError: this one file cannot have its name.
        FolderError: the folder cannot be written or the disk is full.
    """
    if label_map.shape != volume.geometry.shape_zyx:
        raise ValueError(f"label map {label_map.shape} on a grid of {volume.geometry.shape_zyx}")
    if path.is_dir():
        raise CaseError(f"{path}: is a folder; expected a place for a label map. Remove or rename it")
    header = label_header(volume)
    with atomic_file(path) as stream:
        if path.name.endswith(".gz"):
            with igzip.IGzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=stream, mtime=0) as packed:
                write_nifti(packed, header, label_map)
        else:
            write_nifti(stream, header, label_map)


def _unreadable(path: Path, error: OSError) -> CaseError:
    return CaseError(
        f"{path}: cannot be read ({error.strerror or error}); expected a scan. Check that it is there and readable"
    )


def _is_series(path: Path) -> bool:
    """Whether it is a folder; CaseError for what is neither that nor a file."""
    mode = path.stat().st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        raise CaseError(f"{path}: a pipe, socket or device; expected a file with a scan. Remove it")
    return stat.S_ISDIR(mode)


def _check_extent(geometry: Geometry, path: Path) -> None:
    """Raises CaseError unless the spacing is usable."""
    spacing = geometry.spacing_zyx_mm
    if not all(np.isfinite(length) and length > 0 for length in spacing):
        raise CaseError(
            f"{path}: voxel spacing {as_text(spacing)} mm (z, y, x); expected three positive numbers. Repair it"
        )
    extent = np.multiply(spacing, geometry.shape_zyx)
    if np.any(extent > _LARGEST_EXTENT_MM):
        raise CaseError(
            f"{path}: the scan is {as_text(extent)} mm (z, y, x) large; expected a patient. Repair its spacing or unit"
        )


def _checked(volume: Volume, path: Path) -> Volume:
    """The volume with voxels that can be Hounsfield units, or an error."""
    warnings = [*volume.warnings, *shear_warnings(volume)]
    if not _holds_only_hu(volume):
        replaced = _replace_impossible(volume)
        if replaced == volume.voxels.size:
            raise CaseError(
                f"{path}: every voxel is NaN or infinite or beyond {_LARGEST_HU:g} HU; expected Hounsfield units. "
                "Export it again"
            )
        if replaced:
            warnings.append(f"{replaced} voxels are NaN or infinite or beyond {_LARGEST_HU:g} HU; taken as air")
    if min(volume.geometry.shape_zyx) == 1:
        warnings.append("the scan is a single slice; a network that looks at volumes sees little of it")
    return replace(volume, warnings=tuple(warnings))


def _holds_only_hu(volume: Volume) -> bool:
    """Whether the type and the scaling of the voxels alone rule out anything beyond the largest HU."""
    if volume.voxels.dtype.kind == "f":
        return False
    limits = np.iinfo(volume.voxels.dtype)
    return all(abs(volume.slope * end + volume.intercept) <= _LARGEST_HU for end in (int(limits.min), int(limits.max)))


def _replace_impossible(volume: Volume) -> int:
    """Sets voxels that are NaN or beyond the largest HU to air, in place and slice by slice; returns how many.

    A type that cannot say air takes what it has nearest to it.
    """
    air = (AIR_HU - volume.intercept) / volume.slope
    if volume.voxels.dtype.kind == "f":
        largest = float(min(np.finfo(volume.voxels.dtype).max, np.finfo(np.float32).max))
        air = min(max(air, -largest), largest)
    else:
        limits = np.iinfo(volume.voxels.dtype)
        air = round(min(max(air, int(limits.min)), int(limits.max)))  # in this order: an infinite one cannot be rounded
    replaced = 0
    for plane in volume.voxels:
        with np.errstate(over="ignore", invalid="ignore"):
            hu = plane.astype(np.float32)
            hu *= np.float32(volume.slope)
            hu += np.float32(volume.intercept)
            bad = ~(np.abs(hu, out=hu) <= _LARGEST_HU)
        if count := int(np.count_nonzero(bad)):
            plane[bad] = air
            replaced += count
    return replaced
