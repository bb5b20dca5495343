"""Validation on whole scans, through the app's own pipeline and ``tools.evaluate``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.backends.shapes import network_shapes
from app.errors import UsageError
from app.network import UNet
from app.options import Options
from app.pipeline import segment
from app.plan import Plan
from app.volume import Float32Array
from app.volume_io import read_volume
from tools.evaluate.flare import CORRECTED, score_case
from tools.train.cache import CaseCache, read_meta
from tools.train.cases import FLARE22_ORGANS, TrainingCase, find_training_data
from tools.train.checks import label_ids
from tools.train.distributed import ALONE, Rank


def cases_to_validate(held_out: Sequence[CaseCache], folders: Sequence[Path] = ()) -> list[TrainingCase]:
    """The scans, label maps and organs not annotated of the labelled ones of some prepared cases.

    Args:
        held_out: of the cache.
        folders: where the scans are now, with a layout of ``cases.py``; else they are where ``prepare`` found them.

    Raises:
        UsageError: a scan or its label map is not there.
    """
    cases = [_as_prepared(case) for case in held_out if case.labelled]
    if folders:
        found = {case.case_id: case for case in find_training_data(folders).cases}
        cases = [replace(found.get(case.case_id, case), not_annotated=case.hidden, not_trusted=()) for case in cases]
    for case in cases:
        if not (case.label_path and case.label_path.exists() and case.image_path.exists()):
            raise UsageError(
                f"{case.case_id}: found {case.image_path} with label map {case.label_path}; expected both to be there, "
                "to validate on. Say with --data in which folders they are"
            )
    return cases


def _as_prepared(case: CaseCache) -> TrainingCase:
    meta = read_meta(case.folder)
    assert meta is not None
    image, label = (Path(meta["source"][key][0]) for key in ("image", "label"))
    return TrainingCase(case.case_id, image, label, tuple(meta["not_annotated"]))


class LiveNetwork:
    """A network in training as a ``Predictor``."""

    backend = "torch"
    precision = "fp32"

    def __init__(self, network: UNet, plan: Plan) -> None:
        self._network = network
        self._input_shape = network_shapes(plan)[0]
        self._device = next(network.parameters()).device
        self.device = str(self._device)

    @torch.inference_mode()
    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        image = torch.from_numpy(tile.reshape(self._input_shape)).to(self._device)
        logits: Float32Array = self._network(image)[0].float().cpu().numpy()
        return logits.reshape(-1, *tile.shape)


class Validation:
    """Held-out labelled scans and how they are scored.

    Raises:
        UsageError: the plan has other organs than FLARE22, which ``tools.evaluate`` scores.
    """

    def __init__(self, cases: Sequence[TrainingCase], plan: Plan) -> None:
        if plan.labels != FLARE22_ORGANS:
            raise UsageError(
                f"plan {plan.name}: labels {', '.join(plan.labels)}; expected FLARE22's 13 organs, which validation "
                "scores. Leave --validate-every out"
            )
        self._cases, self._plan = cases, plan

    def score(self, network: UNet, rank: Rank = ALONE) -> dict[str, Any]:
        """DSC and NSD (FLARE's tolerances, ``tools.evaluate``'s corrected rules) of whole scans.

        ``{"mean_dsc": mean over cases of the mean over organs, "dsc": {organ: mean over cases}, the same for "nsd",
        "cases": {case: {organ: [dsc, nsd]}}}``. An organ counts in a scan whose reference shows it. Ranks share the
        scans; each gets the scores of all.
        """
        network.eval()
        predictor = LiveNetwork(network, self._plan)
        own = self._cases[rank.rank :: rank.world_size]
        found = rank.gather({case.case_id: self._score_case(case, predictor) for case in own})
        network.train()
        by_case = {case.case_id: found[case.case_id] for case in self._cases}
        result: dict[str, Any] = {"cases": by_case}
        for index, metric in enumerate(("dsc", "nsd")):
            means = [np.mean([pair[index] for pair in scores.values()]) for scores in by_case.values() if scores]
            result[f"mean_{metric}"] = float(np.mean(means)) if means else None
            result[metric] = {
                organ: float(np.mean([scores[organ][index] for scores in by_case.values() if organ in scores]))
                for organ in self._plan.labels
                if any(organ in scores for scores in by_case.values())
            }
        return result

    def _score_case(self, case: TrainingCase, predictor: LiveNetwork) -> dict[str, tuple[float, float]]:
        """(DSC, NSD) of the organs that the reference shows and whose annotation can be trusted."""
        assert case.label_path is not None
        volume = read_volume(case.image_path)
        reference = label_ids(read_volume(case.label_path))
        options = Options(mode=self._plan.mode, spacing=self._plan.spacing.enforce)
        prediction, _, _ = segment(volume, predictor, self._plan, options)
        scores = score_case(prediction, reference, volume.geometry.spacing_zyx_mm, CORRECTED)
        shown = {organ for label, organ in enumerate(self._plan.labels, start=1) if np.any(reference == label)}
        return {
            organ: (score.dsc, score.nsd)
            for organ, score in scores.items()
            if organ in shown - set(case.hidden) and score.dsc is not None and score.nsd is not None
        }
