"""Areas under curves and the organisers' formulas: arithmetic only."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

GPU_TOLERANCE_MB = 2048.0
STABLE_SHARE = 0.02
_PADDING_S = 0.1  # added by the organisers to the denominator of their CPU share

CpuTimes = tuple[float, float, float]


def sum_area(values: Sequence[float], interval_s: float) -> float:
    """Samples times the nominal interval, as the organisers sum: 3 samples of 100 MB at 0.1 s are 30 MB s."""
    return sum(values) * interval_s


def trapezoid_area(times_s: Sequence[float], values: Sequence[float]) -> float:
    """The area under straight lines between samples, at the times at which they were taken.

    100 at 0 s, 300 at 2 s and 0 at 3 s give 400 + 150 = 550.
    """
    points = list(zip(times_s, values, strict=True))
    return sum((after - before) * (low + high) / 2 for (before, low), (after, high) in pairwise(points))


def above(values: Sequence[float], level: float) -> list[float]:
    """What exceeds a level: max(0, value - level). Above 2048, 2000 is 0 and 2148 is 100."""
    return [max(0.0, value - level) for value in values]


def stable_maximum(values: Sequence[float], share: float = STABLE_SHARE) -> float | None:
    """The largest value that more than ``share`` of all samples have: FLARE22's ``GPU_Mem``.

    Of 100 samples a value seen twice does not count, one seen three times does. None if no value is seen that often;
    the organisers' script ends with an error there.
    """
    counts = Counter(values)
    return max((value for value, count in counts.items() if count > share * len(values)), default=None)


def official_cpu_percent(times: Sequence[CpuTimes]) -> list[CpuTimes]:
    """(user, system, idle) in percent for each step between readings of the host's cumulative CPU-seconds.

    The organisers divide by user + system + idle + 0.1. Four idle cores give 0.4 s idle in 0.1 s, hence
    40 / 0.5 = 80 % idle, and their "used", 100 - idle, is 20 % although nothing ran.
    """
    found = []
    for before, after in pairwise(times):
        steps = [late - early for early, late in zip(before, after, strict=True)]
        user, system, idle = (100 * step / (sum(steps) + _PADDING_S) for step in steps)
        found.append((user, system, idle))
    return found
