"""Samples as curves over the seconds of a run."""

from collections.abc import Sequence
from itertools import pairwise

from tools.profile.recording import Sample

Points = list[tuple[float, float]]

SCOPE_NAMES = {"tree": "process tree", "container": "container"}
"""What a sample's own memory and CPU time are of, for people."""


def value_curve(samples: Sequence[Sample], name: str, zero_s: float) -> Points:
    """(seconds since ``zero_s`` on the monotonic clock, value) of the samples that have one."""
    found = [(sample.monotonic_s - zero_s, getattr(sample, name)) for sample in samples]
    return [(time_s, value) for time_s, value in found if value is not None]


def core_curve(samples: Sequence[Sample], name: str, zero_s: float) -> Points:
    """Cores in use: slopes of a cumulative time, each in the middle between its two samples.

    0.1 CPU-seconds more from 1.0 to 1.2 s are 0.5 cores at 1.1 s.
    """
    return [
        ((early + late) / 2, (more - less) / (late - early))
        for (early, less), (late, more) in pairwise(value_curve(samples, name, zero_s))
        if late > early
    ]
