"""One scan, made worse, segmented and scored: the app's own steps, in this process."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.backends import Backend, Precision, create_predictor
from app.bundle import Bundle
from app.errors import UsageError
from app.options import Options
from app.pipeline import segment
from app.plan import Plan
from app.postprocessing import organ_volumes_ml
from app.region import Locator
from app.sliding_window import Predictor
from app.volume import LabelArray
from tools.ct import Ct
from tools.degrade.effects import ABDOMINAL_LABELS, NotApplicable
from tools.degrade.kinds import CHEST, degrade
from tools.evaluate.flare import CORRECTED, score_case

ORGANS = tuple(organ.name for organ in CORRECTED.organs)
SMALLEST_SCORED_ML = 1.0  # an organ of which the reference shows less is a sliver at the edge of the scan

Row = dict[str, Any]


@dataclass(frozen=True)
class Networks:
    """What segments: a bundle's network, its twin if that is asked for, its locator if the plan needs one."""

    plan: Plan
    predictor: Predictor
    twin: Predictor | None = None
    locator: Locator | None = None

    @property
    def options(self) -> Options:
        """The bundle's own."""
        plan = self.plan
        return Options(plan.mode, plan.spacing.enforce, crop=plan.shortcuts.crop)


def load_networks(
    bundle: Bundle, uncertainty: bool, backend: Backend, precision: Precision, threads: int | None
) -> Networks:
    """The networks of a bundle, ready to run.

    Raises:
        UsageError: it segments other organs than FLARE's, or has no twin.
        AppError: a network cannot be loaded.
    """
    if bundle.plan.labels != ORGANS:
        raise UsageError(f"{bundle.folder}: labels {', '.join(bundle.plan.labels)}; expected FLARE22's 13 organs")
    if uncertainty and bundle.twin is None:
        raise UsageError(f"--uncertainty: {bundle.folder} has no twin; see `python -m tools.train export --twin`")

    def load(part: Bundle) -> Predictor:
        return create_predictor(part, backend, "auto", precision, threads)[0]

    wants_locator = bundle.plan.shortcuts.crop == "organs" and bundle.locator is not None
    locator = Locator(bundle.locator.plan, load(bundle.locator)) if wants_locator and bundle.locator else None
    twin = load(bundle.twin) if uncertainty and bundle.twin else None
    return Networks(bundle.plan, load(bundle), twin, locator)


def measure(networks: Networks, case_id: str, ct: Ct, kind: str, seed: int) -> Row:
    """What came of a scan made worse, ready for JSON; ``skipped`` says why if it cannot be made so."""
    row: Row = {"case_id": case_id, "kind": kind, "skipped": None}
    try:
        worse = degrade(ct, kind, seed)
    except NotApplicable as error:
        return {**row, "skipped": str(error)}
    start = time.perf_counter()
    label_map, _, restoration = segment(
        worse.volume,
        networks.predictor,
        networks.plan,
        networks.options,
        locator=networks.locator,
        twin=networks.twin,
    )
    row |= {
        "seconds": time.perf_counter() - start,
        "shape_zyx": worse.geometry.shape_zyx,
        "spacing_zyx_mm": worse.geometry.spacing_zyx_mm,
        "organs": _organs(label_map, worse, restoration.agreement),
    }
    if kind == CHEST:
        row["invented_ml"] = _invented_ml(row)
    return row


def _organs(label_map: LabelArray, ct: Ct, agreement: dict[str, float | None] | None) -> dict[str, dict[str, Any]]:
    """By organ: volumes, agreement of the siblings, and scores if the reference shows enough of it."""
    assert ct.label_map is not None
    voxel_ml = ct.geometry.voxel_volume_ml
    found, shown = (organ_volumes_ml(labels, ORGANS, voxel_ml) for labels in (label_map, ct.label_map))
    scores = score_case(np.ascontiguousarray(label_map), ct.label_map, ct.geometry.spacing_zyx_mm, CORRECTED)
    organs = {}
    for organ, score in scores.items():
        scored = shown[organ] >= SMALLEST_SCORED_ML
        organs[organ] = {
            "dsc": score.dsc if scored else None,
            "nsd": score.nsd if scored else None,
            "reference_ml": shown[organ],
            "found_ml": found[organ],
            "agreement": agreement[organ] if agreement else None,
        }
    return organs


def _invented_ml(row: Row) -> dict[str, float]:
    """Volume of the organs that the chest does not hold."""
    names = [organ.name for organ in CORRECTED.organs if organ.label in ABDOMINAL_LABELS]
    return {name: row["organs"][name]["found_ml"] for name in names}
