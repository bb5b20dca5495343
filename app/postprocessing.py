"""Connected components per organ: keep the largest, drop the small."""

import numpy as np
from scipy import ndimage

from app.plan import PostprocessingPlan
from app.volume import LabelArray


def postprocess(
    label_map: LabelArray, labels: tuple[str, ...], plan: PostprocessingPlan, voxel_volume_ml: float
) -> LabelArray:
    """The label map (z, y, x) without the components that the plan drops; changed in place.

    Components touch by their faces (6-connectivity), as in nnU-Net. Dropped voxels become background.
    """
    touched = {*plan.largest_component, *plan.minimum_volume_ml}
    if not touched:
        return label_map
    boxes = ndimage.find_objects(label_map, max_label=len(labels))
    for label, (organ, box) in enumerate(zip(labels, boxes, strict=True), start=1):
        if box is None or organ not in touched:
            continue
        region = label_map[box]
        components, count = ndimage.label(region == label)
        voxels = np.bincount(components.ravel(), minlength=count + 1)
        voxels[0] = 0
        keep = voxels * voxel_volume_ml >= plan.minimum_volume_ml.get(organ, 0.0)
        if organ in plan.largest_component:
            keep &= np.arange(count + 1) == np.argmax(voxels)
        keep[0] = True
        region[~keep[components]] = 0
    return label_map


def organ_volumes_ml(label_map: LabelArray, labels: tuple[str, ...], voxel_volume_ml: float) -> dict[str, float]:
    """Volume of each organ in millilitres, 0 for one that was not found.

    Counted slice by slice: ``bincount`` makes an 8-byte copy of what it is given.
    """
    counts = np.zeros(len(labels) + 1, dtype=np.int64)
    for plane in label_map:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    return {organ: float(counts[label]) * voxel_volume_ml for label, organ in enumerate(labels, start=1)}
