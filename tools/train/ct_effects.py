"""What differs from CT to CT, as functions of a patch: contrast, kernel, slice thickness, dose, field of view.

Patches are torch tensors (z, y, x); a 2-D network's have z = 1. Nothing here draws at random but the noise: the
caller draws, so every effect can be tested with a number. Separable filters are one small matrix per axis, as in
``app.resampling``; they are copied into PyTorch's memory, since BLAS may round otherwise at another alignment and a
batch has to come out the same each time.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from app.volume import Float32Array

# Mean HU without contrast, arterial (30 s), portal venous (70 s), delayed (180 s): textbook values, rounded. Stomach
# and bile take up no contrast worth the name. The first key that is part of the organ's name counts.
_PHASES_HU = {
    "liver": (58, 68, 110, 95),
    "kidney": (32, 150, 190, 160),
    "spleen": (48, 130, 122, 100),
    "pancreas": (40, 105, 92, 75),
    "aorta": (42, 300, 155, 115),
    "cava": (42, 80, 145, 115),
    "adrenal": (22, 70, 75, 55),
    "esophagus": (35, 60, 75, 65),
    "duodenum": (30, 65, 70, 60),
}
PHASES = 4
SPREAD_HU = 15.0  # of an organ's mean among patients: a guess; fat makes livers and pancreases darker still
TISSUE_HU = -30.0  # below is what takes up no contrast in any organ's label: gas, and fat that noisy labels hold
_EDGE_HU = 60.0  # over this much above the lower clip value an effect on tissue fades in; below is air, clipped
_KERNEL_SIGMA = 0.8  # voxels; at 2 mm that parts what a soft kernel drops from what it keeps


def phase_hu(organs: Sequence[str], phase: float) -> npt.NDArray[np.float64]:
    """Mean HU of each organ at a phase between 0 (no contrast) and 3 (delayed); NaN where no curve is known.

    The liver at phase 1.5 is half way between 68 (arterial) and 110 (portal venous): 89.
    """
    values = np.full(len(organs), np.nan)
    for index, organ in enumerate(organs):
        for key, curve in _PHASES_HU.items():
            if key in organ.lower():
                values[index] = np.interp(phase, range(PHASES), curve)
                break
    return values


def spread_hu(organs: Sequence[str], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """How far each organ of a patient is from the mean of ``phase_hu``: normal, ``SPREAD_HU`` wide; pairs share it."""
    pairs = [organ.lower().removeprefix("left ").removeprefix("right ") for organ in organs]
    drawn = rng.normal(0, SPREAD_HU, len(organs))
    return drawn[[pairs.index(organ) for organ in pairs]]


def tissue_means(image: Tensor, label: Tensor, classes: int, above: float) -> npt.NDArray[np.float64]:
    """Mean over each class's voxels above a value; NaN for a class of which the patch shows none.

    A duodenum of wall at 40 HU and gas at -200 HU, half and half, seen above -30 HU: 40, not -80.
    """
    tissue = (image > above).flatten()
    flat = label.flatten()[tissue].int()
    counts = torch.bincount(flat, minlength=classes).double()
    sums = torch.bincount(flat, weights=image.flatten()[tissue], minlength=classes).double()
    means: npt.NDArray[np.float64] = (sums / counts).numpy()
    return means


def shift_organs(image: Tensor, label: Tensor, shifts: npt.NDArray[np.float64], low: float, per_hu: float) -> Tensor:
    """The image with each class shifted, smoothly over one voxel at its edge; gas inside an organ stays gas.

    Two neighbours that shift by 40 and 0 HU change by 30 and 10 where they touch.

    Args:
        image: float32 (z, y, x), normalised.
        label: uint8 (z, y, x).
        shifts: (classes,) in the image's unit; 0 for background.
        low: lower clip value, normalised.
        per_hu: normalised units per HU.
    """
    field = torch.from_numpy(shifts.astype(np.float32).take(label.numpy()))
    for axis, length in enumerate(field.shape):
        if length > 1:
            field = _smooth(field, axis)
    return image + field.mul_(_above(image, low, per_hu))


def shift_all(image: Tensor, shift: float, low: float, high: float, per_hu: float) -> Tensor:
    """The image shifted by a number, except where it is clipped: what lies beyond is not known there."""
    return image + _above(image, low, per_hu).mul_(_above(-image, -high, per_hu)).mul_(shift)


def change_kernel(image: Tensor, sharpening: float) -> Tensor:
    """image + sharpening * (image - blurred in plane): -1 is the Gaussian of 0.8 voxels, above 0 a sharp kernel."""
    return torch.lerp(image, _blur_in_plane(image, _KERNEL_SIGMA), -sharpening)


def thicken_slices(image: Tensor, matrix: Float32Array) -> Tensor:
    """The image seen through ``slice_matrix``."""
    depth, height, width = image.shape
    return (torch.tensor(matrix) @ image.reshape(depth, -1)).reshape(depth, height, width)


def slice_matrix(
    depth: int, spacing_mm: float, thickness_mm: float, increment_mm: float, first_mm: float
) -> Float32Array:
    """float32 (depth, depth): the mean over slices of a thickness, then linear interpolation between their centres.

    Six voxels of 1 mm seen in slices of 2 mm, centres at 1, 3 and 5 mm: slice means (v0 + v1) / 2, (v2 + v3) / 2 and
    (v4 + v5) / 2; voxel 1 (centre 1.5 mm) gets 3/4 of the first and 1/4 of the second. The scan goes on beyond the
    patch: of the slices at -1 and 7 mm no more than v0 and v5 is known, and voxel 0 gets 1/4 of v0.

    Args:
        depth: voxels along z.
        spacing_mm: of the voxels.
        thickness_mm: of a slice.
        increment_mm: from one slice's centre to the next.
        first_mm: centre of the patch's first slice, from the edge of its first voxel; up to an increment.
    """
    extent = depth * spacing_mm
    centres = np.arange(first_mm - increment_mm, extent + increment_mm, increment_mm)
    edges = np.arange(depth + 1) * spacing_mm
    begin = np.clip(centres - thickness_mm / 2, 0, extent - spacing_mm)[:, None]
    end = np.clip(centres + thickness_mm / 2, spacing_mm, extent)[:, None]
    overlap = np.clip(np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1]), 0, None)
    means = overlap / overlap.sum(axis=1, keepdims=True)
    voxels = (np.arange(depth) + 0.5) * spacing_mm
    back = np.stack([np.interp(voxels, centres, impulse) for impulse in np.eye(len(centres))], axis=1)
    matrix: Float32Array = (back @ means).astype(np.float32)
    return matrix


def add_noise(
    image: Tensor, sigma: float, grain: float, low: float, high: float, per_hu: float, generator: torch.Generator
) -> Tensor:
    """The image with noise of a standard deviation and an in-plane grain (sigma in voxels); clipped air stays air."""
    noise = torch.randn(image.shape, generator=generator)
    if grain > 0:
        along_y, along_x = (_grain_matrix(length, grain) for length in image.shape[1:])
        noise = torch.matmul(along_y, noise @ along_x.T)
    weight = _above(image, low, per_hu).mul_(_above(-image, -high, per_hu))
    return image + noise.mul_(weight).mul_(sigma)


def fill_outside(image: Tensor, label: Tensor | None, kept: tuple[slice, slice, slice], air: float | None) -> None:
    """Surrounds the box ``kept`` with air, or as ``SlidingWindowPlan.padding`` ``edge`` does, in place.

    Of six planes 0 1 2 3 4 5, [2, 4) kept: 2 2 2 3 3 3, or air air 2 3 air air.

    Args:
        image: float32 (z, y, x), normalised.
        label: uint8 (z, y, x), or None.
        kept: what stays; one voxel at least along each axis, with bounds that are no negative numbers.
        air: what comes outside, with background; None: the outermost voxels again, and their labels.
    """
    filled: list[tuple[Tensor, float | None]] = [(image, air)]
    if label is not None:
        filled.append((label, None if air is None else 0))
    for values, fill in filled:
        for axis, part in enumerate(kept):
            for start, stop, edge in ((0, part.start, part.start), (part.stop, values.shape[axis], part.stop - 1)):
                content = values.narrow(axis, edge, 1) if fill is None else torch.tensor(fill)
                values.narrow(axis, start, stop - start).copy_(content)


def _above(image: Tensor, low: float, per_hu: float) -> Tensor:
    """0 at ``low`` and below, rising to 1 over ``_EDGE_HU``."""
    return (image - low).mul_(1 / (_EDGE_HU * per_hu)).clamp_(0, 1)


def _smooth(field: Tensor, axis: int) -> Tensor:
    """(1, 2, 1) / 4 along an axis; the edge voxel continues outwards."""
    last = field.shape[axis] - 1
    smooth = field * 0.5
    smooth.narrow(axis, 1, last).add_(field.narrow(axis, 0, last), alpha=0.25)
    smooth.narrow(axis, 0, last).add_(field.narrow(axis, 1, last), alpha=0.25)
    for edge in (0, last):
        smooth.select(axis, edge).add_(field.select(axis, edge), alpha=0.25)
    return smooth


def _blur_in_plane(image: Tensor, sigma: float) -> Tensor:
    along_y, along_x = (torch.tensor(_gaussian_matrix(length, sigma)) for length in image.shape[1:])
    return torch.matmul(along_y, image @ along_x.T)


def _gaussian_matrix(length: int, sigma: float) -> Float32Array:
    matrix: Float32Array = ndimage.gaussian_filter1d(np.eye(length), sigma, axis=0, mode="nearest").astype(np.float32)
    return matrix


def _grain_matrix(length: int, sigma: float) -> Tensor:
    """The blur along an axis, each row of norm 1: white noise keeps its deviation, also where the blur repeats an edge.

    At an edge, whose voxel counts for all beyond it, the blur of 0.9 voxels keeps 0.76 of it, in the middle 0.56.
    """
    matrix = _gaussian_matrix(length, sigma)
    return torch.tensor(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
