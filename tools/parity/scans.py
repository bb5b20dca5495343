"""The scans of the comparison: real ones as they are stored, and real ones made awkward.

nnU-Net takes voxels in the order in which they are stored. The default network was trained on LPS, so scans that are
stored otherwise are rewritten to it first; the re-oriented scan is then the one that is not.
"""

from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk

from app.errors import FolderError

Change = Callable[[sitk.Image], sitk.Image]

REAL = ("ct_001", "ct_002", "ct_003", "ct_006", "ct_009")
_FRAME_VOXELS = 7


def turned(image: sitk.Image) -> sitk.Image:
    """The same patient stored from left to right, as scanners do for a patient who enters feet first."""
    return sitk.DICOMOrient(image, "RPS")


def slab(image: sitk.Image) -> sitk.Image:
    """The 25 slices around the kidneys: 50 slices of 2.5 mm, and a patch has 64."""
    return image[:, :, 5:30]


def framed(image: sitk.Image) -> sitk.Image:
    """The scan in a frame of 0 HU, which nnU-Net crops away."""
    return sitk.ConstantPad(image, [_FRAME_VOXELS] * 3, [_FRAME_VOXELS + 2] * 3, 0.0)


def small(image: sitk.Image) -> sitk.Image:
    """The middle of the scan, for networks that need not see organs."""
    size = image.GetSize()
    return image[size[0] // 4 : 3 * size[0] // 4, size[1] // 4 : 3 * size[1] // 4, 30:70]


CHANGED: dict[str, tuple[str, Change]] = {
    "ct_003_turned": ("ct_003", turned),
    "ct_006_slab": ("ct_006", slab),
    "ct_002_framed": ("ct_002", framed),
    "ct_002_small": ("ct_002", small),
}


def prepare_scan(name: str, source: Path, work: Path) -> Path:
    """A folder that holds one scan ``NAME_0000.nii.gz`` and nothing else; made if it is not there.

    Args:
        name: one of ``REAL`` or ``CHANGED``.
        source: folder with the real scans.
        work: parent of the new folder.

    Raises:
        FolderError: the real scan is not in ``source``.
    """
    folder = work / name
    path = folder / f"{name}_0000.nii.gz"
    if path.is_file():
        return folder
    original, change = CHANGED.get(name, (name, None))
    scan = source / f"{original}_0000.nii.gz"
    if not scan.is_file():
        raise FolderError(f"{scan}: not there; expected a CT scan. Give --data the folder that holds it")
    image = sitk.DICOMOrient(sitk.ReadImage(str(scan)), "LPS")
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.nii.gz"
    sitk.WriteImage(change(image) if change else image, str(unfinished), useCompression=True, compressionLevel=1)
    unfinished.rename(path)
    return folder
