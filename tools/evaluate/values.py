"""What a record (``scores.json``) says as arrays: one row a case, one column an organ, NaN for what is missing."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Record = dict[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """One number of an organ in a case.

    Attributes:
        key: its name in records.
        title: for people, with its unit.
        by_rules: whether ``official`` and ``corrected`` differ in it.
        scale: from the record's unit to the title's.
        decimals: that are shown.
        best: the value of a perfect segmentation.
    """

    key: str
    title: str
    by_rules: bool
    scale: float
    decimals: int
    best: float

    def shown(self, value: float | None) -> str:
        """The value in the title's unit; ``-`` if there is none. A volume error of 0.0312 is ``3.1``."""
        return "-" if value is None else f"{value * self.scale:.{self.decimals}f}"


DSC = Metric("dsc", "DSC", by_rules=True, scale=1, decimals=4, best=1)
NSD = Metric("nsd", "NSD", by_rules=True, scale=1, decimals=4, best=1)
HD95 = Metric("hd95_mm", "HD95 (mm)", by_rules=False, scale=1, decimals=1, best=0)
VOLUME_ERROR = Metric("volume_error", "volume error (%)", by_rules=False, scale=100, decimals=1, best=0)
ABSOLUTE_VOLUME_ERROR = Metric(
    "absolute_volume_error", "abs. volume error (%)", by_rules=False, scale=100, decimals=1, best=0
)
METRICS = (DSC, NSD, HD95, VOLUME_ERROR, ABSOLUTE_VOLUME_ERROR)


def scored_ids(record: Record) -> list[str]:
    """The cases that have scores, in the record's order."""
    return [case["case_id"] for case in record["cases"] if case["status"] == "scored"]


def metric_values(record: Record, metric: Metric, rules: str, case_ids: Collection[str]) -> Float64Array:
    """float64 (cases, organs) in the record's unit; cases in the record's order.

    Args:
        record: what ``scores.json`` holds.
        metric: what is asked for.
        rules: ``official`` or ``corrected``; of no effect on what the rules do not change.
        case_ids: which cases.
    """
    absolute = metric is ABSOLUTE_VOLUME_ERROR
    key = VOLUME_ERROR.key if absolute else metric.key
    source = rules if metric.by_rules else "measures"
    names = [organ["name"] for organ in record["organs"]]
    rows = [
        [case[source]["organs"][name][key] for name in names]
        for case in record["cases"]
        if case["case_id"] in case_ids and case["status"] == "scored"
    ]
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))  # None becomes NaN
    return np.abs(values) if absolute else values


def organ_means(values: Float64Array) -> list[float | None]:
    """Of each organ over the cases that have a value; None if no case has one."""
    return [float(column[~np.isnan(column)].mean()) if not np.isnan(column).all() else None for column in values.T]


def mean_over_organs(means: list[float | None], record: Record) -> float | None:
    """The mean of the organs' means, as FLARE's leaderboards have it; a tumour is no organ."""
    pairs = zip(means, record["organs"], strict=True)
    there = [mean for mean, organ in pairs if mean is not None and organ["in_mean"]]
    return sum(there) / len(there) if there else None
