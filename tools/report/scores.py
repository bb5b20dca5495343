"""Scores for the page, from ``scores.json`` of ``tools.evaluate``: per organ the mean, its interval, every case."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.evaluate.presets import FLARE_ORGANS
from tools.evaluate.record import RULES
from tools.evaluate.values import DSC, HD95, NSD, Metric, Record, metric_values, scored_ids
from tools.figures.organ_colours import organ_colour

METRICS = (DSC, NSD, HD95)


def organs_of(record: Record | None) -> list[dict[str, Any]]:
    """label, name, colour and tolerance_mm of each organ: the record's, or FLARE's without one."""
    known: Sequence[Mapping[str, Any]] = record["organs"] if record else [vars(organ) for organ in FLARE_ORGANS]
    keys = ("label", "name", "tolerance_mm")
    return [{key: organ[key] for key in keys} | {"colour": organ_colour(organ["label"])} for organ in known]


def scores_content(record: Record) -> dict[str, Any]:
    """What the page draws, by metric and rules; missing is null.

    ``dsc.official.organs[0]`` is ``{"mean": 0.9511, "interval": [0.95, 0.96], "values": [0.9507, 0.9515]}`` for two
    cases. HD95 does not depend on the rules: both hold the same.
    """
    return {
        "cases": scored_ids(record),
        "rules": list(RULES),
        "metrics": [
            {"key": metric.key, "title": metric.title, "decimals": metric.decimals, "best": metric.best}
            for metric in METRICS
        ],
        "values": {metric.key: {rules: _values(record, metric, rules) for rules in RULES} for metric in METRICS},
    }


def case_mean(record: Record, case_id: str, metric: Metric, rules: str = "official") -> float | None:
    """Mean over organs of DSC or NSD of a case; None if it has no scores."""
    found = next((case for case in record["cases"] if case["case_id"] == case_id), None)
    mean: float | None = found[rules]["mean"][metric.key] if found and found[rules] else None
    return mean


def scored_elsewhere(record: Record, predictions: Path) -> list[str]:
    """A note if the scores are not of the folder whose label maps are shown; none where the record does not say.

    A relative path counts from where the report is made: the record does not say where the evaluation was.
    """
    scored = record["settings"].get("predictions")
    if scored is None or Path(scored).resolve() == predictions.resolve():
        return []
    return [f"scores are of the label maps in {scored}, slices of those in {predictions}"]


def _values(record: Record, metric: Metric, rules: str) -> dict[str, Any]:
    source = rules if metric.by_rules else "measures"
    means, intervals = record["mean"][source], record["interval"][source]
    columns = metric_values(record, metric, rules, scored_ids(record)).T
    return {
        "mean": means["all_organs"][metric.key],
        "interval": intervals["all_organs"][metric.key],
        "organs": [
            {
                "mean": means["organs"][organ["name"]][metric.key],
                "interval": intervals["organs"][organ["name"]][metric.key],
                "values": [None if np.isnan(value) else float(value) for value in column],
            }
            for organ, column in zip(record["organs"], columns, strict=True)
        ],
    }
