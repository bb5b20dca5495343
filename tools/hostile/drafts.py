"""Healthy files, which ``mutation`` then spoils."""

import random
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_SUFFIXES = (".nii", ".nii.gz", ".NII.GZ", "_0000.nii.gz", "_0000.nii")


@dataclass
class Draft:
    """A file while it is made.

    Attributes:
        version, order: of NIfTI, of its bytes.
        header: a numpy record.
        shape_xyz, voxels: as they were before any mutation; the bytes.
        extension: between header and voxels.
        sparse_bytes: see ``HostileInput``.
        name: of the file.
        bomb_bytes: zeros that are packed behind the voxels.
    """

    version: int
    order: Literal["<", ">"]
    header: Any
    shape_xyz: tuple[int, ...]
    voxels: bytes
    extension: bytes = bytes(4)
    sparse_bytes: int = 0
    name: str = ""
    bomb_bytes: int = 0


def healthy_draft(generator: random.Random) -> Draft:
    """A NIfTI file of either version and byte order, any type of voxels, up to 14 voxels along an axis."""
    version, order = generator.choice((1, 2)), generator.choice(_ORDERS)
    shape = tuple(generator.randint(1, 14) for _ in range(3))
    code = generator.choice(tuple(TYPES))
    dtype = np.dtype(TYPES[code]).newbyteorder(order)
    header = _blank_header(version, order)
    header["dim"][:4] = (3, *shape)
    header["dim"][4:] = 1
    header["datatype"], header["bitpix"] = code, dtype.itemsize * 8
    spacing = [generator.uniform(0.5, 6.0) for _ in range(3)]
    header["pixdim"][:4] = (1, *spacing)
    header["xyzt_units"] = 2
    header["vox_offset"] = header.dtype.itemsize + 4
    header["scl_slope"] = 1
    kind = generator.randrange(3)  # sform, qform, neither
    if kind == 0:
        set_sform(header, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]))
    elif kind == 1:
        header["qform_code"] = 1
        header["quatern_d"] = 1  # half a turn about z: x to the left, y to the back
    values = np.frombuffer(generator.randbytes(prod(shape)), dtype=np.uint8)
    voxels = (values if dtype.kind == "u" or dtype.itemsize == 1 else values.astype(np.float32) * 4 - 500).astype(dtype)
    name = f"case{generator.choice(_SUFFIXES)}"
    return Draft(version, order, header, shape, voxels.tobytes(), name=name)


def _blank_header(version: int, order: Literal["<", ">"]) -> Any:
    template = (Nifti1Header if version == 1 else Nifti2Header).template_dtype
    header = np.zeros((), dtype=template.newbyteorder(order))
    header["sizeof_hdr"] = template.itemsize
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    if version == 2:
        header["eol_check"] = (13, 10, 26, 10)
    return header


def set_sform(header: Any, affine: Any) -> None:
    """Sets the sform of a header to a 4x4 affine."""
    header["sform_code"] = 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = affine[row]
