"""From an input folder or file to cases: which scans there are and where their label maps go."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from app.errors import FolderError, UsageError
from app.simpleitk_formats import holds_dicom_magic
from app.volume_io import NIFTI_SUFFIXES, SIMPLEITK_SUFFIXES

logger = logging.getLogger(__name__)

_FILES_LOOKED_AT = 48  # for DICOM: a folder of thousands of other files costs no more than 48 short reads
_LONGEST_NAME_BYTES = 255  # of the file systems of Linux
_PROBE = ".probe.partial"
_SUFFIXES = (*NIFTI_SUFFIXES, *SIMPLEITK_SUFFIXES)


@dataclass(frozen=True)
class Case:
    """One scan and the place of its label map.

    Attributes:
        case_id: the file's name without ending and without ``_0000``.
        input_path: a file, or a folder with a DICOM series.
        output_path: where the label map goes.
        refusal: why it cannot be segmented, if that shows from the names alone.
    """

    case_id: str
    input_path: Path
    output_path: Path
    refusal: str | None = None

    @property
    def has_label_map(self) -> bool:
        """Whether it was segmented before; a link does not count: what it leads to is not in the output folder."""
        return self.output_path.is_file() and not self.output_path.is_symlink()


def find_cases(input_dir: Path, output_dir: Path) -> list[Case]:
    """The cases of a folder, sorted by id.

    ``X_0000.nii.gz`` gives ``X.nii.gz`` (nnU-Net's channel suffix); any other name keeps all of itself. Beside
    an ``X_0000`` a file ``X_0001`` is a second channel, and X is refused. So are two inputs for one output.
    Hidden files are passed over, files of other kinds too, with a warning.

    Raises:
        FolderError: the folder does not exist or holds no scan.
        UsageError: label maps would lie among the scans, where X.nii.gz could replace one.
    """
    if output_dir.resolve() == input_dir.resolve():
        raise UsageError(f"--output-dir {output_dir} is the input folder itself; choose another folder")
    try:
        entries = sorted(entry for entry in input_dir.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise FolderError(
            f"{input_dir}: no input folder ({error.strerror or error}); expected a folder with scans"
        ) from error
    names = {entry: stem for entry in entries if (stem := _scan_name(entry)) is not None}
    if not names and _holds_dicom(input_dir):
        return [Case(input_dir.resolve().name, input_dir, output_dir / f"{input_dir.resolve().name}.nii.gz")]
    if not names:
        raise FolderError(
            f"{input_dir}: found {len(entries)} entries, none of them a scan; expected "
            f"{', '.join('*' + suffix for suffix in _SUFFIXES)} or folders with DICOM series, in the folder itself"
        )
    for entry in entries:
        if entry not in names and entry.suffix != ".raw":
            logger.warning("%s: not a scan; passed over", entry)
    by_id: dict[str, list[Path]] = defaultdict(list)
    stems = set(names.values())
    for entry, stem in names.items():
        by_id[_case_id(stem, stems)].append(entry)
    return [_case(case_id, paths, names, output_dir) for case_id, paths in sorted(by_id.items())]


def single_case(input_path: Path, output_path: Path) -> Case:
    """The case of ``--input FILE --output FILE``.

    Raises:
        FolderError: there is no such input.
        UsageError: the output's name does not end in .nii.gz or .nii.
    """
    if not output_path.name.endswith(NIFTI_SUFFIXES):
        raise UsageError(f"--output {output_path}: expected a name that ends in .nii.gz or .nii")
    try:
        input_path.stat()
    except OSError as error:
        raise FolderError(
            f"{input_path}: no such file; expected a scan or a folder with a DICOM series ({error.strerror or error})"
        ) from error
    check_output_name("--output", output_path)
    if input_path.is_file() and _scan_name(input_path) is None:
        raise UsageError(f"--input {input_path}: expected {', '.join(_SUFFIXES)}")
    if output_path.exists() and input_path.resolve() == output_path.resolve():
        raise UsageError(f"--output {output_path} is the input itself; choose another name")
    for suffix in NIFTI_SUFFIXES:
        if output_path.name.endswith(suffix):
            return Case(output_path.name.removesuffix(suffix), input_path, output_path)
    raise AssertionError(output_path)


def check_report_place(report: Path, cases: Iterable[Case]) -> None:
    """Raises UsageError if the report would replace a scan or a label map, or lie among the slices of a series.

    A link in place of a label map is replaced, so that what it leads to is no concern of this run.
    """
    places = {_entry(report), os.path.realpath(report)}
    for case in cases:
        scan = os.path.realpath(case.input_path)
        if places & {scan, _entry(case.output_path)}:
            raise UsageError(f"--report {report}: is the scan or the label map of {case.case_id}; choose another name")
        if any(Path(place).is_relative_to(scan) for place in places):
            raise UsageError(f"--report {report}: lies in the DICOM series {case.input_path}; choose another folder")


def _entry(path: Path) -> str:
    """The entry of a folder that the path names, which may be a link."""
    return str(Path(os.path.realpath(path.parent)) / path.name)


def check_output_name(option: str, path: Path) -> None:
    """Raises UsageError if a part of the path is longer than file systems take."""
    for part in path.parts:
        if (length := len(os.fsencode(part))) > _LONGEST_NAME_BYTES:
            raise UsageError(f"{option} {path}: a name of {length} bytes; expected at most {_LONGEST_NAME_BYTES}")


def prepare_output_folder(folder: Path) -> None:
    """Makes the folder and proves that it can be written.

    Raises:
        FolderError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / _PROBE  # always the same name: the next run removes what a killed one left
        probe.unlink(missing_ok=True)
        with suppress(FileExistsError), probe.open("xb") as stream:  # exists: another run is proving it
            stream.write(b"probe")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise FolderError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another output folder"
        ) from error


def _scan_name(entry: Path) -> str | None:
    """The name without its ending if it looks like a scan, else None."""
    if _is_folder(entry):
        return entry.name if _holds_dicom(entry) else None
    lower = entry.name.lower()
    for suffix in _SUFFIXES:
        if lower.endswith(suffix) and len(entry.name) > len(suffix):
            return entry.name[: -len(suffix)]
    return None


def _is_folder(entry: Path) -> bool:
    """Whether it is one; no if that cannot be told, as of a link into a closed folder: reading it will say why."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _holds_dicom(folder: Path) -> bool:
    """Whether one of the first files in a folder is DICOM, after a scanner's or an archive's CONTENTS.txt, say.

    A file that cannot be read may be DICOM: the folder becomes a case that fails.
    """
    try:
        files = (entry for entry in sorted(folder.iterdir()) if entry.is_file() and not entry.name.startswith("."))
        return any(holds_dicom_magic(file) for file in islice(files, _FILES_LOOKED_AT))
    except OSError:
        return True


def _case_id(stem: str, stems: set[str]) -> str:
    """``X`` for ``X_0000``, and for ``X_0001`` if there is an ``X_0000``; else the whole stem."""
    match = re.fullmatch(r"(.+)_(\d{4})", stem)
    if match and (match[2] == "0000" or f"{match[1]}_0000" in stems):
        return match[1]
    return stem


def _case(case_id: str, paths: list[Path], names: dict[Path, str], output_dir: Path) -> Case:
    refusal = None
    listed = ", ".join(path.name for path in paths)
    channels = {names[path] for path in paths} - {case_id, f"{case_id}_0000"}
    if channels:
        refusal = f"{listed}: several channels of one case; expected one CT image per case. Remove the others"
    elif len(paths) > 1:
        refusal = f"{listed}: several inputs for one output {case_id}.nii.gz; expected one. Rename or remove the others"
    elif (length := len(os.fsencode(f"{case_id}.nii.gz"))) > _LONGEST_NAME_BYTES:
        refusal = f"{listed}: its label map would have a name of {length} bytes, more than 255. Rename it"
    return Case(case_id, paths[0], output_dir / f"{case_id}.nii.gz", refusal)
