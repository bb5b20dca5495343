"""How well one number foretells another: rank correlation, and the area under the ROC curve."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Statistic = Callable[[Float64Array, Float64Array], float | None]

BAD_BELOW_DSC = 0.7
RESAMPLES, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Pair:
    """One organ in one scan: what the siblings' agreement and the reference say.

    Attributes:
        agreement: DSC between the siblings' label maps; None if neither found the organ.
        dsc: of the first sibling's label map against the reference.
    """

    case_id: str
    kind: str
    organ: str
    agreement: float | None
    dsc: float


def spearman(agreement: Float64Array, dsc: Float64Array) -> float | None:
    """Rank correlation: [0.2, 0.9, 0.5] with [0.1, 0.6, 0.8] has ranks 1 3 2 and 1 2 3, and 0.5.

    None for fewer than three pairs, and where one of the two is the same everywhere.
    """
    if len(agreement) < 3 or np.ptp(agreement) == 0 or np.ptp(dsc) == 0:
        return None
    return float(np.corrcoef(_ranks(agreement), _ranks(dsc))[0, 1])


def auroc(agreement: Float64Array, dsc: Float64Array) -> float | None:
    """How often an organ with a DSC below 0.7 has the lower agreement of it and one that is not; ties count half.

    Bad ones at 0.3 and 0.8, good ones at 0.8 and 0.9: of four pairs three are right and one is tied, 0.875. None if
    there are no bad ones or no good ones.
    """
    good = dsc >= BAD_BELOW_DSC
    count, others = int(good.sum()), int((~good).sum())
    if not count or not others:
        return None
    ranks = _ranks(agreement)[good]
    return (float(ranks.sum()) - count * (count + 1) / 2) / (count * others)  # Mann and Whitney's U over its largest


def summarise(pairs: Sequence[Pair], warn_below: float, seed: int = 0) -> dict[str, Any]:
    """All that is said of some pairs, ready for JSON.

    ``missed_by_both``: pairs without agreement, which no warning reaches; they count in neither statistic. ``warned``
    and ``warned_and_bad`` are what a warning below ``warn_below`` would have done.
    """
    compared = [pair for pair in pairs if pair.agreement is not None]
    agreement = np.array([pair.agreement for pair in compared], dtype=np.float64)
    dsc = np.array([pair.dsc for pair in compared], dtype=np.float64)
    bad, warned = dsc < BAD_BELOW_DSC, agreement < warn_below
    cases = np.array([pair.case_id for pair in compared])
    return {
        "pairs": len(compared),
        "scans": len(set(cases.tolist())),
        "spearman": spearman(agreement, dsc),
        "spearman_interval": cluster_interval(spearman, agreement, dsc, cases, seed),
        "auroc": auroc(agreement, dsc),
        "auroc_interval": cluster_interval(auroc, agreement, dsc, cases, seed),
        "bad": int(bad.sum()),
        "warned": int(warned.sum()),
        "warned_and_bad": int((warned & bad).sum()),
        "missed_by_both": len(pairs) - len(compared),
    }


def cluster_interval(
    statistic: Statistic, agreement: Float64Array, dsc: Float64Array, cases: npt.NDArray[Any], seed: int
) -> tuple[float, float] | None:
    """95 % percentile bootstrap over scans, which are drawn whole: organs and degraded copies of one scan are alike.

    None for fewer than three scans, and if the statistic is missing. With few scans it is too narrow.
    """
    groups = [np.flatnonzero(cases == case) for case in np.unique(cases)]
    if len(groups) < 3 or statistic(agreement, dsc) is None:
        return None
    random = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([groups[index] for index in random.integers(0, len(groups), len(groups))])
        if (value := statistic(agreement[drawn], dsc[drawn])) is not None:
            found.append(value)
    if not found:
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _ranks(values: Float64Array) -> Float64Array:
    """Ranks from 1, equal values share the mean of theirs; scipy's takes ten times as long on so few."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Float64Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def pairs_of(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """The organs of a record of ``tools.robustness`` that have a score."""
    return [
        Pair(row["case_id"], row["kind"], organ, values["agreement"], values["dsc"])
        for row in rows
        if not row["skipped"]
        for organ, values in row["organs"].items()
        if values["dsc"] is not None
    ]


def as_json(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The pairs themselves, for the record."""
    return [asdict(pair) for pair in pairs]
