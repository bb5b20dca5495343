"""Which organs are one piece: those whose largest component alone agrees better with references, as nnU-Net decides.

nnU-Net v1 (``postprocessing/connected_components.py``) compares the mean DSC of a class over its validation cases
with and without its other components, class by class. Here no case may lose, either: cases are few, and what is thrown
away of an organ that a field of view or thick slices cut in two is most of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.bundle import load_bundle
from app.errors import CaseError, UsageError
from app.plan import PostprocessingPlan
from app.postprocessing import postprocess
from tools.convert.bundles import change_plan
from tools.evaluate.cases import CasePair
from tools.evaluate.geometry import first_unequal_field
from tools.evaluate.label_maps import read_label_map
from tools.evaluate.metrics import dice


@dataclass(frozen=True)
class Choice:
    """One organ.

    Attributes:
        cases: whose reference shows it.
        before, after: mean DSC over these cases, of all components and of the large ones.
        losers: cases whose DSC is lower with the large ones alone.
    """

    organ: str
    cases: int
    before: float
    after: float
    losers: int

    @property
    def taken(self) -> bool:
        """Whether only the large components are to stay; equal means no."""
        return self.after > self.before and not self.losers


def compare_components(pairs: Sequence[CasePair], labels: tuple[str, ...], smallest_share: float) -> list[Choice]:
    """The organs that a reference shows, in the order of the labels; ``smallest_share`` as in the plan.

    Raises:
        CaseError: a label map is missing or unusable, or the two of a case lie on different grids.
    """
    scores: dict[str, list[tuple[float, float]]] = {organ: [] for organ in labels}
    everything = PostprocessingPlan(largest_component=labels, smallest_share=smallest_share)
    for pair in pairs:
        if pair.refusal:
            raise CaseError(pair.refusal)
        reference, found = (read_label_map(path, len(labels)) for path in (pair.reference, pair.prediction))
        if field := first_unequal_field(found.geometry, reference.geometry):
            raise CaseError(f"{pair.prediction}: {field} differs from that of {pair.reference}; expected the same grid")
        largest = postprocess(found.labels.copy(), labels, everything, voxel_volume_ml=1.0)
        for label, organ in enumerate(labels, start=1):
            shown = reference.labels == label
            if shown.any():
                before, after = (dice(kept == label, shown) or 0.0 for kept in (found.labels, largest))
                scores[organ].append((before, after))
    return [
        Choice(
            organ,
            cases=len(found),
            before=float(np.mean([before for before, _ in found])),
            after=float(np.mean([after for _, after in found])),
            losers=sum(after < before for before, after in found),
        )
        for organ, found in scores.items()
        if found
    ]


def set_largest_components(folder: Path, pairs: Sequence[CasePair], smallest_share: float) -> list[Choice]:
    """Sets ``postprocessing`` of a bundle to the organs for which it helps these cases; returns the comparison.

    Raises:
        CaseError: see ``compare_components``.
        UsageError: no reference shows an organ of the bundle.
        BundleError: the bundle is altered.
    """
    plan = load_bundle(folder).plan
    choices = compare_components(pairs, plan.labels, smallest_share)
    if not choices:
        raise UsageError("the references show no organ; expected the label maps of held-out patients")
    taken = tuple(choice.organ for choice in choices if choice.taken)
    chosen = replace(plan.postprocessing, largest_component=taken, smallest_share=smallest_share)
    change_plan(folder, postprocessing=chosen)
    return choices
