"""What makes a scan worse, as functions of the scan; the label map is taken along.

All work along the patient's axes. Label maps are never interpolated: a new voxel has the label of the old voxel at its
centre.
"""

from dataclasses import replace
from math import ceil, cos, floor, radians, sin

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.errors import CaseError
from app.orientation import as_vector
from app.volume import AIR_HU, Array, Float32Array, Geometry, LabelArray, Shape
from tools.ct import Ct, HuArray, as_hu
from tools.evaluate.flare import CORRECTED
from tools.phantom import reconstruction_noise

# Aorta, vena cava and esophagus run through the chest; the others end below the diaphragm.
ABDOMINAL_LABELS = tuple(organ.label for organ in CORRECTED.organs if not organ.reference_slices_only)

_CHEST_MARGIN_MM = 10.0  # above the highest label, which another network may have set too low
_SMALLEST_CHEST_MM = 30.0
_SMALLEST_PART_ML = 5.0
_SOFT_TISSUE_HU = (0.0, 200.0)
_NOISE_PLANES = 40
_NOISE_WINDOW_MM = 6.0


class NotApplicable(CaseError):
    """The scan cannot be degraded so: its slices are thick already, say."""


def thicken_slices(ct: Ct, thickness_mm: float) -> Ct:
    """Slices that touch, each the mean of what lies in its thickness: of 2 mm, 5 mm get 2/5, 2/5 and half of 2/5.

    What is left at the head's end is dropped.
    """
    spacing = ct.geometry.spacing_zyx_mm[0]
    depth = ct.geometry.shape_zyx[0]
    if not spacing < thickness_mm * 0.95:
        raise NotApplicable(f"slices of {spacing:.4g} mm; expected thinner ones to make {thickness_mm:g} mm of")
    matrix = slice_means(depth, spacing, thickness_mm)
    if not len(matrix):
        raise NotApplicable(f"{depth * spacing:.4g} mm high; expected {thickness_mm:g} mm at least")
    hu = np.empty((len(matrix), *ct.voxels_hu.shape[1:]), dtype=np.float32)
    for plane, weights in zip(hu, matrix, strict=True):
        (used,) = np.nonzero(weights)
        plane[...] = np.tensordot(weights[used], ct.voxels_hu[used].astype(np.float32), 1)
    centres = ((np.arange(len(matrix)) + 0.5) * thickness_mm / spacing).astype(int)
    geometry = _moved(ct.geometry, (thickness_mm / spacing - 1) / 2)
    geometry = replace(geometry, spacing_zyx_mm=(thickness_mm, *geometry.spacing_zyx_mm[1:]))
    return _with(ct, as_hu(hu), geometry, None if ct.label_map is None else ct.label_map[centres])


def slice_means(depth: int, spacing_mm: float, thickness_mm: float) -> Float32Array:
    """float32 (slices, depth): which share of each new slice an old one fills.

    Five of 2 mm to 5 mm: [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]].
    """
    count = floor(depth * spacing_mm / thickness_mm + 1e-6)
    begin = np.arange(count)[:, None] * thickness_mm
    edges = np.arange(depth + 1) * spacing_mm
    overlap = np.minimum(begin + thickness_mm, edges[1:]) - np.maximum(begin, edges[:-1])
    matrix: Float32Array = (np.clip(overlap, 0, None) / thickness_mm).astype(np.float32)
    return matrix


def reduce_dose(ct: Ct, dose: float, random: np.random.Generator) -> Ct:
    """The scan as at this part of its dose: noise grows with 1 / sqrt(dose), so 1/4 doubles it.

    The noise that is added, sqrt(1 / dose - 1) times the scan's own, is the same everywhere and grained as filtered
    back projection leaves it. A real scan at low dose is noisier in its middle and has streaks.
    """
    own = noise_hu(ct)
    added = reconstruction_noise(random, ct.geometry.shape_zyx, own * (1 / dose - 1) ** 0.5)
    added += ct.voxels_hu
    return _with(ct, as_hu(added), ct.geometry, ct.label_map)


def noise_hu(ct: Ct) -> float:
    """The scan's own noise: the most frequent standard deviation within small squares of soft tissue, in HU.

    After the global noise level of Christianson et al. (AJR 2015;205:W93-W99); squares of about 6 mm here. Squares of
    one value, as padding has them, show no noise, and those that overlap them show edges: they do not count.

    Raises:
        NotApplicable: no square is left.
    """
    _, y_mm, x_mm = ct.geometry.spacing_zyx_mm
    sides = [max(3, round(_NOISE_WINDOW_MM / length) // 2 * 2 + 1) for length in (y_mm, x_mm)]
    samples = sides[0] * sides[1]
    found = []
    for whole_hu in ct.voxels_hu[:: max(1, len(ct.voxels_hu) // _NOISE_PLANES)]:
        plane = whole_hu.astype(np.float64)
        mean = ndimage.uniform_filter(plane, sides)
        variance = ndimage.uniform_filter(plane * plane, sides) - mean * mean
        inside = (mean > _SOFT_TISSUE_HU[0]) & (mean < _SOFT_TISSUE_HU[1]) & ~_overlaps_one_value(whole_hu, sides)
        found.append(np.sqrt(np.maximum(variance[inside], 0) * samples / (samples - 1)))
    deviations = np.concatenate(found)
    if not deviations.size:
        raise NotApplicable("no soft tissue with noise in it; expected a patient")
    counts = np.bincount(np.round(deviations * 2).astype(int))  # in steps of half an HU
    return float(np.argmax(ndimage.gaussian_filter1d(counts.astype(float), 2))) / 2


def _overlaps_one_value(plane: npt.NDArray[np.int16], sides: list[int]) -> npt.NDArray[np.bool_]:
    """bool (y, x): whether the square around a voxel overlaps one, or is one, whose voxels are all equal."""
    equal = ndimage.maximum_filter(plane, sides) == ndimage.minimum_filter(plane, sides)
    found: npt.NDArray[np.bool_] = ndimage.maximum_filter(equal, [2 * side - 1 for side in sides])
    return found


def shift_hu(ct: Ct, by_hu: float) -> Ct:
    """Every value moved by so much, as by a scanner that is out of calibration."""
    return _with(ct, as_hu(ct.voxels_hu + np.float32(by_hu)), ct.geometry, ct.label_map)


def cut_slab(ct: Ct, thickness_mm: float) -> Ct:
    """The slices of so much height that show the most of the organs; the middle ones if nothing is labelled."""
    depth = ct.geometry.shape_zyx[0]
    kept = round(thickness_mm / ct.geometry.spacing_zyx_mm[0])
    if not 0 < kept < depth:
        raise NotApplicable(f"{depth} slices; expected more than {kept}, which are {thickness_mm:g} mm")
    start = (depth - kept) // 2
    if ct.label_map is not None and ct.label_map.any():
        shown = np.cumsum([0, *(np.count_nonzero(plane) for plane in ct.label_map)])
        start = int(np.argmax(shown[kept:] - shown[:-kept]))
    return _cut(ct, start, start + kept)


def cut_to_chest(ct: Ct) -> Ct:
    """The slices from 10 mm above the highest organ of the abdomen up: a scan in which a network should find none.

    Labels of the abdomen that form parts of less than 5 ml are taken for errors: they do not count, and what of them
    lies in the chest goes. (The label map of ct_008 has 2 ml of left kidney, some of it in the topmost slice.)
    """
    if ct.label_map is None:
        raise NotApplicable("no label map, which tells where the abdomen begins")
    abdominal = np.isin(ct.label_map, ABDOMINAL_LABELS)
    parts, count = ndimage.label(abdominal)
    large = np.bincount(parts.ravel(), minlength=count + 1) * ct.geometry.voxel_volume_ml >= _SMALLEST_PART_ML
    large[0] = False
    shows = large[parts].any(axis=(1, 2))
    if not shows.any():
        raise NotApplicable("no organ of the abdomen is labelled; expected one, to tell where the chest begins")
    spacing = ct.geometry.spacing_zyx_mm[0]
    start = int(np.flatnonzero(shows)[-1]) + 1 + ceil(_CHEST_MARGIN_MM / spacing)
    left_mm = max(0, len(shows) - start) * spacing
    if left_mm < _SMALLEST_CHEST_MM:
        raise NotApplicable(f"{left_mm:.4g} mm of chest above the organs; expected {_SMALLEST_CHEST_MM:g} mm at least")
    return _cut(replace(ct, label_map=np.where(abdominal, np.uint8(0), ct.label_map)), start, len(shows))


def turn(ct: Ct, degrees: float) -> Ct:
    """The patient turned about the long axis, the left side up, on a grid that holds all of the turned scan.

    The header does not know: to a network the patient lies crooked. Values are interpolated linearly; what comes in
    from outside is air.
    """
    spacing = np.array(ct.geometry.spacing_zyx_mm[1:])
    shape = np.array(ct.geometry.shape_zyx[1:])
    c, s = cos(radians(degrees)), sin(radians(degrees))
    height, width = shape * spacing
    turned = np.ceil(np.array([abs(c) * height + abs(s) * width, abs(s) * height + abs(c) * width]) / spacing - 1e-6)
    back = np.array([[c, s], [-s, c]]) * spacing / spacing[:, None]  # (y, x) voxels of the result to those of the scan
    offset = (shape - 1) / 2 - back @ ((turned - 1) / 2)

    def resample(planes: Array, order: int, outside: float) -> Array:
        size = (int(turned[0]), int(turned[1]))
        result = [
            ndimage.affine_transform(plane, back, offset, size, order=order, cval=outside, prefilter=False)
            for plane in planes
        ]
        return np.stack(result)

    hu = np.stack([as_hu(resample(plane[None].astype(np.float32), 1, AIR_HU)[0]) for plane in ct.voxels_hu])
    label_map = None if ct.label_map is None else resample(ct.label_map, 0, 0)
    shift = (shape - turned) / 2
    geometry = _moved(ct.geometry, 0, float(shift[0]), float(shift[1]))
    return Ct(hu, replace(geometry, shape_zyx=_shape(hu)), label_map)


def _cut(ct: Ct, start: int, stop: int) -> Ct:
    """Slices ``start`` to ``stop``, at their old place in the patient."""
    label_map = None if ct.label_map is None else ct.label_map[start:stop]
    return _with(ct, ct.voxels_hu[start:stop], _moved(ct.geometry, start), label_map)


def _with(ct: Ct, voxels_hu: HuArray, geometry: Geometry, label_map: LabelArray | None) -> Ct:
    """The scan with these voxels; the geometry gets their shape."""
    geometry = replace(geometry, shape_zyx=_shape(voxels_hu))
    return replace(ct, voxels_hu=voxels_hu, geometry=geometry, label_map=label_map)


def _moved(geometry: Geometry, z: float, y: float = 0.0, x: float = 0.0) -> Geometry:
    """The grid whose first voxel lies where voxel (z, y, x) of this one would."""
    edges = np.asarray(geometry.direction) * np.asarray(geometry.spacing_zyx_mm)
    return replace(geometry, origin_zyx_mm=as_vector(np.asarray(geometry.origin_zyx_mm) + edges @ [z, y, x]))


def _shape(array: Array) -> Shape:
    z, y, x = array.shape
    return (z, y, x)
