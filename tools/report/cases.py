"""The cases of a report: which files belong together, and what the page shows of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import CaseError, UsageError
from app.postprocessing import organ_volumes_ml
from app.volume import Geometry, Shape
from tools.evaluate.cases import files_by_case
from tools.figures.labelled_scan import LabelledScan, choose_planes, read_labelled_scans
from tools.report.volumes import PackedVolumes, pack_volumes

ROLES = ("prediction", "reference")


@dataclass(frozen=True)
class CaseFiles:
    """Files of one case; None where a folder has none.

    Attributes:
        refusal: why they cannot be shown, if that shows from the names alone.
    """

    case_id: str
    scan: Path | None
    prediction: Path | None
    reference: Path | None
    refusal: str | None = None


@dataclass(frozen=True)
class CaseView:
    """The slice viewer of one case.

    Attributes:
        geometry: of the scan, turned to LPS.
        packed: the page's voxels; label maps in the order of ``roles``.
        roles: which label maps there are.
        planes: (z, y, x) on the page's grid where the viewer opens.
        volumes_ml: of each organ, by role, from the full grid.
    """

    geometry: Geometry
    packed: PackedVolumes
    roles: tuple[str, ...]
    planes: Shape
    volumes_ml: Mapping[str, Mapping[str, float]]


def find_cases(scans: Path, predictions: Path, references: Path | None) -> list[CaseFiles]:
    """The cases by name, ``X_0000.nii.gz`` with ``X.nii.gz``; what has neither scan nor prediction is none.

    Raises:
        FolderError: a folder is not there or holds no such file.
    """
    by_role = {
        "scan": files_by_case(scans, "--scans", "volume"),
        "prediction": files_by_case(predictions, "--predictions", "label map"),
        "reference": files_by_case(references, "--references", "label map") if references else {},
    }
    return [_files(case_id, by_role) for case_id in sorted(by_role["scan"] | by_role["prediction"])]


def choose_shown(cases: Sequence[CaseFiles], wanted: Sequence[str]) -> set[str]:
    """Ids of the cases that get a viewer; nothing wanted is all.

    Raises:
        UsageError: one of them is no case.
    """
    known = [case.case_id for case in cases]
    if strange := [case_id for case_id in wanted if case_id not in known]:
        raise UsageError(f"--view {strange[0]}: no such case; expected some of {', '.join(known)}")
    return set(wanted or known)


def view_case(files: CaseFiles, labels: tuple[str, ...]) -> CaseView:
    """Reads and packs a case.

    Args:
        files: of the case.
        labels: organ names, label 1 first.

    Raises:
        CaseError: a file is missing or cannot be read, or they do not belong together.
    """
    if files.refusal:
        raise CaseError(files.refusal)
    if files.scan is None:
        raise CaseError(f"{files.prediction}: no scan of this name in --scans; expected {files.case_id}_0000.nii.gz")
    paths = {role: path for role in ROLES if (path := getattr(files, role)) is not None}
    if not paths:
        raise CaseError(f"{files.scan}: no label map of this name; expected {files.case_id}.nii.gz in --predictions")
    scans = dict(zip(paths, read_labelled_scans(files.scan, list(paths.values()), labels), strict=True))
    first = next(iter(scans.values()))
    packed = pack_volumes(list(scans.values()))
    return CaseView(
        geometry=first.geometry,
        packed=packed,
        roles=tuple(scans),
        planes=_planes(first, packed.shape_zyx),
        volumes_ml={role: _volumes_ml(scan) for role, scan in scans.items()},
    )


def _files(case_id: str, by_role: Mapping[str, Mapping[str, list[Path]]]) -> CaseFiles:
    found = {role: files.get(case_id, []) for role, files in by_role.items()}
    twice = next((paths for paths in found.values() if len(paths) > 1), None)
    refusal = (
        f"{', '.join(map(str, twice))}: several files of one case; expected one. Remove the others" if twice else None
    )
    scan, prediction, reference = (paths[0] if paths else None for paths in found.values())
    return CaseFiles(case_id, scan, prediction, reference, refusal)


def _planes(scan: LabelledScan, shape_zyx: Shape) -> Shape:
    """The planes that show most organs, on the page's grid: slice 300 of 400 is slice 75 of 100."""
    full = scan.geometry.shape_zyx
    z, y, x = (
        int((plane + 0.5) * n / n_full) for plane, n, n_full in zip(choose_planes(scan), shape_zyx, full, strict=True)
    )
    return (z, y, x)


def _volumes_ml(scan: LabelledScan) -> Mapping[str, float]:
    return organ_volumes_ml(scan.label_map, scan.labels, scan.geometry.voxel_volume_ml)
