"""NIfTI-1 and -2: voxels straight into their final place, headers through ``nifti_header``.

A NIfTI file stores x fastest, so its buffer read in C order is already (z, y, x).
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from isal import igzip, igzip_lib

from app.errors import CaseError
from app.nifti_header import (
    affine_ras_mm,
    forms_agree,
    geometry_from_ras,
    ras_from_geometry,
    read_block,
    repair_orientation,
    scaling,
    shape_xyz,
    voxel_layout,
)
from app.volume import Array, Geometry, LabelArray, Shape, Volume

_CHUNK_BYTES = 2**20
# All that a label map takes over from its scan's header, beside the first pixdims: any other field may hold a name.
_GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def read_nifti(path: Path) -> Volume:
    """The scan in a NIfTI-1 or NIfTI-2 file, compressed if its name ends in .gz.

    Raises:
        CaseError: not a 3-D scan of real numbers with a usable geometry, or damaged.
    """
    with _open_nifti(path) as stream:
        header = read_block(stream, path)
        voxels = _read_voxels(stream, header, shape_xyz(header, path), path, path.stat().st_size)
    affine, warnings = affine_ras_mm(header, path)
    slope, intercept = scaling(header, path)
    return Volume(
        voxels=voxels,
        geometry=geometry_from_ras(affine, voxels.shape),
        slope=slope,
        intercept=intercept,
        nifti_header=header.binaryblock,
        warnings=warnings,
    )


def read_nifti_header(path: Path) -> tuple[Geometry, int]:
    """(geometry, bytes of a voxel) of such a file, whose voxels are not read.

    Raises:
        CaseError: as ``read_nifti``.
    """
    with _open_nifti(path) as stream:
        header = read_block(stream, path)
    shape = shape_xyz(header, path)
    dtype, _ = voxel_layout(header, shape, path, path.stat().st_size)
    affine, _ = affine_ras_mm(header, path)
    return geometry_from_ras(affine, shape[::-1]), dtype.itemsize


@contextmanager
def _open_nifti(path: Path) -> Iterator[IO[bytes]]:
    """The stream of a file's content; CaseError for an empty one, and for what in the block shows a damaged one."""
    if path.stat().st_size == 0:
        raise CaseError(f"{path}: empty file; expected a NIfTI scan. Copy it again")
    try:
        with _open_stream(path) as stream:
            yield stream
    except (EOFError, zlib.error, igzip_lib.IsalError, gzip.BadGzipFile) as error:  # type: ignore[misc]  # isal's stub
        raise CaseError(
            f"{path}: damaged gzip stream ({error}); the file is truncated or altered. Copy it again"
        ) from error


def _open_stream(path: Path) -> IO[bytes]:
    if not path.name.lower().endswith(".gz"):
        return path.open("rb")
    with path.open("rb") as stream:
        magic = stream.read(2)
    if magic != b"\x1f\x8b":
        raise CaseError(
            f"{path}: not a gzip file (starts with {magic!r}); expected compressed NIfTI. Copy or rename it"
        )
    opened: IO[bytes] = igzip.open(path, "rb")
    return opened


def _read_voxels(stream: IO[bytes], header: Any, shape: Shape, path: Path, file_size: int) -> Array:
    """(z, y, x) in the file's type, read straight into its final place."""
    dtype, offset = voxel_layout(header, shape, path, file_size)
    expected = prod(shape) * dtype.itemsize
    _skip(stream, offset - header.template_dtype.itemsize)
    voxels: Array = np.empty(shape[::-1], dtype=dtype)
    raw = voxels.reshape(-1).view(np.uint8)
    done = 0
    while done < expected and (chunk := stream.read(min(_CHUNK_BYTES, expected - done))):
        raw[done : done + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
        done += len(chunk)
    if done < expected:
        raise CaseError(
            f"{path}: found {done} bytes of voxels, expected {expected}; the file is truncated. Copy it again"
        )
    stream.read(1)  # at the end of a gzip stream this checks its CRC
    if not dtype.isnative:  # swapped where they are: astype would hold them twice
        voxels = voxels.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return voxels


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0 and (chunk := stream.read(min(_CHUNK_BYTES, count))):
        count -= len(chunk)


def label_header(volume: Volume) -> Any:
    """nibabel's header of the label map: with the scan's own fields of geometry, or made from it."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    lengths_xyz = volume.geometry.shape_zyx[::-1]
    if volume.nifti_header is None:
        header = Nifti1Header() if max(lengths_xyz) < 2**15 else Nifti2Header()  # lengths are int16 in version 1
        affine = ras_from_geometry(volume.geometry)
        header.set_data_shape(lengths_xyz)
        header["pixdim"][1:4] = volume.geometry.spacing_zyx_mm[::-1]
        header.set_xyzt_units("mm")
        header.set_sform(affine, code=1)
        header.set_qform(affine, code=1)
    else:
        kind = Nifti1Header if len(volume.nifti_header) == Nifti1Header.template_dtype.itemsize else Nifti2Header
        scan = kind(binaryblock=volume.nifti_header, check=False)
        header = kind(endianness="<")
        for field in _GEOMETRY_FIELDS:
            header[field] = scan[field]
        header["pixdim"][:4] = scan["pixdim"][:4]
        header.set_data_shape(lengths_xyz)
        repair_orientation(header)
    header.set_data_dtype(np.uint8)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = header.template_dtype.itemsize + 4
    return header


def shear_warnings(volume: Volume) -> tuple[str, ...]:
    """One if the label map of a scan that was not NIfTI has a qform, which is a rotation, far from its sform.

    It is written all the same: SimpleITK refuses a sheared sform without a qform ("No orthonormal definition found"),
    and takes the qform where there is one.
    """
    if volume.nifti_header is not None:  # its own forms are kept, and compared in ``affine_ras_mm``
        return ()
    header = label_header(volume)
    if forms_agree(header.get_sform(), header.get_qform(), header):
        return ()
    return ("the grid is sheared; programs that read the label map's qform (not its sform) place it elsewhere",)


def write_nifti(stream: IO[bytes], header: Any, label_map: LabelArray) -> None:
    """Writes header and uint8 voxels (z, y, x), slice by slice."""
    stream.write(header.binaryblock)
    stream.write(b"\0\0\0\0")  # no extensions
    for plane in label_map:
        stream.write(np.ascontiguousarray(plane).tobytes())
