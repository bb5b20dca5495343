"""Integrity of a training case: every problem of scan and label map, found before anything is prepared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.atomic_files import write_text
from app.errors import CaseError
from app.volume import Array, Geometry, Volume
from app.volume_io import read_volume
from tools.train.cases import TrainingCase
from tools.train.fingerprint import Counts, Histogram, ScanFingerprint, lps_grid

_SPACING_MM = (0.2, 10.0)  # abdominal CT lies well within
_AIR_BELOW_HU = -500
_MOST_OFFSET = 0.1  # of a voxel: grids that lie further apart are not the same
_NOT_FINITE = "NaN or infinite"  # how read_volume words it
_RECORD_VERSION = 2


@dataclass(frozen=True)
class Examination:
    """What was found in one case.

    Attributes:
        case_id: of the case.
        problems: what makes it unfit, one sentence each; none: fit.
        warnings: what a user should know and need not mend.
        scan: shape, spacing, intensities; None if the scan cannot be read.
        counts: of the scan's voxels; None likewise.
    """

    case_id: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    scan: ScanFingerprint | None
    counts: Counts | None


def examine(case: TrainingCase, organs: Sequence[str]) -> Examination:
    """All problems of a case, and its fingerprint."""
    problems: list[str] = []
    warnings: list[str] = []
    image = _read(case.image_path, problems, warnings)
    scan, counts = None, None
    if image:
        histogram = Histogram()
        histogram.add(image)
        counts = histogram.counts()
        lowest_hu = histogram.extremes_hu()[0]
        if lowest_hu > _AIR_BELOW_HU:
            warnings.append(f"{case.image_path}: no voxel below {lowest_hu} HU; are these Hounsfield units?")
        shape, spacing = lps_grid(image)
        scan = ScanFingerprint(case.case_id, case.label_path is not None, shape, spacing, histogram.statistics())
        problems.extend(f"{case.image_path}: {text}" for text in _image_problems(image, histogram))
    if case.label_path:
        label = _read(case.label_path, problems, [])
        if label:
            geometry = image.geometry if image else None
            problems.extend(f"{case.label_path}: {text}" for text in _label_problems(label, geometry, case, organs))
    return Examination(case.case_id, tuple(problems), tuple(warnings), scan, counts)


def _read(path: Path, problems: list[str], warnings: list[str]) -> Volume | None:
    try:
        volume = read_volume(path)
    except CaseError as error:
        problems.append(str(error))
        return None
    for text in volume.warnings:
        (problems if _NOT_FINITE in text else warnings).append(f"{path}: {text}")
    return volume


def _image_problems(image: Volume, histogram: Histogram) -> list[str]:
    problems = []
    smallest, largest = _SPACING_MM
    spacing = image.geometry.spacing_zyx_mm
    if min(spacing) < smallest or max(spacing) > largest:
        text = " x ".join(f"{length:.4g}" for length in spacing)
        problems.append(f"spacing {text} mm (z, y, x); expected {smallest} to {largest} mm. Repair the header")
    if histogram.extremes_hu()[1] <= _AIR_BELOW_HU:
        problems.append(f"no voxel above {_AIR_BELOW_HU} HU; expected a patient")
    return problems


def _label_problems(label: Volume, geometry: Geometry | None, case: TrainingCase, organs: Sequence[str]) -> list[str]:
    problems = []
    if geometry and (text := grid_difference(label.geometry, geometry)):
        problems.append(text)
    counts = _label_counts(label)
    if fractions := sorted(value for value in counts if value != int(value)):
        problems.append(f"values that are no whole numbers, {fractions[0]:g} for one; expected label ids")
    known = range(len(organs) + 1)
    strangers = sorted(value for value in counts if value == int(value) and int(value) not in known)
    if strangers:
        shown = ", ".join(f"{value:g} ({counts[value]} voxels)" for value in strangers[:5])
        problems.append(f"unknown label {shown}; expected 0 to {len(organs)}")
    if not any(0 < value <= len(organs) for value in counts):
        problems.append("no organ in it; expected at least one. Remove the file to use the scan as unlabelled")
    for organ in case.not_annotated:
        if voxels := counts.get(float(organs.index(organ) + 1), 0):
            problems.append(f"{organ} is declared not annotated and has {voxels} voxels; correct the description")
    return problems


def _label_counts(label: Volume) -> dict[float, int]:
    """How many voxels there are of each value; at most a thousand values, since a scan is no label map."""
    counts: dict[float, int] = {}
    for plane in label.voxels:
        values, voxels = np.unique(plane, return_counts=True)
        for value, count in zip(values.tolist(), voxels.tolist(), strict=True):
            scaled = float(np.float32(label.slope * value + label.intercept))
            counts[scaled] = counts.get(scaled, 0) + count
        if len(counts) > 1000:
            break
    return counts


def label_ids(label: Volume) -> Array:
    """uint8 (z, y, x) label ids of a label map that has been examined."""
    if label.slope == 1.0 and label.intercept == 0.0:
        return label.voxels.astype(np.uint8, copy=False)
    return np.rint(label.voxels * label.slope + label.intercept).astype(np.uint8)


def grid_difference(label: Geometry, image: Geometry) -> str | None:
    """How the grid of a label map differs from its scan's, or None if it is the same within a tenth of a voxel."""
    if label.shape_zyx != image.shape_zyx:
        found, expected = ("x".join(map(str, shape)) for shape in (label.shape_zyx, image.shape_zyx))
        return f"{found} voxels (z, y, x), its scan has {expected}; expected the scan's grid"
    last = np.asarray(image.shape_zyx) - 1
    corners = np.array([[z, y, x] for z in (0, last[0]) for y in (0, last[1]) for x in (0, last[2])], dtype=np.float64)
    apart = float(np.linalg.norm(_world(label, corners) - _world(image, corners), axis=1).max())
    if apart <= _MOST_OFFSET * min(image.spacing_zyx_mm):
        return None
    return f"a corner of its grid lies {apart:.4g} mm from the scan's; expected the scan's sform and qform"


def _world(geometry: Geometry, voxels: Array) -> Array:
    edges = np.asarray(geometry.direction) * np.asarray(geometry.spacing_zyx_mm)
    world: Array = voxels @ edges.T + np.asarray(geometry.origin_zyx_mm)
    return world


# --- records on disk, so that an interrupted run does not examine twice -----------------------------------


def source_of(case: TrainingCase) -> dict[str, Any]:
    """Name, size and time of a case's files: a change of any makes what was derived from them stale."""
    paths = {"image": case.image_path, "label": case.label_path}
    stats = {key: (path, path.stat()) for key, path in paths.items() if path}
    return {key: [str(path.resolve()), stat.st_size, stat.st_mtime_ns] for key, (path, stat) in stats.items()}


def write_examination(path: Path, case: TrainingCase, organs: Sequence[str], found: Examination) -> None:
    """Writes what ``read_examination`` reads."""
    record = {
        "about": _about(case, organs),
        "problems": found.problems,
        "warnings": found.warnings,
        "scan": None
        if found.scan is None
        else {"shape_zyx": found.scan.shape_zyx, "spacing_zyx_mm": found.scan.spacing_zyx_mm},
        "histogram": None
        if found.counts is None
        else {"first_hu": found.counts.first_hu, "voxels": found.counts.voxels.tolist()},
    }
    write_text(path, json.dumps(record))


def read_examination(path: Path, case: TrainingCase, organs: Sequence[str]) -> Examination | None:
    """The examination on record if it is of these very files; else None."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if record["about"] != _about(case, organs):
        return None
    scan, counts = None, None
    if record["scan"]:
        counts = Counts(record["histogram"]["first_hu"], np.array(record["histogram"]["voxels"], dtype=np.int64))
        histogram = Histogram()
        histogram.add_counts(counts)
        shape, spacing = tuple(record["scan"]["shape_zyx"]), tuple(record["scan"]["spacing_zyx_mm"])
        scan = ScanFingerprint(case.case_id, case.label_path is not None, shape, spacing, histogram.statistics())
    return Examination(case.case_id, tuple(record["problems"]), tuple(record["warnings"]), scan, counts)


def _about(case: TrainingCase, organs: Sequence[str]) -> dict[str, Any]:
    return {
        "version": _RECORD_VERSION,
        "source": source_of(case),
        "organs": list(organs),
        "not_annotated": list(case.not_annotated),
    }
