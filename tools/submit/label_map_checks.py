"""Label maps against the scans that they belong to: grid, labels, type."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from app.errors import CaseError
from app.volume_io import read_header
from tools.evaluate.geometry import describe_difference
from tools.evaluate.label_maps import read_label_map
from tools.submit.rules import Check, judged

_MAPS_RULES = ("grid", "labels", "type")
# Of nibabel: the last two for numbers in a header that are NaN or infinite, and for impossible quaternions.
_DAMAGE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError)


def check_label_maps(pairs: Sequence[tuple[Path, Path]], largest_label: int) -> list[Check]:
    """Grid, labels and type of label maps.

    Args:
        pairs: (label map, its scan), of the label maps that were made.
        largest_label: that the challenge knows.
    """
    if not pairs:
        return [Check(rule, "not checked", "no label map was made") for rule in _MAPS_RULES]
    grids = [(path.name, _other_grid(path, scan)) for path, scan in pairs]
    types = [(path.name, _other_type(path)) for path, _ in pairs]
    labels = [_labels(path, largest_label) for path, _ in pairs]
    return [
        judged("grid", *_told(grids, "that of the scan")),
        judged("labels", all(good for good, _ in labels), "; ".join(found for _, found in labels)),
        judged("type", *_told(types, "uint8")),
    ]


def _told(faults: Sequence[tuple[str, str | None]], good: str) -> tuple[bool, str]:
    found = [f"{name}: {fault}" for name, fault in faults if fault]
    return not found, "; ".join(found) or good


def _other_grid(path: Path, scan: Path) -> str | None:
    """In what the label map's grid is another than the scan's."""
    try:
        found, expected = read_header(path), read_header(scan)
    except CaseError as error:
        return str(error)
    if found is None or expected is None:
        return "cannot be read"
    return describe_difference(found.geometry, expected.geometry)


def _labels(path: Path, largest_label: int) -> tuple[bool, str]:
    """(whether all are organs, which there are)."""
    try:
        found = read_label_map(path, largest_label)
    except CaseError as error:
        return False, str(error)
    present = np.flatnonzero(np.bincount(found.labels.ravel(), minlength=largest_label + 1)).tolist()
    return True, f"{path.name}: {', '.join(map(str, present))}"


def _other_type(path: Path) -> str | None:
    """The type that voxels are stored in, if it is not plain uint8."""
    try:
        header = nib.load(path).header
        stored, (slope, intercept) = header.get_data_dtype(), header.get_slope_inter()
    except _DAMAGE as error:
        return f"cannot be read ({error})"
    if stored != np.uint8:
        return f"{stored}"
    scaled = slope not in (None, 1) or intercept not in (None, 0)
    return f"uint8, to be scaled by {slope} and shifted by {intercept}" if scaled else None
