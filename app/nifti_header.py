"""What a NIfTI header says: type and number of voxels, their scaling, and where they lie in the patient.

NIfTI's world is (right, anterior, superior); the app's is (superior, posterior, left), see ``volume.Geometry``.
"""

from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from app.errors import CaseError
from app.orientation import as_matrix, as_vector
from app.volume import Array, Geometry, Shape, as_text

_LARGEST_DEFLATE_RATIO = 1032  # zlib's technical details: no stream expands further
_BOMB_RATIO, _BOMB_BYTES = 100, 2**30  # CT compresses 2 to 10 times; what is small does no harm
_SPACING_TOLERANCE = 1e-2  # relative; header fields are float32 and tools round them
_LARGEST_FORM_CODE = 5  # NIFTI_XFORM_TEMPLATE_OTHER
_LARGEST_MM = 1e9  # of an affine: beyond it squares overflow before anything can be said about the extent
_LARGEST_SCALING = 1e30  # what is larger overflows float32 with the voxels
_LEAST_SLOPE = float(np.finfo(np.float32).tiny)  # NIfTI-2 has doubles; what is smaller loses digits in float32, or is 0
_UNIT_MM = {1: 1000.0, 3: 0.001}  # xyzt_units: metre, micrometre; millimetre (2) and unknown (0) are taken as mm


def read_block(stream: IO[bytes], path: Path) -> Any:
    """nibabel's header object, version 1 or 2, unrepaired; the stream then stands behind it.

    Raises:
        CaseError: it is not the start of a single-file NIfTI.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    block = stream.read(Nifti1Header.template_dtype.itemsize)
    kinds = {348: Nifti1Header, 540: Nifti2Header}
    size = int.from_bytes(block[:4], "little")
    kind = kinds.get(size) or kinds.get(int.from_bytes(block[:4], "big"))
    if kind is None or len(block) < Nifti1Header.template_dtype.itemsize:
        raise CaseError(f"{path}: not NIfTI (header size {size}, expected 348 or 540). Copy it again or convert it")
    block += stream.read(kind.template_dtype.itemsize - len(block))
    if len(block) < kind.template_dtype.itemsize:
        raise CaseError(
            f"{path}: the file ends within its header ({len(block)} bytes of {kind.sizeof_hdr}). Copy it again"
        )
    header = kind(binaryblock=block, check=False)
    if bytes(header["magic"].tobytes())[:3] not in (b"n+1", b"n+2"):
        raise CaseError(
            f"{path}: NIfTI magic is {header['magic'].tobytes()!r}; expected a single-file NIfTI (n+1, n+2). Convert it"
        )
    return header


def shape_xyz(header: Any, path: Path) -> Shape:
    """Voxels along each axis, in the file's order; further axes of one voxel are dropped.

    Raises:
        CaseError: not one 3-D scan.
    """
    count = int(header["dim"][0])
    shape = [int(length) for length in header["dim"][1 : count + 1]] if 1 <= count <= 7 else []
    text = "x".join(map(str, shape))
    if not shape or min(shape) < 1:
        raise CaseError(
            f"{path}: dimensions {header['dim'].tolist()} are impossible; expected a 3-D scan. Repair the header"
        )
    if len(shape) < 3:
        raise CaseError(f"{path}: {len(shape)}-D image {text}; expected 3-D. Stack the slices into one volume")
    if any(length != 1 for length in shape[3:]):
        raise CaseError(
            f"{path}: {len(shape)}-D image {text}; expected 3-D. Split the channels or time points into files"
        )
    return (shape[0], shape[1], shape[2])


def voxel_layout(header: Any, shape_xyz: Shape, path: Path, file_size: int) -> tuple[np.dtype[Any], int]:
    """(type of a voxel, byte at which the first one lies) of a file that is large enough to hold them all.

    Raises:
        CaseError: not real numbers, or more of them than the file can hold.
    """
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except KeyError as error:
        raise CaseError(
            f"{path}: NIfTI data type code {int(header['datatype'])}; expected integers or real numbers. Convert it"
        ) from error
    if dtype.kind not in "iuf":
        raise CaseError(f"{path}: voxels of type {dtype}; expected real numbers (Hounsfield units). Convert it")
    expected = prod(shape_xyz) * dtype.itemsize
    offset = int(header["vox_offset"]) if np.isfinite(header["vox_offset"]) else 0
    if not header.template_dtype.itemsize <= offset <= 2**30:
        raise CaseError(f"{path}: voxels start at byte {header['vox_offset']}, expected after the header. Repair it")
    most = file_size * (_LARGEST_DEFLATE_RATIO if path.name.lower().endswith(".gz") else 1)
    if expected > most:
        raise CaseError(
            f"{path}: header promises {'x'.join(map(str, shape_xyz))} voxels ({expected} bytes), "
            f"the file of {file_size} bytes cannot hold more than {most}. Copy it again"
        )
    if expected > max(_BOMB_BYTES, _BOMB_RATIO * file_size) and most > file_size:
        raise CaseError(
            f"{path}: header promises {'x'.join(map(str, shape_xyz))} voxels ({expected} bytes), "
            f"{expected // file_size} times the {file_size} bytes of the file; expected at most {_BOMB_RATIO} times "
            f"from a scan of more than {_BOMB_BYTES} bytes. Export it again"
        )
    return dtype, offset


def scaling(header: Any, path: Path) -> tuple[float, float]:
    """(slope, intercept); a slope of 0 or NaN means none, as the standard says.

    Raises:
        CaseError: one of them is too large for float32, or the slope too small.
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    for name, value in (("scl_slope", slope), ("scl_inter", intercept)):
        if not abs(value) <= _LARGEST_SCALING or (name == "scl_slope" and abs(value) < _LEAST_SLOPE):
            raise CaseError(f"{path}: {name} is {value}; expected a number that leads to HU. Repair the header")
    return slope, intercept


def affine_ras_mm(header: Any, path: Path) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """(4x4 from voxel ijk to RAS mm, warnings): the sform if its code > 0, else the qform, else the zooms."""
    unit_mm = _UNIT_MM.get(int(header["xyzt_units"]) % 8, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        zooms = header["pixdim"][1:4].astype(np.float64) * unit_mm
        scale = np.diag([unit_mm, unit_mm, unit_mm, 1.0])
        sform = scale @ header.get_sform() if int(header["sform_code"]) > 0 else None
        qform = scale @ _qform(header) if int(header["qform_code"]) > 0 else None
    if not np.all(np.isfinite(zooms)) or np.any(zooms <= 0):
        raise CaseError(
            f"{path}: voxel spacing {zooms.tolist()} mm; expected three positive numbers. Repair the header"
        )
    warnings = []
    if unit_mm != 1:
        warnings.append(f"the header's lengths are not in mm; times {unit_mm:g}, spacing is {as_text(zooms)} mm")
    affine = sform if sform is not None else qform
    if affine is None:
        warnings.append("the header says nothing about orientation; the slices are taken to run from feet to head")
        affine = np.diag([-zooms[0], -zooms[1], zooms[2], 1.0])
    if not _is_invertible(affine):
        raise CaseError(
            f"{path}: the affine {affine[:3].tolist()} is singular or vast; expected three independent axes. "
            "Repair the header"
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if np.any(np.abs(lengths - zooms) > _SPACING_TOLERANCE * zooms):
        warnings.append(
            f"spacing is {as_text(lengths)} mm in the affine and {as_text(zooms)} mm in pixdim; the affine is used"
        )
    if sform is not None and qform is not None and not forms_agree(sform, qform, header):
        warnings.append("sform and qform disagree; the sform is used")
    return np.asarray(affine, dtype=np.float64), tuple(warnings)


def repair_orientation(header: Any) -> None:
    """Makes what ``affine_ras_mm`` understood of an odd header the same to programs that are stricter, in place.

    A code of 99 becomes 1, one below 0 becomes 0; a qform that is no rotation is taken out.
    """
    for field in ("sform_code", "qform_code"):
        code = int(header[field])
        if not 0 <= code <= _LARGEST_FORM_CODE:
            header[field] = 1 if code > 0 else 0
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.all(np.isfinite(_qform(header))):
            for field in ("qform_code", "quatern_b", "quatern_c", "quatern_d"):
                header[field] = 0


def _is_invertible(affine: Array) -> bool:
    """Whether the axes are independent, and numbers small enough that this can be told."""
    if not np.all(np.abs(affine) <= _LARGEST_MM):  # or NaN
        return False
    with np.errstate(divide="ignore"):  # numpy takes a logarithm of what may be 0
        return bool(abs(np.linalg.det(affine[:3, :3])) >= 1e-9)


def _qform(header: Any) -> npt.NDArray[np.float64]:
    """The qform, NaN if it is not a rotation. A qfac (pixdim[0]) of 0 counts as 1, as the standard says."""
    from nibabel.spatialimages import HeaderDataError

    header = header.copy()
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    try:
        return np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)


def forms_agree(sform: Array, qform: Array, header: Any) -> bool:
    """Whether the two put every corner of the grid less than half a voxel apart; NaN agrees with nothing."""
    last = np.maximum(header["dim"][1:4].astype(np.float64) - 1, 1)
    corners = np.array([[i, j, k, 1.0] for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])])
    with np.errstate(over="ignore", invalid="ignore"):  # nothing has looked at the qform yet, if the sform is used
        apart = np.linalg.norm(corners @ (sform - qform).T, axis=1).max()
    return bool(apart <= 0.5 * np.linalg.norm(sform[:3, :3], axis=0).min())


def geometry_from_ras(affine: npt.NDArray[np.float64], shape_zyx: tuple[int, ...]) -> Geometry:
    """Rows (right, anterior, superior) and columns (i, j, k) -> rows (superior, posterior, left) and (k, j, i)."""
    ras_to_spl = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])
    edges = ras_to_spl @ affine[:3, 2::-1]
    spacing = np.linalg.norm(edges, axis=0)
    depth, height, width = shape_zyx
    return Geometry(
        shape_zyx=(depth, height, width),
        spacing_zyx_mm=as_vector(spacing),
        direction=as_matrix(edges / spacing),
        origin_zyx_mm=as_vector(ras_to_spl @ affine[:3, 3]),
    )


def ras_from_geometry(geometry: Geometry) -> npt.NDArray[np.float64]:
    """The inverse of ``geometry_from_ras``."""
    spl_to_ras = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    affine = np.eye(4)
    edges = np.asarray(geometry.direction) * np.asarray(geometry.spacing_zyx_mm)
    affine[:3, :3] = (spl_to_ras @ edges)[:, ::-1]
    affine[:3, 3] = spl_to_ras @ np.asarray(geometry.origin_zyx_mm)
    return affine
