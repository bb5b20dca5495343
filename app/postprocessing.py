"""Connected components per organ: keep the largest, drop the small."""

import numpy as np

from app.components import find_components
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
    wanted = np.zeros(256, dtype=np.bool_)
    wanted[1 : len(labels) + 1] = [organ in touched for organ in labels]
    components = find_components(label_map, wanted)
    keep = np.ones(len(components.label), dtype=np.bool_)
    for label, organ in enumerate(labels, start=1):
        own = np.flatnonzero(components.label == label)
        if not own.size:
            continue
        keep[own] = components.voxels[own] * voxel_volume_ml >= plan.minimum_volume_ml.get(organ, 0.0)
        if organ in plan.largest_component:
            largest = own[np.argmax(components.voxels[own])]  # of equal ones the first
            small = components.voxels[own] < plan.smallest_share * components.voxels[largest]
            keep[own[small if plan.smallest_share < 1 else own != largest]] = False
    components.erase(label_map, ~keep)
    return label_map


def organ_volumes_ml(label_map: LabelArray, labels: tuple[str, ...], voxel_volume_ml: float) -> dict[str, float]:
    """Volume of each organ in millilitres, 0 for one that was not found.

    Counted slice by slice and without background: ``bincount`` makes an 8-byte copy of what it is given.
    """
    counts = np.zeros(len(labels) + 1, dtype=np.int64)
    for plane in label_map:
        counts += np.bincount(plane[plane != 0], minlength=len(counts))
    return {organ: float(counts[label]) * voxel_volume_ml for label, organ in enumerate(labels, start=1)}
