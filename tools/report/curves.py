"""Curves and stages of a recorded run, in seconds since its start, as few points as a screen can show."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from tools.profile.curves import SCOPE_NAMES, Points, core_curve, value_curve
from tools.profile.recording import Recording

MOST_POINTS = 1500  # two for each bucket; a plot is about 1000 pixels wide

_DIGITS = 3


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        panel: which plot it belongs to: ``cores``, ``memory``, ``host`` or ``gpu``.
        name: what was measured.
        times_s: since the start of the run.
        values: cores or MiB.
    """

    panel: str
    name: str
    times_s: list[float]
    values: list[float]


@dataclass(frozen=True)
class StageSpan:
    """A stage's stretch of time, in seconds since the start of the run."""

    stage: str
    start_s: float
    end_s: float


def curves_of(recording: Recording) -> list[Curve]:
    """Cores, own memory, the host's memory and the GPU's; what was never read has no curve."""
    samples, own = recording.during("run", "end"), SCOPE_NAMES[recording.header.scope]
    start_s = recording.ending.start_monotonic_s if recording.ending else samples[0].monotonic_s
    found = {
        ("cores", own): core_curve(samples, "cpu_s", start_s),
        ("cores", "host"): core_curve(samples, "host_busy_s", start_s),
        ("memory", own): value_curve(samples, "memory_mib", start_s),
        ("host", "host"): value_curve(samples, "host_memory_mib", start_s),
        ("gpu", "device"): value_curve(samples, "gpu_mib", start_s),
    }
    return [_curve(*key, thin(points)) for key, points in found.items() if points]


def stage_spans(spans: Sequence[dict[str, Any]], start_unix_s: float) -> list[StageSpan]:
    """Spans of a profile or of the app's report, moved to the start of the run."""
    return [
        StageSpan(
            span["stage"],
            round(span["start_unix_s"] - start_unix_s, _DIGITS),
            round(span["end_unix_s"] - start_unix_s, _DIGITS),
        )
        for span in spans
    ]


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """At most so many points: the lowest and the highest of each bucket, so that no peak is lost.

    Of values 0, 5, 1, 2, 9, 3 at 0 to 5 s four points are left: 0 at 0 s, 5 at 1 s, 2 at 3 s and 9 at 4 s.
    """
    if len(points) <= most:
        return points
    size = ceil(len(points) / (most // 2))
    kept: Points = []
    for start in range(0, len(points), size):
        bucket = sorted(points[start : start + size], key=lambda point: point[1])
        kept += sorted({bucket[0], bucket[-1]})
    return kept


def _curve(panel: str, name: str, points: Points) -> Curve:
    times, values = zip(*points, strict=True)
    return Curve(panel, name, [round(time, _DIGITS) for time in times], [round(value, 2) for value in values])
