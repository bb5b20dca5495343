"""Synthetic abdominal CT scans with perfect labels, for tests, demos and trial runs of training.

Every patient is a deformed copy of one anatomy (``phantom_anatomy``): each organ is moved, scaled and turned by a
little, then space itself is bent smoothly, so that neighbours stay neighbours. The anatomy is in millimetres; a
coarser spacing shows the same patient in fewer voxels. ``python -m tools.phantom --out DIR --count N`` writes files.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.cases import prepare_output_folder
from app.errors import EXIT_OK, UsageError
from app.resampling import resample
from app.volume import Float32Array, Geometry, LabelArray, Shape, Vector, Volume
from app.volume_io import write_label_map
from tools.ct import write_ct
from tools.exit_codes import exit_code_of
from tools.phantom_anatomy import ORGANS
from tools.phantom_canvas import Canvas, paint_body, paint_organ, vary

Phase = Literal["native", "arterial", "portal"]

# A later organ covers an earlier one: what is thin or sharply bounded comes last.
_PAINTING_ORDER = (
    "stomach", "liver", "spleen", "gallbladder", "duodenum", "pancreas", "right kidney", "left kidney",
    "inferior vena cava", "aorta", "esophagus", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
_BEND_MM, _BEND_NODES = 5.0, 6  # standard deviation of the smooth deformation at its nodes along each axis
_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Phantom:
    """A synthetic scan.

    Attributes:
        voxels_hu: int16 (z, y, x), HU.
        label_map: uint8 (z, y, x), FLARE's labels.
        geometry: axes along the patient's (LPS).
    """

    voxels_hu: npt.NDArray[np.int16]
    label_map: LabelArray
    geometry: Geometry

    @property
    def volume(self) -> Volume:
        """The scan as the app has it after reading."""
        return Volume(voxels=self.voxels_hu, geometry=self.geometry)


DEFAULT_SHAPE_ZYX: Shape = (96, 128, 128)
DEFAULT_SPACING_ZYX_MM: Vector = (3.0, 3.0, 3.0)


def make_phantom(
    seed: int,
    shape_zyx: Shape = DEFAULT_SHAPE_ZYX,
    spacing_zyx_mm: Vector = DEFAULT_SPACING_ZYX_MM,
    organs: int = len(ORGANS),
    contrast_phase: Phase = "portal",
    noise_hu: float = 12.0,
    field_of_view: tuple[float, float] = (0.0, 1.0),
) -> Phantom:
    """The phantom of a seed; the same arguments give the same voxels.

    Phase, noise, organs and field of view do not change the patient, and a cut phantom is the uncut one without some
    slices: 96 slices with a field of view of (0.25, 1.0) become 72, the lowest 24 are gone.

    Args:
        seed: the patient.
        shape_zyx: voxels of the uncut scan.
        spacing_zyx_mm: between them; (96, 128, 128) voxels of 3 mm hold the whole abdomen.
        organs: only the first so many are there and labelled.
        contrast_phase: decides how dense organs and vessels are.
        noise_hu: standard deviation of the noise; 0 for none.
        field_of_view: part of the slices that is kept, from the feet.
    """
    if not 0 <= organs <= len(ORGANS):
        raise ValueError(f"organs is {organs}; expected 0 to {len(ORGANS)}")
    if not 0 <= field_of_view[0] < field_of_view[1] <= 1:
        raise ValueError(f"field_of_view is {field_of_view}; expected 0 <= low < high <= 1")
    patient, scanner = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    phase = get_args(Phase).index(contrast_phase)
    canvas = Canvas(*_bent_places(patient, shape_zyx, spacing_zyx_mm))
    paint_body(canvas, patient, phase)
    variants = {organ.name: (label, organ, vary(organ.parts, patient)) for label, organ in enumerate(ORGANS, start=1)}
    for label, organ, variant in (variants[name] for name in _PAINTING_ORDER):
        if label <= organs:
            paint_organ(canvas, variant, organ.hu[phase], label)
    if noise_hu > 0:
        canvas.hu += reconstruction_noise(scanner, shape_zyx, noise_hu)
    first = round(field_of_view[0] * shape_zyx[0])
    return _phantom(canvas, spacing_zyx_mm, first, max(first + 1, round(field_of_view[1] * shape_zyx[0])))


def write_image(path: Path, phantom: Phantom) -> None:
    """Writes the scan as int16 NIfTI, all at once or not at all; equal phantoms are equal files."""
    write_ct(path, phantom.voxels_hu, phantom.geometry)


def write_phantoms(
    out: Path,
    count: int,
    seed: int,
    phase: Phase | None,
    labels: bool,
    shape_zyx: Shape = DEFAULT_SHAPE_ZYX,
    spacing_zyx_mm: Vector = DEFAULT_SPACING_ZYX_MM,
) -> Iterator[Path]:
    """Writes phantom i of seed ``seed + i`` after phantom; yields each image.

    Args:
        out: gets ``images/phantom_000_0000.nii.gz`` and ``labels/phantom_000.nii.gz``.
        count: how many.
        seed: of the first.
        phase: of all; None lets native, arterial and portal take turns.
        labels: whether to write label maps too.
        shape_zyx, spacing_zyx_mm: grid of all.

    Raises:
        FolderError: the folder cannot be written.
    """
    prepare_output_folder(out / "images")
    if labels:
        prepare_output_folder(out / "labels")
    phases = get_args(Phase)
    for index in range(count):
        phantom = make_phantom(
            seed + index, shape_zyx, spacing_zyx_mm, contrast_phase=phase or phases[index % len(phases)]
        )
        if labels:
            write_label_map(out / "labels" / f"phantom_{index:03d}.nii.gz", phantom.label_map, phantom.volume)
        image = out / "images" / f"phantom_{index:03d}_0000.nii.gz"
        write_image(image, phantom)
        yield image


def main(argv: list[str] | None = None) -> int:
    """Writes phantoms; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.phantom", description="Writes synthetic abdominal CT scans.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="phantom i has seed S + i (default: 0)")
    parser.add_argument("--phase", choices=get_args(Phase), help="of all (default: they take turns)")
    parser.add_argument("--labels", action="store_true", help="write label maps too")
    parser.add_argument("--shape", type=int, nargs=3, default=DEFAULT_SHAPE_ZYX, metavar="N", help="voxels (z y x)")
    parser.add_argument("--spacing", type=float, nargs=3, default=DEFAULT_SPACING_ZYX_MM, metavar="MM", help="(z y x)")
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: _run(arguments), "interrupted; files of this run are whole or missing")


def _run(arguments: argparse.Namespace) -> int:
    _check_usage(arguments)
    shape, spacing = tuple(arguments.shape), tuple(arguments.spacing)
    given = (arguments.out, arguments.count, arguments.seed, arguments.phase, arguments.labels)
    for path in write_phantoms(*given, shape, spacing):
        print(path)
    return EXIT_OK


def _check_usage(arguments: argparse.Namespace) -> None:
    if arguments.count < 1 or arguments.seed < 0:
        raise UsageError(f"--count {arguments.count} --seed {arguments.seed}: expected 1 or more, and 0 or more")
    if min(arguments.shape) < 1 or not all(0 < length < np.inf for length in arguments.spacing):
        raise UsageError(
            f"--shape {tuple(arguments.shape)} --spacing {tuple(arguments.spacing)}: expected voxels and mm above 0"
        )


def _bent_places(patient: np.random.Generator, shape_zyx: Shape, spacing_zyx_mm: Vector) -> tuple[Float32Array, Vector]:
    """(float32 (3, z, y, x): where in the anatomy each voxel lies, mm; the spacing)."""
    nodes = patient.normal(0, _BEND_MM, (3, _BEND_NODES, _BEND_NODES, _BEND_NODES))
    stature = np.exp(patient.normal(0, 0.05, 3))
    places = np.stack([resample(node, shape_zyx, (3, 3, 3)) for node in nodes])
    for axis, (length, spacing) in enumerate(zip(shape_zyx, spacing_zyx_mm, strict=True)):
        line = (np.arange(length) - (length - 1) / 2) * spacing / stature[axis]
        places[axis] += np.moveaxis(line.astype(np.float32)[:, None, None], 0, axis)
    return places, spacing_zyx_mm


def reconstruction_noise(scanner: np.random.Generator, shape_zyx: Shape, noise_hu: float) -> Float32Array:
    """float32 (z, y, x), HU: noise of that standard deviation, the same noise for the same ``scanner``.

    Without its lowest and highest frequencies in plane, as filtered back projection leaves it.
    """
    white = scanner.standard_normal(shape_zyx, dtype=np.float32)
    noise: Float32Array = ndimage.gaussian_filter(white, (0.4, 0.7, 0.7))
    noise -= 0.7 * ndimage.gaussian_filter(white, (0.4, 2.0, 2.0))
    noise *= np.float32(noise_hu / noise.std())
    return noise


def _phantom(canvas: Canvas, spacing_zyx_mm: Vector, first: int, stop: int) -> Phantom:
    hu = np.rint(np.clip(canvas.hu[first:stop], -1024, 3071)).astype(np.int16)
    label_map = np.ascontiguousarray(canvas.label_map[first:stop])
    z, y, x = (-(n - 1) / 2 * mm for n, mm in zip(canvas.hu.shape, spacing_zyx_mm, strict=True))
    depth, height, width = hu.shape
    origin = (z + first * spacing_zyx_mm[0], y, x)
    return Phantom(hu, label_map, Geometry((depth, height, width), spacing_zyx_mm, _IDENTITY, origin))


if __name__ == "__main__":
    sys.exit(main())
