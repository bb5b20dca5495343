"""Which organs are scored, by which tolerances and rules: those of each year of FLARE. ``flare.py`` explains them."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Organ:
    """One organ of FLARE.

    Attributes:
        label: its number in label maps.
        name: as in a bundle's plan.
        column: as in the organisers' CSV.
        tolerance_mm: of the NSD.
        reference_slices_only: see rule 3 above.
        in_mean: whether the mean over organs has it.
    """

    label: int
    name: str
    column: str
    tolerance_mm: float
    reference_slices_only: bool = False
    in_mean: bool = True


FLARE_ORGANS = (
    Organ(1, "liver", "Liver", 5),
    Organ(2, "right kidney", "RK", 3),
    Organ(3, "spleen", "Spleen", 3),
    Organ(4, "pancreas", "Pancreas", 5),
    Organ(5, "aorta", "Aorta", 2, reference_slices_only=True),
    Organ(6, "inferior vena cava", "IVC", 2, reference_slices_only=True),
    Organ(7, "right adrenal gland", "RAG", 2),
    Organ(8, "left adrenal gland", "LAG", 2),
    Organ(9, "gallbladder", "Gallbladder", 2),
    Organ(10, "esophagus", "Esophagus", 3, reference_slices_only=True),
    Organ(11, "stomach", "Stomach", 5),
    Organ(12, "duodenum", "Duodenum", 7),
    Organ(13, "left kidney", "LK", 3),
)
TUMOUR = Organ(14, "tumor", "Tumor", 2, in_mean=False)


@dataclass(frozen=True)
class Rules:
    """One definition of the scores.

    Attributes:
        both_empty: DSC and NSD of an organ in neither label map; None: no score.
        includes_top_slice: whether the reference's last slice counts where only its slices do.
        no_nsd_below_dsc: NSD is 0 below this DSC; 0 switches the rule off.
        tolerance_slack_mm: added to every tolerance.
        digits: decimals that scores are rounded to; None: not rounded.
        organs: what is scored.
        missed_before_cut: whether an organ that the prediction lacks is 0 before its slices are looked at.
    """

    name: Literal["official", "corrected"]
    both_empty: float | None
    includes_top_slice: bool
    no_nsd_below_dsc: float
    tolerance_slack_mm: float
    digits: int | None
    organs: tuple[Organ, ...] = FLARE_ORGANS
    missed_before_cut: bool = True

    @property
    def largest_label(self) -> int:
        """13 for FLARE's organs."""
        return max(organ.label for organ in self.organs)


OFFICIAL = Rules("official", 1.0, includes_top_slice=False, no_nsd_below_dsc=0.2, tolerance_slack_mm=0.0, digits=4)
CORRECTED = Rules(
    "corrected", None, includes_top_slice=True, no_nsd_below_dsc=0.0, tolerance_slack_mm=1e-4, digits=None
)


@dataclass(frozen=True)
class Preset:
    """A year of the challenge: both definitions over its organs."""

    name: str
    official: Rules
    corrected: Rules

    @property
    def both(self) -> tuple[Rules, Rules]:
        """``official`` first."""
        return self.official, self.corrected


_WITH_TUMOUR = (*FLARE_ORGANS, TUMOUR)
DEFAULT_PRESET = Preset("flare24", OFFICIAL, CORRECTED)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("flare22", replace(OFFICIAL, no_nsd_below_dsc=0.0, missed_before_cut=False), CORRECTED),
        Preset(
            "flare23",
            replace(OFFICIAL, no_nsd_below_dsc=0.1, organs=_WITH_TUMOUR),
            replace(CORRECTED, organs=_WITH_TUMOUR),
        ),
        DEFAULT_PRESET,
    )
}
"""By name; read off the organisers' scripts (FLARE22_DSC_NSD_Eval.py, FLARE23_..., T2andT3_FLARE24_...)."""
