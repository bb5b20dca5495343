"""How far a bundle's two networks agree on a scan, organ by organ: a sign of quality that needs no reference.

Cross-Pseudo Supervision trains two siblings and throws one away. Where both have learnt an organ they draw it alike;
where they differ, at least one is wrong. Two that err alike are not noticed. ``python -m tools.quality`` measures what
the sign is worth.
"""

import numpy as np

from app.volume import LabelArray


def organ_agreement(label_map: LabelArray, twin: LabelArray, labels: tuple[str, ...]) -> dict[str, float | None]:
    """DSC of each organ between two label maps (z, y, x): 3 and 5 voxels with 2 in common give 0.5.

    None for an organ that neither has: nothing was found, which says nothing of what is there.
    """
    both, total = np.zeros((2, len(labels) + 1), dtype=np.int64)
    for first, second in zip(label_map, twin, strict=True):
        both += np.bincount(first[first == second], minlength=len(both))
        for plane in (first, second):
            total += np.bincount(plane.ravel(), minlength=len(total))
    return {
        organ: 2 * int(both[label]) / int(total[label]) if total[label] else None
        for label, organ in enumerate(labels, start=1)
    }


def agreement_warning(agreement: dict[str, float | None], warn_below: float) -> str | None:
    """What a user should know of organs on which the networks agree less than that; None if there are none."""
    low = {organ: dsc for organ, dsc in agreement.items() if dsc is not None and dsc < warn_below}
    if not low:
        return None
    listed = ", ".join(f"{organ} ({dsc:.2f})" for organ, dsc in sorted(low.items(), key=lambda item: item[1]))
    return f"the two networks differ on {listed}: a DSC below {warn_below:g}; look at these organs before using them"
