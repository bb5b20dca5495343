"""How far a mean can be trusted: bootstrap intervals over cases, and Wilcoxon's signed-rank test of two methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from tools.evaluate.values import Float64Array, Interval

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
ALPHA = 0.05

BOOTSTRAP = {
    "method": "percentile bootstrap; whole cases are drawn with replacement",
    "level": LEVEL,
    "resamples": RESAMPLES,
    "seed": SEED,
    "generator": "numpy PCG64",
}
SIGNED_RANK = {
    "method": "Wilcoxon signed-rank, two-sided, equal pairs dropped (scipy.stats.wilcoxon, method auto)",
    "alpha": ALPHA,
    "several_organs": "Holm's step-down correction over the organs of a metric",
}


@dataclass(frozen=True)
class SignedRank:
    """What the test says of two methods.

    Attributes:
        pairs: cases in which both have a value.
        unequal_pairs: those of them that differ; the others say nothing.
        p_value: None if no pair differs.
        smallest_p_value: what so many pairs give if all differ in one direction, 2 / 2^n.
        note: why the test cannot say anything, if it cannot.
    """

    pairs: int
    unequal_pairs: int
    p_value: float | None
    smallest_p_value: float | None
    note: str | None


def bootstrap_intervals(
    values: Float64Array, in_mean: npt.NDArray[np.bool_], seed: int = SEED, resamples: int = RESAMPLES
) -> tuple[list[Interval | None], Interval | None]:
    """(interval of each organ's mean, interval of the mean over organs).

    Cases are drawn, not values, so organs of one scan stay together. Two cases, 0 and 1, give (0, 1): one resample in
    four is twice the first case. A mean of one value has no interval. With few cases intervals are too narrow: of five
    cases nobody knows the sixth. An organ that a resample does not show is left out of that resample's mean.

    Args:
        values: float64 (cases, organs), NaN for missing.
        in_mean: bool (organs), which of them the mean over organs has.
        seed: equal seeds give equal intervals.
        resamples: how many.
    """
    cases, there = len(values), ~np.isnan(values)
    if not cases:
        return [None] * values.shape[1], None
    drawn = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1 / cases), size=resamples)
    with np.errstate(invalid="ignore"):  # 0 / 0 is an organ that the resample does not show
        means = (drawn @ np.where(there, values, 0.0)) / (drawn @ there)
    organs = [_interval(means[:, i]) if there[:, i].sum() > 1 else None for i in range(values.shape[1])]
    shown = means[:, in_mean & there.any(axis=0)]
    counts = (~np.isnan(shown)).sum(axis=1)
    overall = np.nansum(shown, axis=1)[counts > 0] / counts[counts > 0]
    return organs, _interval(overall) if cases > 1 and overall.size else None


def signed_rank(first: Float64Array, second: Float64Array) -> SignedRank:
    """Whether two methods differ on the same cases.

    Four pairs that all favour one method have p = 2 / 2^4 = 0.125: with fewer than six nothing is below 0.05, and
    ``note`` says so.

    Args:
        first: float64, a value for each case, NaN for missing.
        second: likewise, of the same cases.
    """
    both = ~np.isnan(first) & ~np.isnan(second)
    differences = np.round(second[both] - first[both], 12)  # 0.9 - 0.8 and 0.8 - 0.7 have one rank
    unequal = differences[differences != 0]
    if not unequal.size:
        why = "no case has a value by both" if not differences.size else "the methods are equal in every case"
        return SignedRank(differences.size, 0, None, None, why)
    smallest = 2.0 ** (1 - unequal.size)
    too_few = f"nothing can be said: p is {smallest:g} at best (unequal pairs: {unequal.size})"
    p_value = min(1.0, float(stats.wilcoxon(unequal).pvalue))
    return SignedRank(differences.size, unequal.size, p_value, smallest, too_few if smallest > ALPHA else None)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The same p values corrected for their number: 0.01, 0.04, 0.03 become 0.03, 0.06, 0.06. None stays None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


def _interval(means: npt.NDArray[Any]) -> Interval:
    low, high = np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
