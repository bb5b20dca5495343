"""Label maps to the network grid."""

import numpy as np
from scipy import ndimage

from app.resampling import interpolation_matrix
from app.volume import Float32Array, LabelArray, Shape

_TIE = np.float32(1e-5)  # weights closer than this are equal: rounding differs with the number of threads


def resample_label_map(label: LabelArray, shape_zyx: Shape, orders: Shape) -> LabelArray:
    """uint8 (z, y, x): each organ's mask interpolated like the image, then the arg max with background.

    nnU-Net's way (order 1, order 0 along a separate axis), and smoother than nearest neighbour, which at 5 mm
    slices on a grid of 2.5 mm doubles every slice. Only each organ's bounding box is interpolated; an organ that
    ties with background wins, as does the lower label of two organs.
    """
    result = np.zeros(shape_zyx, dtype=np.uint8)
    best = np.zeros(shape_zyx, dtype=np.float32)
    total = np.zeros(shape_zyx, dtype=np.float32)
    for organ, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        mask: Float32Array = (label[box] == organ).astype(np.float32)
        where = []
        for axis, (part, n_in, n_out) in enumerate(zip(box, label.shape, shape_zyx, strict=True)):
            weights = interpolation_matrix(n_in, n_out, orders[axis])[:, part]
            reached = np.flatnonzero(weights.any(axis=1))
            rows = slice(int(reached[0]), int(reached[-1]) + 1) if reached.size else slice(0, 0)
            mask = np.moveaxis(np.tensordot(weights[rows], mask, axes=(1, axis)), 0, axis)
            where.append(rows)
        region = (where[0], where[1], where[2])
        total[region] += mask
        better = mask > best[region] + _TIE
        best[region][better] = mask[better]
        result[region][better] = organ
    result[best < 1 - total - _TIE] = 0
    return result
