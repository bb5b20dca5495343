"""Seeded NIfTI files, from healthy to hostile: the header is mutated field by field, the gzip stream part by part.

Equal seeds give equal bytes, so that a seed is all that a finding needs.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tools.hostile.drafts import TYPES, Draft, healthy_draft, set_sform
from tools.hostile.gzip_streams import bomb, pack

_ODD_TYPES = (0, 1, 32, 128, 255, 1536, 1792, 2048, 2304, 999, -1, 32767)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e-6, 0.3, 255.0, 4097.0, 1e6, 1e20, 1e30, 3.4e38, -3.4e38, 1e300)
_SPECIAL = (float("nan"), float("inf"), float("-inf"))
_EXTREME_VOXELS = (0.0, -1024.0, 3e4, 1e6, 3.4e38, -3.4e38, 1e300, float("nan"), float("inf"), float("-inf"))
_SUFFIXES = (".nii", ".nii.gz", ".NII.GZ", "_0000.nii.gz", "_0000.nii", ".nii.gz.nii", ".gz", ".nii.bz2", "")


@dataclass(frozen=True)
class HostileInput:
    """One file.

    Attributes:
        seed: makes it.
        name: of the file.
        content: of the file.
        sparse_bytes: the file is extended to this length with zeros that take no space; 0 for not at all.
        healthy: nothing was mutated, so it must be segmented.
        families: of the mutations, for the record.
    """

    seed: int
    name: str
    content: bytes
    sparse_bytes: int
    healthy: bool
    families: tuple[str, ...]


_Mutation = Callable[[random.Random, Draft], None]


def make_input(seed: int) -> HostileInput:
    """The file of a seed: one in eight is healthy, the others have one to three kinds of mutation."""
    generator = random.Random(seed)
    draft = healthy_draft(generator)
    families: list[str] = []
    if generator.random() >= 0.125:
        families = sorted(
            set(generator.choices(tuple(_MUTATIONS), tuple(_WEIGHTS.values()), k=generator.randint(1, 3)))
        )
        with np.errstate(over="ignore", invalid="ignore"):  # fields of four bytes get what fits into eight
            for family in families:
                _MUTATIONS[family](generator, draft)
    content = draft.header.tobytes() + draft.extension + draft.voxels
    if "bytes" in families:
        content = _mutate_bytes(generator, content)
    if draft.name.lower().endswith(".gz"):
        broken = generator.random() < 0.3 and bool(families)
        if broken:
            families.append("gzip")
        content = bomb(content, draft.bomb_bytes) if draft.bomb_bytes else pack(generator, content, broken)
        draft.sparse_bytes = 0
    return HostileInput(seed, draft.name, content, draft.sparse_bytes, not families, tuple(families))


def _mutate_fields(generator: random.Random, draft: Draft) -> None:
    """Any fields get any values that their type can say."""
    for name in generator.choices(draft.header.dtype.names, k=generator.randint(1, 4)):
        field = draft.header[name]
        index = tuple(generator.randrange(length) for length in field.shape)
        kind = field.dtype.kind
        if kind == "f":
            draft.header[name][index] = _float(generator)
        elif kind in "iu":
            draft.header[name][index] = _integer(generator, field.dtype)
        else:
            draft.header[name] = generator.randbytes(field.dtype.itemsize)


def _mutate_type(generator: random.Random, draft: Draft) -> None:
    """Another type than the voxels have, a known one or not."""
    draft.header["datatype"] = generator.choice((*TYPES, *_ODD_TYPES))
    if generator.random() < 0.3:
        draft.header["bitpix"] = generator.choice((0, 1, 8, 12, 16, 32, 64, 128, -8))


def _mutate_axes(generator: random.Random, draft: Draft) -> None:
    """More or fewer axes; axes of one voxel, of none, of less than none."""
    count = generator.choice((0, 1, 2, 3, 3, 4, 4, 5, 7, 8, -1, 300))
    draft.header["dim"][0] = count
    for axis in range(4, max(4, min(count, 7)) + 1):
        draft.header["dim"][axis] = generator.choice((1, 1, 1, 0, 2, -1))


def _mutate_promise(generator: random.Random, draft: Draft) -> None:
    """A size that the file does not hold, or that only zeros hold: sparse, packed, or as long as one axis can be."""
    largest = 32767 if draft.version == 1 else 60000
    shape = generator.choice(
        (
            (largest,) * 3,
            (largest, 1, 1),
            (1, generator.randint(500, largest), generator.randint(1, 3)),
            (generator.randint(20, 400),) * 3,
            (1024, 1024, 256),
            (2, 2, generator.randint(1000, 5000)),
        )
    )
    draft.header["dim"][1:4] = shape
    how = generator.randrange(4)
    code = int(draft.header["datatype"])
    expected = prod(shape) * np.dtype(TYPES.get(code, "u1")).itemsize
    if how == 1:
        draft.sparse_bytes = min(2**62, len(draft.header.tobytes()) + 4 + expected)
    elif how == 2 and expected < 2**32:
        draft.bomb_bytes = expected
    elif how == 3 and expected < 2**20:
        draft.voxels = bytes(expected)


def _mutate_geometry(generator: random.Random, draft: Draft) -> None:
    """Turned, mirrored, sheared, flat, tiny and vast grids, in other units."""
    kind = generator.randrange(5)
    header = draft.header
    if kind == 0:
        axes = np.eye(3)[generator.sample(range(3), 3)] * [generator.choice((-1, 1)) for _ in range(3)]
    else:
        axes = np.array([[generator.gauss(0, 1) for _ in range(3)] for _ in range(3)])
    scale = generator.choice((1.0, 1.0, 1.0, 1e-3, 30.0, 400.0, 2000.0, 1e-7, 1e7))
    affine = np.eye(4)
    affine[:3, :3] = axes * scale
    affine[:3, 3] = [generator.gauss(0, 300) for _ in range(3)]
    if kind == 4:
        affine[generator.randrange(3), generator.randrange(4)] = _float(generator)
    set_sform(header, affine)
    if generator.random() < 0.5:
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["sform_code"] = generator.choice((0, 1, 1, 1, 2, 4, -1, 99))
    header["qform_code"] = generator.choice((0, 0, 1, 2, -1))
    for name in ("quatern_b", "quatern_c", "quatern_d"):
        header[name] = generator.choice((0.0, 0.5, 0.7, 1.0, -0.99, _float(generator) if kind == 3 else 0.1))
    header["pixdim"][0] = generator.choice((1, -1, 0, 2, float("nan")))
    header["xyzt_units"] = generator.choice((0, 1, 2, 2, 3, 10, 255))


def _mutate_scaling(generator: random.Random, draft: Draft) -> None:
    """Slopes and intercepts."""
    draft.header["scl_slope"] = _float(generator)
    draft.header["scl_inter"] = _float(generator) if generator.random() < 0.7 else 0


def _mutate_voxels(generator: random.Random, draft: Draft) -> None:
    """Random bits; one value everywhere; values that are none, or beyond all bounds, here and there."""
    dtype = np.dtype(TYPES.get(int(draft.header["datatype"]), "u1")).newbyteorder(draft.order)
    count = len(draft.voxels) // dtype.itemsize
    kind = generator.randrange(3)
    if kind == 0 or dtype.kind != "f" or count == 0:
        draft.voxels = generator.randbytes(len(draft.voxels))
        return
    voxels = np.frombuffer(draft.voxels, dtype=dtype, count=count).copy()
    if kind == 1:
        voxels[:] = generator.choice(_EXTREME_VOXELS)
    else:
        for _ in range(generator.randint(1, 8)):
            voxels[generator.randrange(count)] = generator.choice(_EXTREME_VOXELS)
    draft.voxels = voxels.tobytes()


def _mutate_length(generator: random.Random, draft: Draft) -> None:
    """Too few voxels, too many, an extension before them, an offset that is not theirs."""
    kind = generator.randrange(4)
    if kind == 0:
        draft.voxels = draft.voxels[: generator.randrange(len(draft.voxels) + 1)]
    elif kind == 1:
        draft.voxels += generator.randbytes(generator.randrange(1, 3000))
    elif kind == 2:
        size = generator.choice((16, 32, 4096, -8, 2**31 - 1))
        draft.extension = bytes((1, 0, 0, 0)) + struct.pack(f"{draft.order}ii", size, 4) + generator.randbytes(24)
        if generator.random() < 0.5:
            draft.header["vox_offset"] = draft.header.dtype.itemsize + len(draft.extension)
    else:
        draft.header["vox_offset"] = generator.choice((0, 1, 351, 352, 353, 544, 1e6, 2**30, 2**30 + 1, -352))


def _mutate_name(generator: random.Random, draft: Draft) -> None:
    """Names that are no scan's, long ones, and ones that are not text."""
    stem = generator.choice(("a", "x" * 240, "..", "-", " ", "\u202e\u00fc", "\udcff", "a\nb", "_0000", "_0000_0000"))
    draft.name = (stem + generator.choice(_SUFFIXES))[-200:]


def _mutate_bytes(generator: random.Random, content: bytes) -> bytes:
    """Bytes altered, cut out, doubled or cut off, mostly within the header."""
    altered = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(min(len(altered), 700) or 1)
        kind = generator.randrange(5)
        if kind <= 1 and altered:
            altered[place] = generator.choice((0, 1, 127, 128, 255, altered[place] ^ (1 << generator.randrange(8))))
        elif kind == 2:
            del altered[place : place + generator.randint(1, 40)]
        elif kind == 3:
            altered[place:place] = altered[place : place + generator.randint(1, 40)]
        elif generator.random() < 0.2:
            del altered[place:]
    return bytes(altered)


def _keep(_generator: random.Random, _draft: Draft) -> None:
    """Nothing yet: bytes are mutated once the file is put together."""


def _float(generator: random.Random) -> float:
    kind = generator.randrange(4)
    if kind == 0:
        return generator.choice(_SPECIAL)
    if kind == 1:
        return float(struct.unpack("<f", generator.randbytes(4))[0])
    return generator.choice(_FLOATS)


def _integer(generator: random.Random, dtype: Any) -> int:
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    return generator.choice((0, 1, low, high, high - 1, min(high, 3), generator.randint(low, high)))


_MUTATIONS: dict[str, _Mutation] = {
    "fields": _mutate_fields,
    "type": _mutate_type,
    "axes": _mutate_axes,
    "promise": _mutate_promise,
    "geometry": _mutate_geometry,
    "scaling": _mutate_scaling,
    "voxels": _mutate_voxels,
    "length": _mutate_length,
    "name": _mutate_name,
    "bytes": _keep,
}
_WEIGHTS = dict(zip(_MUTATIONS, (6, 2, 2, 3, 6, 3, 4, 3, 1, 3), strict=True))
