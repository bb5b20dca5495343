"""Which prediction belongs to which reference: by file name, as FLARE names them."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from app.errors import FolderError
from app.volume_io import NIFTI_SUFFIXES, SIMPLEITK_SUFFIXES

_SUFFIXES = (*NIFTI_SUFFIXES, *SIMPLEITK_SUFFIXES)


@dataclass(frozen=True)
class CasePair:
    """One case to score.

    Attributes:
        case_id: the files' name without ending and without ``_0000``.
        name: of the prediction's file, as the organisers' CSV has it; what is expected if it is missing.
        prediction, reference: the files.
        refusal: why it cannot be scored, if that shows from the names alone.
    """

    case_id: str
    name: str
    prediction: Path
    reference: Path
    refusal: str | None = None


@dataclass(frozen=True)
class Pairing:
    """The cases, one for each reference, sorted by id, and the predictions that no reference asks for."""

    pairs: tuple[CasePair, ...]
    without_reference: tuple[Path, ...]


def pair_cases(prediction_dir: Path, reference_dir: Path) -> Pairing:
    """The cases of two folders: ``FLARE22_Tr_0001.nii.gz`` here and there.

    A trailing ``_0000`` does not count, on either side. A reference without prediction is a case that fails. Hidden
    files and other endings are passed over.

    Raises:
        FolderError: a folder is not there or holds no label map.
    """
    predictions = files_by_case(prediction_dir, "--predictions", "label map")
    references = files_by_case(reference_dir, "--references", "label map")
    pairs = [
        _pair(case_id, paths, predictions.get(case_id, []), prediction_dir)
        for case_id, paths in sorted(references.items())
    ]
    extra = [path for case_id, paths in sorted(predictions.items()) if case_id not in references for path in paths]
    return Pairing(tuple(pairs), tuple(extra))


def _pair(case_id: str, references: list[Path], predictions: list[Path], prediction_dir: Path) -> CasePair:
    expected = prediction_dir / f"{case_id}.nii.gz"
    prediction = predictions[0] if predictions else expected
    refusal = None
    if not predictions:
        refusal = f"{expected}: no prediction for {references[0]}; expected this file. Segment the case"
    for paths in (predictions, references):
        if len(paths) > 1:
            refusal = f"{', '.join(map(str, paths))}: several label maps of one case; expected one. Remove the others"
    return CasePair(case_id, prediction.name, prediction, references[0], refusal)


def files_by_case(folder: Path, option: str, kind: str) -> dict[str, list[Path]]:
    """Files that look like volumes, by case id: ``{"x": [x.nii.gz], "y": [y_0000.nii.gz]}``.

    Args:
        folder: where they lie.
        option: that named it, for messages.
        kind: what they should be, for messages.

    Raises:
        FolderError: the folder is not there or holds no such file.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise FolderError(
            f"{option} {folder}: no such folder ({error.strerror or error}); expected one with {kind}s"
        ) from error
    found: dict[str, list[Path]] = defaultdict(list)
    for entry in entries:
        if (case_id := case_id_of(entry.name)) is not None:
            found[case_id].append(entry)
    if not found:
        raise FolderError(
            f"{option} {folder}: found {len(entries)} files, none of them a {kind}; expected "
            f"{', '.join('*' + suffix for suffix in _SUFFIXES)}"
        )
    return found


def case_id_of(name: str) -> str | None:
    """``x`` for ``x.nii.gz`` and ``x_0000.nii.gz``; None for other files."""
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return re.sub(r"(?<=.)_0000$", "", name[: -len(suffix)])
    return None
