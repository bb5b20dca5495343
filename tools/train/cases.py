"""From data folders to training cases: which scans there are, which have labels, which organs those show.

Layouts: nnU-Net's raw folders (``imagesTr``, ``labelsTr``, ``imagesUn``), FLARE22's (``images`` and ``labels``, or
nnU-Net's names, beside ``unlabeledCase...`` folders), and ``images`` and ``labels`` with scans of which some have no
label. Beside a folder's files may stand a description: organs that a label map does not show.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.cases import find_cases
from app.errors import FolderError, UsageError
from app.json_values import build_value
from app.volume_io import NIFTI_SUFFIXES, SIMPLEITK_SUFFIXES

logger = logging.getLogger(__name__)

FLARE22_ORGANS = (
    "liver",
    "right kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior vena cava",
    "right adrenal gland",
    "left adrenal gland",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left kidney",
)

_DESCRIPTIONS = Path(__file__).parent / "datasets"
_UNLABELLED = re.compile(r"imagesUn|(FLARE22_?)?unlabell?ed.*", re.IGNORECASE)
_LAYOUTS = "imagesTr and labelsTr (nnU-Net), images and labels, imagesUn or unlabeledCase... folders"


@dataclass(frozen=True)
class ScanDescription:
    """Where a scan comes from, and what its label map does not show.

    Attributes:
        source: collection and patient.
        licence: of the scan.
        labels_by: who made the label map; None: there is none.
        not_annotated: organs that are not labelled although they may be in the scan.
        not_trusted: organs that are labelled, but wrongly: somebody looked. They are taken as not annotated.
        remark: why.
    """

    source: str
    licence: str
    labels_by: str | None
    not_annotated: tuple[str, ...] = ()
    not_trusted: tuple[str, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class DatasetDescription:
    """A data folder in words: ``tools/train/datasets/<folder>.json``, or the file that ``--dataset`` names.

    Attributes:
        name: of the data set.
        organs: the organ at index i has label i + 1.
        scans: by case id; scans that are not listed are annotated in full.
    """

    name: str
    organs: tuple[str, ...]
    scans: dict[str, ScanDescription]

    def __post_init__(self) -> None:
        for case_id, scan in self.scans.items():
            if unknown := sorted({*scan.not_annotated, *scan.not_trusted} - set(self.organs)):
                raise ValueError(f"scans.{case_id}: {', '.join(unknown)} is not among the organs")


@dataclass(frozen=True)
class TrainingCase:
    """One scan to learn from.

    Attributes:
        case_id: the file's name without ending and without ``_0000``.
        image_path: the scan.
        label_path: its label map; None: unlabelled.
        not_annotated: organs that the label map does not show; their voxels may hide in its background.
        not_trusted: organs that it shows wrongly.
    """

    case_id: str
    image_path: Path
    label_path: Path | None
    not_annotated: tuple[str, ...] = ()
    not_trusted: tuple[str, ...] = ()

    @property
    def hidden(self) -> tuple[str, ...]:
        """Organs that nothing is known of."""
        return (*self.not_annotated, *self.not_trusted)


@dataclass(frozen=True)
class TrainingData:
    """The cases of one or more folders, sorted by id, and the organs of their label maps."""

    cases: tuple[TrainingCase, ...]
    organs: tuple[str, ...]


def find_training_data(
    folders: Sequence[Path],
    hold_out: Iterable[str] = (),
    description: Path | None = None,
    most_unlabelled: int | None = None,
) -> TrainingData:
    """The labelled and unlabelled cases of some folders.

    A scan in ``imagesTr`` must have a label map; one in ``images`` is unlabelled without.

    Args:
        folders: with one of the layouts above, or one level above such folders.
        hold_out: ids that are in neither set.
        description: JSON that describes all folders; by default the one that is named like the folder.
        most_unlabelled: only so many unlabelled cases, first ids first (the paper took 1000 of FLARE22's 2000).

    Raises:
        FolderError: a folder is not there or holds no scans, or labels and scans do not pair.
        UsageError: an id twice, an unknown id held out, or descriptions that do not fit.
    """
    cases: dict[str, TrainingCase] = {}
    organs: set[tuple[str, ...]] = set()
    for folder in folders:
        text = read_description(description) if description else _description_of(folder)
        organs.add(text.organs if text else FLARE22_ORGANS)
        for case in _cases_of(folder, text):
            if case.case_id in cases:
                raise UsageError(
                    f"{case.image_path}: case {case.case_id} is also {cases[case.case_id].image_path}; "
                    "every scan needs its own name"
                )
            cases[case.case_id] = case
    if len(organs) != 1:
        raise UsageError(f"{', '.join(map(str, folders))}: descriptions with different organs; expected the same")
    held_out = set(hold_out)
    if unknown := sorted(held_out - set(cases)):
        raise UsageError(f"--hold-out {' '.join(unknown)}: no such case; there are {_listed(sorted(cases))}")
    kept = [cases[case_id] for case_id in sorted(cases) if case_id not in held_out]
    return TrainingData(tuple(_first_unlabelled(kept, most_unlabelled)), organs.pop())


def find_training_cases(folder: Path) -> list[TrainingCase]:
    """All cases of one folder; see ``find_training_data``."""
    return list(find_training_data([folder]).cases)


def read_description(path: Path) -> DatasetDescription:
    """The description in a JSON file.

    Raises:
        UsageError: the file cannot be read or is not a description.
    """
    try:
        description = build_value(DatasetDescription, json.loads(path.read_text(encoding="utf-8")), "dataset")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}); expected a description") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    assert isinstance(description, DatasetDescription)
    return description


def _description_of(folder: Path) -> DatasetDescription | None:
    path = _DESCRIPTIONS / f"{folder.resolve().name}.json"
    if not path.exists():
        return None
    logger.info("%s: described by %s", folder, path)
    return read_description(path)


def _cases_of(folder: Path, description: DatasetDescription | None) -> list[TrainingCase]:
    """The cases of one ``--data`` folder."""
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError as error:
        raise FolderError(f"{folder}: no data folder ({error.strerror or error}); expected {_LAYOUTS}") from error
    cases: list[TrainingCase] = []
    for root in (folder, *children):
        for images, labels, complete in (("imagesTr", "labelsTr", True), ("images", "labels", False)):
            if (root / images).is_dir():
                cases.extend(_pairs(root / images, root / labels, complete, description))
    for root in (folder, *children):
        if _UNLABELLED.fullmatch(root.name):
            cases.extend(_pairs(root, None, False, None))
    if not cases:
        raise FolderError(f"{folder}: found no scans; expected {_LAYOUTS}")
    if description and (unknown := sorted(set(description.scans) - {case.case_id for case in cases})):
        logger.warning("%s: described, but not there: %s", folder, ", ".join(unknown))
    return cases


def _pairs(
    images: Path, labels: Path | None, complete: bool, description: DatasetDescription | None
) -> list[TrainingCase]:
    """The scans of a folder with the label maps of another."""
    found = find_cases(images, labels or images / "labels")
    if refusals := [case.refusal for case in found if case.refusal]:
        raise FolderError(f"{images}: {'; '.join(refusals)}")
    cases = []
    for case in found:
        label = _label_file(labels, case.case_id) if labels else None
        scan = description.scans.get(case.case_id) if description else None
        unknown = (scan.not_annotated, scan.not_trusted) if scan and label else ()
        cases.append(TrainingCase(case.case_id, case.input_path, label, *unknown))
    without = [case.case_id for case in cases if case.label_path is None]
    if complete and without:
        raise FolderError(f"{images}: no label map in {labels} for {_listed(without)}. Move these scans to imagesUn")
    if labels and labels.is_dir():
        used = {case.label_path for case in cases}
        if orphans := sorted(entry.name for entry in _label_maps(labels) if entry not in used):
            raise FolderError(f"{labels}: no scan in {images} for {_listed(orphans)}. Copy the scans, or remove these")
    return cases


def _label_file(labels: Path, case_id: str) -> Path | None:
    for suffix in (*NIFTI_SUFFIXES, *SIMPLEITK_SUFFIXES):
        if (path := labels / f"{case_id}{suffix}").is_file():
            return path
    return None


def _label_maps(labels: Path) -> Iterable[Path]:
    suffixes = (*NIFTI_SUFFIXES, *SIMPLEITK_SUFFIXES)
    return (entry for entry in labels.iterdir() if entry.name.endswith(suffixes) and not entry.name.startswith("."))


def _first_unlabelled(cases: list[TrainingCase], most: int | None) -> list[TrainingCase]:
    unlabelled = [case.case_id for case in cases if case.label_path is None]
    dropped = set() if most is None else set(unlabelled[most:])
    return [case for case in cases if case.case_id not in dropped]


def _listed(names: Sequence[str]) -> str:
    """At most six names."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
