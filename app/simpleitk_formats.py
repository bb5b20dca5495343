"""MetaImage, NRRD and DICOM series, through SimpleITK, which is imported only when one of them is read."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import CaseError
from app.simpleitk_data_files import check_data_files
from app.simpleitk_geometry import geometry_from_lps
from app.volume import Volume


def read_with_simpleitk(path: Path) -> Volume:
    """The scan in a MetaImage or NRRD file.

    Raises:
        CaseError: SimpleITK cannot read it, its voxels lie in another folder, or it is not a 3-D scan of real numbers.
    """
    _check_name(path)
    check_data_files(path)
    return _volume_from_image(_load_image(path, [str(path)]), path)


def read_dicom(folder: Path) -> Volume:
    """The scan in a folder with one DICOM series.

    Raises:
        CaseError: there is not exactly one series, or SimpleITK cannot read it.
    """
    sitk = _import_simpleitk()
    _check_name(folder)
    files = [entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise CaseError(
            f"{folder}: found {len(series)} DICOM series; expected one. Give each series its own folder; "
            "a folder of other scans goes to --input-dir"
        )
    names = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0]))
    image = _load_image(folder, names)
    _check_stack(image, names, folder)
    strangers = {file.name for file in files} - {Path(name).name for name in names}
    if damaged := sorted(name for name in strangers if holds_dicom_magic(folder / name)):
        raise CaseError(
            f"{folder}: {', '.join(damaged[:3])} (of {len(damaged)}) cannot be read as slices of the series; expected "
            "all of it. Copy them again, or remove them if they belong to no slice"
        )
    warnings = [f"{len(strangers)} of {len(files)} files in the folder are not DICOM; passed over"] if strangers else []
    return _volume_from_image(image, folder, tuple(warnings))


def holds_dicom_magic(path: Path) -> bool:
    """Whether a file starts like DICOM: "DICM" after a preamble of 128 bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _check_stack(image: Any, names: list[str], folder: Path) -> None:
    """Raises CaseError if a slice lies more than half a voxel from where SimpleITK's even, upright stack has it."""
    sitk = _import_simpleitk()
    if image.GetDimension() != 3 or image.GetSize()[2] != len(names):
        return
    reader = sitk.ImageFileReader()
    apart_mm = []
    for index, name in enumerate(names):
        reader.SetFileName(name)
        reader.ReadImageInformation()
        apart_mm.append(np.subtract(image.TransformIndexToPhysicalPoint((0, 0, index)), reader.GetOrigin()))
    most_mm = float(np.linalg.norm(apart_mm, axis=1).max())
    if most_mm > 0.5 * min(image.GetSpacing()):
        raise CaseError(
            f"{folder}: slices lie up to {most_mm:.3g} mm from an even stack (missing slices or a tilted gantry); "
            "expected an even one. Complete it, or convert it with dcm2niix"
        )


def _check_name(path: Path) -> None:
    """Raises CaseError for a name that would make SimpleITK end the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise CaseError(f"{path}: the name is not UTF-8; SimpleITK cannot read it. Rename it") from error


def _load_image(path: Path, names: list[str]) -> Any:
    """SimpleITK's image of one file or of the sorted slices of a DICOM series."""
    sitk = _import_simpleitk()
    try:
        return sitk.ReadImage(names[0] if len(names) == 1 else names)
    except RuntimeError as error:
        raise CaseError(
            f"{path}: SimpleITK cannot read it ({_reason(error)}); expected a 3-D scan. Copy it again"
        ) from error


def _reason(error: RuntimeError) -> str:
    """What SimpleITK says, without text of the header: its NRRD reader quotes lines, of which only the step is kept.

    Its MetaImage reader ends with the reason why any call of the system failed last: "No such file or directory" for a
    file that is there. That is left out.
    """
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("Reason: ")]
    steps = [step for line in lines if (step := re.match(r"\[nrrd\] (\w+): ", line))]
    return f"at {steps[-1][1]}" if steps else " ".join(lines[1:] or lines)


def _volume_from_image(image: Any, path: Path, warnings: tuple[str, ...] = ()) -> Volume:
    """The volume in a SimpleITK image, whose geometry is LPS already."""
    sitk = _import_simpleitk()
    size = image.GetSize()
    if image.GetDimension() == 4 and size[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        text = "x".join(map(str, size))
        raise CaseError(
            f"{path}: {image.GetDimension()}-D image {text} with {image.GetNumberOfComponentsPerPixel()} components; "
            "expected 3-D with one. Split it into files"
        )
    voxels = sitk.GetArrayFromImage(image)
    if voxels.dtype.kind not in "iuf":
        raise CaseError(f"{path}: voxels of type {voxels.dtype}; expected real numbers (Hounsfield units). Convert it")
    depth, height, width = voxels.shape
    spacing, direction, origin = image.GetSpacing(), image.GetDirection(), image.GetOrigin()
    geometry = geometry_from_lps((depth, height, width), spacing, direction, origin, path)
    return Volume(voxels=voxels, geometry=geometry, warnings=warnings)


def _import_simpleitk() -> Any:
    """SimpleITK without ITK's warnings, which would go past the log; ``_check_stack`` says what matters of them.

    MetaIO has no such switch: about a malformed MetaImage it writes lines of its own to stderr ("DimSize required and
    not defined."), with ``--quiet``, too. They are let through: stderr could only be turned away for the whole process,
    whose other threads log at the same time.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk
