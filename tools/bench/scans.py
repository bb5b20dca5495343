"""The scans of the bench: three real ones as they are stored, and long ones made of the third.

*Interpolated* scans keep the patient's length in mm and get thinner slices: as many windows, more to read, resample,
restore and write. *Tiled* ones repeat the patient at his slice spacing: more windows too.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from app.errors import FolderError
from app.volume import Array

Change = Callable[[sitk.Image], sitk.Image]

REAL = ("ct_001", "ct_006", "ct_007")
_TILED_IN_PLANE = 512
_AIR_HU = -1024


def with_slices(image: sitk.Image, slices: int) -> sitk.Image:
    """The scan interpolated linearly along z to so many slices; the outer faces of the stack stay where they are.

    160 slices of 3 mm are 480 mm; 1200 slices become 0.4 mm thin, and the centre of the first one, which was 1.5 mm
    from the face, is 0.2 mm from it.
    """
    depth = image.GetSize()[2]
    x_mm, y_mm, z_mm = image.GetSpacing()
    thin_mm = z_mm * depth / slices
    stack = sitk.GetArrayViewFromImage(image)
    thin = np.empty((slices, *stack.shape[1:]), dtype=stack.dtype)
    for index, position in enumerate((np.arange(slices) + 0.5) * depth / slices - 0.5):
        inside = min(max(float(position), 0.0), depth - 1.0)
        below = min(int(inside), depth - 2)
        part = np.float32(inside - below)
        thin[index] = np.rint(stack[below] * (1 - part) + stack[below + 1] * part)
    origin = image.TransformContinuousIndexToPhysicalPoint((0.0, 0.0, -0.5 + 0.5 * thin_mm / z_mm))
    return _image(thin, image, origin, (x_mm, y_mm, thin_mm))


def tiled(image: sitk.Image, slices: int) -> sitk.Image:
    """The scan padded with air to 512 x 512 in plane and repeated along z; spacing and the patient's place stay.

    Every other copy is upside down, so that copies meet in equal slices: 3 slices as 8 are 0 1 2 2 1 0 0 1.
    """
    margins = [_TILED_IN_PLANE - length for length in image.GetSize()[:2]]
    before = [margin // 2 for margin in margins]
    after = [margin - part for margin, part in zip(margins, before, strict=True)]
    padded = sitk.ConstantPad(image, [*before, 0], [*after, 0], float(_AIR_HU))
    depth = padded.GetSize()[2]
    position = np.arange(slices) % (2 * depth)
    order = np.where(position < depth, position, 2 * depth - 1 - position)
    return _image(sitk.GetArrayViewFromImage(padded)[order], padded, padded.GetOrigin(), padded.GetSpacing())


def _image(voxels: Array, like: sitk.Image, origin: tuple[float, ...], spacing: tuple[float, ...]) -> sitk.Image:
    """(z, y, x) voxels as an image whose axes point as those of ``like``; origin and spacing are (x, y, z) mm."""
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(like.GetDirection())
    return image


CHANGED: dict[str, tuple[str, Change]] = {
    "ct_007_slices_621": ("ct_007", lambda image: with_slices(image, 621)),
    "ct_007_slices_1200": ("ct_007", lambda image: with_slices(image, 1200)),
    "ct_007_tiled_160": ("ct_007", lambda image: tiled(image, 160)),
    "ct_007_tiled_1200": ("ct_007", lambda image: tiled(image, 1200)),
}


def prepare_scan(name: str, source: Path, scans: Path) -> Path:
    """``scans/NAME/NAME_0000.nii.gz``, alone in its folder as the peers want it; made if it is not there.

    Args:
        name: one of ``REAL`` or ``CHANGED``.
        source: folder with the real scans.
        scans: parent of the new folder.

    Raises:
        FolderError: the real scan is not in ``source``.
    """
    path = scans / name / f"{name}_0000.nii.gz"
    if path.is_file():
        return path
    original, change = CHANGED.get(name, (name, None))
    scan = source / f"{original}_0000.nii.gz"
    if not scan.is_file():
        raise FolderError(f"{scan}: not there; expected a CT scan. Give --data the folder that holds it")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{name}.nii.gz"
    if change is None:
        shutil.copyfile(scan, unfinished)
    else:
        sitk.WriteImage(change(sitk.ReadImage(str(scan))), str(unfinished), useCompression=True, compressionLevel=6)
    unfinished.rename(path)
    return path
