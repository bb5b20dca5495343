"""Prepared cases on disk: one folder each, chunked and compressed, read patch by patch.

A case is ``image.b2nd`` (int16 fixed point, see ``STEP``), ``label.b2nd`` (uint8, if labelled), ``foreground.npz``
(voxels to centre patches on) and ``meta.json``, which is written last: without it the case is not there.

blosc2 rather than zarr: a patch of 96x144x144 reads in 7 to 13 ms against 36 ms (zarr, chunks of 64) and 97 ms
(chunks of 32) on a busy core, since one file holds two levels, chunks on disk and small blocks to decompress.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import blosc2  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from app.errors import FolderError, UsageError
from app.plan import Plan
from app.volume import Array, Float32Array, LabelArray, Shape, Vector
from tools.train.planning import preprocessing_digest

Box = tuple[slice, slice, slice]

FORMAT_VERSION = 1
# The image is int16 in steps of 1/1024 of the network's input unit: 0.107 HU with compact-3d, so an error of at
# most 0.054 HU. float16 errs by up to 0.107 HU there and takes 12 % more disk (ct_001: 2.29 against 2.51 MB).
STEP = 2.0**-10

META = "meta.json"
IMAGE, LABEL, FOREGROUND = "image.b2nd", "label.b2nd", "foreground.npz"


@dataclass(frozen=True, eq=False)
class CaseCache:
    """One prepared case, opened for reading. It holds paths and numbers only: copy it into processes freely.

    Attributes:
        folder: where it lies.
        case_id: of the case.
        shape_zyx: voxels of the cached box.
        spacing_zyx_mm: of the network grid.
        labelled: whether there is a label map.
        annotated: bool (classes,): whether the label map may be trusted on a class. Background always is, organs
            are unless declared not annotated; of an unlabelled scan no organ is.
        offset_zyx: where the box begins in the network grid; beside it lies what equals ``pad``.
        grid_shape_zyx: voxels of the network grid.
        digest: ``preprocessing_digest`` of the plan that it was prepared with.
        pad: the padding value that was cut off, normalised; None in caches that are older than this entry.
    """

    folder: Path
    case_id: str
    shape_zyx: Shape
    spacing_zyx_mm: Vector
    labelled: bool
    annotated: npt.NDArray[np.bool_]
    offset_zyx: Shape
    grid_shape_zyx: Shape
    digest: str
    pad: float | None = None

    def read_image(self, box: Box) -> Float32Array:
        """float32 (z, y, x) of a box inside the cached one: what the network would be fed there, within STEP / 2."""
        image: Float32Array = self._read(IMAGE, box).astype(np.float32)
        image *= np.float32(STEP)
        return image

    def read_label(self, box: Box) -> LabelArray:
        """uint8 (z, y, x) of a box inside the cached one; zeros if the scan is unlabelled."""
        if not self.labelled:
            return np.zeros(self._checked(box), dtype=np.uint8)
        label: LabelArray = self._read(LABEL, box)
        return label

    @cached_property
    def foreground(self) -> dict[int, npt.NDArray[np.int32]]:
        """Label -> int32 (n, 3) voxels (z, y, x) of the organ, up to 10,000 drawn without replacement."""
        with np.load(self.folder / FOREGROUND) as stored:
            return {int(label): stored[label] for label in stored.files}

    def _read(self, name: str, box: Box) -> Array:
        self._checked(box)
        path = self.folder / name
        try:
            stored = blosc2.open(str(path), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
        except (OSError, RuntimeError) as error:
            raise FolderError(f"{path}: cannot be read ({error}); run prepare again") from error
        values: Array = stored[box]
        return values

    def _checked(self, box: Box) -> Shape:
        for part, length in zip(box, self.shape_zyx, strict=True):
            if part.step not in (None, 1) or not 0 <= part.start < part.stop <= length:
                raise ValueError(f"box {box} does not lie in {self.shape_zyx}")
        z, y, x = (part.stop - part.start for part in box)
        return (z, y, x)


def open_cache(folder: Path, hold_out: Iterable[str] = (), plan: Plan | None = None) -> list[CaseCache]:
    """The complete cases of a cache, sorted by id, without those that are held out.

    Raises:
        FolderError: there are none, or they are of another version.
        UsageError: a case to hold out is not there, or the cache was not prepared as ``plan`` says.
    """
    cases = {path.parent.name: _open_case(path) for path in sorted(folder.glob(f"cases/*/{META}"))}
    if not cases:
        raise FolderError(f"{folder}: no prepared cases; expected what prepare writes")
    held_out = set(hold_out)
    if unknown := sorted(held_out - set(cases)):
        raise UsageError(f"--hold-out {' '.join(unknown)}: no such case in {folder}; there are {', '.join(cases)}")
    if plan and any(case.digest != preprocessing_digest(plan) for case in cases.values()):
        raise UsageError(
            f"{folder}: prepared with other organs, spacing, interpolation or intensities than plan {plan.name} has; "
            "prepare with this plan into a new folder"
        )
    return [case for case_id, case in cases.items() if case_id not in held_out]


def case_folder(folder: Path, case_id: str) -> Path:
    """Where a case lies in a cache."""
    return folder / "cases" / case_id


def read_meta(folder: Path) -> dict[str, Any] | None:
    """``meta.json`` of a case's folder; None if the case is not complete."""
    try:
        meta = json.loads((folder / META).read_bytes())
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None


def _open_case(path: Path) -> CaseCache:
    meta = read_meta(path.parent)
    if meta is None or meta.get("format") != FORMAT_VERSION:
        raise FolderError(f"{path}: not of version {FORMAT_VERSION}; prepare into a new folder")
    return CaseCache(
        folder=path.parent,
        case_id=path.parent.name,
        shape_zyx=_triple(meta["shape_zyx"]),
        spacing_zyx_mm=(meta["spacing_zyx_mm"][0], meta["spacing_zyx_mm"][1], meta["spacing_zyx_mm"][2]),
        labelled=meta["labelled"],
        annotated=annotated_classes(meta["labelled"], meta["organs"], meta["not_annotated"]),
        offset_zyx=_triple(meta["offset_zyx"]),
        grid_shape_zyx=_triple(meta["grid_shape_zyx"]),
        digest=meta["digest"],
        pad=meta.get("pad"),
    )


def annotated_classes(labelled: bool, organs: Sequence[str], hidden: Sequence[str]) -> npt.NDArray[np.bool_]:
    """bool (classes,): background, and the organs of a labelled scan that are not hidden."""
    return np.array([True, *(labelled and organ not in hidden for organ in organs)], dtype=bool)


def _triple(values: Sequence[int]) -> Shape:
    z, y, x = values
    return (int(z), int(y), int(x))
