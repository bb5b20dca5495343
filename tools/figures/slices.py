"""A slice as a colour image: grey in the abdominal window, organs filled and outlined."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from app.resampling import interpolation_matrix, resample
from app.volume import Float32Array, LabelArray
from tools.figures.organ_colours import ORGAN_COLOURS, organ_colour_rgb

RgbArray = npt.NDArray[np.uint8]

WINDOW_LEVEL_HU = 40.0
WINDOW_WIDTH_HU = 400.0

_FILL_OPACITY = 0.5
_FILL_DIMMING = 0.85  # of grey under the fill: enhanced kidneys would wash the colour out
_OUTLINE_PX = 1.5
_TAG_RADIUS_PX = 11.0  # an organ gets its number where a circle of this radius fits into it
_SUPERSAMPLING = 2  # outlines are drawn this much larger and averaged: smooth edges


def render_slice(hu: Float32Array, label_map: LabelArray, shape_px: tuple[int, int]) -> RgbArray:
    """uint8 (rows, columns, 3): the slice in the abdominal window, organs filled and outlined.

    The grey image is interpolated linearly to the size of the picture, the organs are the arg max of their
    linearly interpolated masks, so that outlines run smoothly through the voxels that they part.

    Args:
        hu: (rows, columns).
        label_map: (rows, columns) of the same grid.
        shape_px: size of the picture.
    """
    grey = resample(hu[None], (1, *shape_px), (1, 1, 1))[0]
    grey -= np.float32(WINDOW_LEVEL_HU - WINDOW_WIDTH_HU / 2)
    grey *= np.float32(255 / WINDOW_WIDTH_HU)
    np.clip(grey, 0, 255, out=grey)
    fine = _enlarged_labels(label_map, (shape_px[0] * _SUPERSAMPLING, shape_px[1] * _SUPERSAMPLING))
    colours = np.array([(0, 0, 0), *(organ_colour_rgb(label) for label in range(1, 256))], dtype=np.float32)
    opacity = np.where(fine > 0, np.where(_outlines(fine), 1.0, _FILL_OPACITY), 0.0).astype(np.float32)[..., None]
    translucent = _averaged((1 - opacity) * np.where(fine > 0, np.float32(_FILL_DIMMING), np.float32(1))[..., None])
    image: RgbArray = np.rint(grey[..., None] * translucent + _averaged(colours[fine] * opacity)).astype(np.uint8)
    return image


def organ_tags(label_map: LabelArray, shape_px: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
    """(label, column, row) of the centre of the largest circle in each organ, if it is large enough for a number.

    Args:
        label_map: (rows, columns).
        shape_px: size of the picture that it is drawn in.
    """
    scale = [pixels / voxels for pixels, voxels in zip(shape_px, label_map.shape, strict=True)]
    tags = []
    for label in np.unique(label_map[label_map > 0]):
        inside = np.pad(label_map == label, 1)
        radius = ndimage.distance_transform_edt(inside, sampling=scale)[1:-1, 1:-1]
        row, column = np.unravel_index(int(np.argmax(radius)), radius.shape)
        if radius[row, column] >= _TAG_RADIUS_PX:
            tags.append((int(label), round((column + 0.5) * scale[1]), round((row + 0.5) * scale[0])))
    return tuple(tags)


def palette_of_slices() -> list[int]:
    """256 RGB triples, flat: 15 tints of every organ's fill and outline, the rest greys."""
    tones = np.linspace(0, 255 * _FILL_DIMMING * (1 - _FILL_OPACITY), 14)[:, None]
    colours = np.array([organ_colour_rgb(label + 1) for label in range(len(ORGAN_COLOURS))], dtype=np.float64)
    fills = [tones + colour * _FILL_OPACITY for colour in colours]
    greys = np.repeat(np.linspace(0, 255, 256 - 15 * len(colours))[:, None], 3, axis=1)
    flat: list[int] = np.rint(np.concatenate([greys, colours, *fills])).astype(int).ravel().tolist()
    return flat


def _enlarged_labels(label_map: LabelArray, shape_px: tuple[int, int]) -> LabelArray:
    """The label of the largest linearly interpolated mask at each pixel; masks are enlarged box by box."""
    rows, columns = (interpolation_matrix(n, n_px, 1) for n, n_px in zip(label_map.shape, shape_px, strict=True))
    winner = np.zeros(shape_px, dtype=np.uint8)
    best, total = np.zeros(shape_px, dtype=np.float32), np.zeros(shape_px, dtype=np.float32)
    for label, box in enumerate(ndimage.find_objects(label_map), start=1):
        if box is None:
            continue
        reached = (_reached_by(rows[:, box[0]]), _reached_by(columns[:, box[1]]))
        mask = (label_map[box] == label).astype(np.float32)
        share = rows[reached[0], box[0]] @ mask @ columns[reached[1], box[1]].T
        better = share > best[reached]
        winner[reached][better] = label
        best[reached][better] = share[better]
        total[reached] += share
    winner[1 - total > best] = 0  # the mask of background is what the others leave
    return winner


def _reached_by(weights: Float32Array) -> slice:
    reached = np.flatnonzero(weights.any(axis=1))
    return slice(reached[0], reached[-1] + 1) if reached.size else slice(0, 0)


def _outlines(fine: LabelArray) -> npt.NDArray[np.bool_]:
    """Pixels within the width of an outline from another label."""
    changes = np.zeros(fine.shape, dtype=bool)
    for axis in range(2):
        low, high = np.moveaxis(fine, axis, 0)[:-1], np.moveaxis(fine, axis, 0)[1:]
        edges = np.moveaxis(changes, axis, 0)
        edges[:-1] |= low != high
        edges[1:] |= low != high
    if not changes.any():
        return changes
    near: npt.NDArray[np.bool_] = ndimage.distance_transform_edt(~changes) < _OUTLINE_PX * _SUPERSAMPLING
    return near


def _averaged(fine: Float32Array) -> Float32Array:
    """Means over cells of the supersampled image (rows, columns, channels)."""
    parts = [fine[row::_SUPERSAMPLING, column::_SUPERSAMPLING] for row, column in np.ndindex((_SUPERSAMPLING,) * 2)]
    mean: Float32Array = np.add.reduce(parts) / np.float32(len(parts))
    return mean
