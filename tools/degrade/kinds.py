"""The ways to make a scan worse, by name.

What a network makes of such scans tells how far its results can be trusted elsewhere (``tools.robustness``), and
spreads its scores far enough to see whether a sign of quality follows them (``tools.quality``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from tools.ct import Ct
from tools.degrade.effects import cut_slab, cut_to_chest, reduce_dose, shift_hu, thicken_slices, turn

ORIGINAL, CHEST = "original", "chest"


@dataclass(frozen=True)
class Kind:
    """A way to make a scan worse.

    Attributes:
        text: what is done.
        apply: does it; NotApplicable where it cannot be done. The generator is for noise.
    """

    text: str
    apply: Callable[[Ct, np.random.Generator], Ct]


KINDS = {
    ORIGINAL: Kind("the scan as it is", lambda ct, _: ct),
    "slices-5mm": Kind("slices of 5 mm, each the mean over its thickness", lambda ct, _: thicken_slices(ct, 5.0)),
    "slices-7.5mm": Kind("slices of 7.5 mm", lambda ct, _: thicken_slices(ct, 7.5)),
    "quarter-dose": Kind(
        "twice the scan's own noise, as at a quarter of the dose", lambda ct, random: reduce_dose(ct, 0.25, random)
    ),
    "hu+40": Kind("every value 40 HU higher", lambda ct, _: shift_hu(ct, 40.0)),
    "hu-40": Kind("every value 40 HU lower", lambda ct, _: shift_hu(ct, -40.0)),
    "slab-45mm": Kind("45 mm of the scan, those that show the most of the organs", lambda ct, _: cut_slab(ct, 45.0)),
    "turned-15": Kind("turned by 15 degrees about the long axis", lambda ct, _: turn(ct, 15.0)),
    CHEST: Kind("only what lies 10 mm and more above the abdominal organs", lambda ct, _: cut_to_chest(ct)),
}


def degrade(ct: Ct, kind: str, seed: int = 0) -> Ct:
    """The scan made worse in the way of a name in ``KINDS``; the same seed gives the same voxels.

    Raises:
        NotApplicable: this scan cannot be.
    """
    return KINDS[kind].apply(ct, np.random.default_rng([seed, crc32(kind.encode())]))
