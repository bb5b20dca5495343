"""Two label maps of one scan: the share of voxels in common, and DSC by organ."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.agreement import organ_agreement
from app.errors import CaseError
from app.postprocessing import organ_volumes_ml
from tools.evaluate.geometry import first_unequal_field
from tools.evaluate.label_maps import read_label_map
from tools.parity.rows import FEWEST_ORGANS, SMALLEST_DSC, SMALLEST_VOLUME_ML, Row


@dataclass(frozen=True)
class Comparison:
    """How a label map of ours differs from the peer's.

    Attributes:
        voxels: of the scan.
        different: voxels with another label.
        dsc: by organ; None for an organ that neither found.
        peer_ml: volume of each organ as the peer found it.
        our_ml: as we found it.
    """

    voxels: int
    different: int
    dsc: dict[str, float | None]
    peer_ml: dict[str, float]
    our_ml: dict[str, float]

    @property
    def agreement(self) -> float:
        """Share of voxels with the same label: 27 different ones of 90,000 give 0.9997."""
        return 1.0 - self.different / self.voxels

    @property
    def organs_found(self) -> int:
        """Organs of which the peer found more than 1 ml."""
        return sum(volume > SMALLEST_VOLUME_ML for volume in self.peer_ml.values())

    def worst_organ(self) -> tuple[str, float] | None:
        """Name and DSC of the worst organ of which either side found more than 1 ml."""
        large = [
            (name, score)
            for name, score in self.dsc.items()
            if score is not None and max(self.peer_ml[name], self.our_ml[name]) > SMALLEST_VOLUME_ML
        ]
        return min(large, key=lambda entry: entry[1]) if large else None


def compare_label_maps(peer: Path, ours: Path, organs: tuple[str, ...]) -> Comparison:
    """The comparison of two files.

    Raises:
        CaseError: one cannot be read, or they do not lie on one grid.
    """
    theirs, mine = read_label_map(peer, len(organs)), read_label_map(ours, len(organs))
    if field := first_unequal_field(mine.geometry, theirs.geometry):
        expected, found = getattr(theirs.geometry, field), getattr(mine.geometry, field)
        raise CaseError(f"{ours}: {field} {found}; the peer's label map has {expected}. They must lie on one grid")
    voxel_ml = theirs.geometry.voxel_volume_ml
    peer_ml, our_ml = (organ_volumes_ml(found.labels, organs, voxel_ml) for found in (theirs, mine))
    dsc = organ_agreement(mine.labels, theirs.labels, organs)
    different = int(np.count_nonzero(theirs.labels != mine.labels))
    return Comparison(theirs.labels.size, different, dsc, peer_ml, our_ml)


def side_with(judge: Path, peer: Path, ours: Path, organs: int) -> dict[str, int]:
    """Of the voxels in which both differ, how many a third label map gives as ours, as the peer's and as neither."""
    third, theirs, mine = (read_label_map(path, organs).labels for path in (judge, peer, ours))
    different = theirs != mine
    with_ours = int(np.count_nonzero(different & (third == mine)))
    with_peer = int(np.count_nonzero(different & (third == theirs)))
    return {"ours": with_ours, "peer": with_peer, "neither": int(np.count_nonzero(different)) - with_ours - with_peer}


def why_not_counted(row: Row, comparison: Comparison) -> str | None:
    """Why a row neither passes nor fails; None if it counts."""
    if row.seeded:
        return "seeded random network"
    if comparison.organs_found < FEWEST_ORGANS:
        return f"the peer finds {comparison.organs_found} organs over {SMALLEST_VOLUME_ML:g} ml"
    return None


def failures(row: Row, comparison: Comparison) -> list[str]:
    """The limits that a row breaks, in words."""
    broken = []
    if comparison.agreement < row.smallest_agreement:
        broken.append(f"agreement {comparison.agreement:.6f}, limit {row.smallest_agreement:g}")
    worst = comparison.worst_organ()
    if worst is not None and worst[1] < SMALLEST_DSC:
        broken.append(f"DSC of {worst[0]} {worst[1]:.4f}, limit {SMALLEST_DSC:g}")
    return broken
