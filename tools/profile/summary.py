"""From samples to figures: ``profile.json``. What each number means is in README.md beside this file."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import median
from typing import Any

from app.errors import FolderError
from tools.profile.areas import GPU_TOLERANCE_MB, above, stable_maximum, sum_area, trapezoid_area
from tools.profile.official import PROTOCOLS, case_content, figures
from tools.profile.recording import Recording, Sample
from tools.profile.timeline import Timeline, largest, stage_table

PROFILE_SCHEMA_VERSION = 1


def summarise(recording: Recording, timeline: Timeline | None, no_stages: str | None = None) -> dict[str, Any]:
    """All figures of one run.

    Args:
        recording: of a run that has ended, or of a profiler that was killed.
        timeline: of the app's report.
        no_stages: why there is none.

    Raises:
        FolderError: the run has no samples.
    """
    header, ending = recording.header, recording.ending
    running = recording.during("run")
    if not running:
        raise FolderError(
            "the recording has no sample of a run: the command could not be started, or the profiler was killed before"
        )
    return {
        "schema_version": PROFILE_SCHEMA_VERSION,
        "recording": asdict(header),
        "ending": None if ending is None else asdict(ending),
        "seconds": recording.seconds,
        "baseline": _baseline(recording),
        "official": _official(recording),
        "host": _host(recording),
        "own": _own(recording),
        "gpu": _gpu(recording),
        "no_gpu": header.no_gpu,
        "stages": None if timeline is None else _stages(recording, timeline),
        "no_stages": no_stages,
        "sampler": {
            "samples": len(running),
            "longest_gap_s": max(_gaps(running), default=None),
            "cpu_percent_of_a_core": 100 * ending.sampler_cpu_s / ending.wall_s if ending else None,
        },
    }


def _baseline(recording: Recording) -> dict[str, Any] | None:
    """The machine before the start: medians, and CPU over the whole time. None of a single sample."""
    before = recording.during("before")
    if len(before) < 2:
        return None
    seconds = before[-1].monotonic_s - before[0].monotonic_s
    gpu = [found.gpu_mib for found in before if found.gpu_mib is not None]
    return {
        "seconds": seconds,
        "memory_mib": median(found.host_memory_mib for found in before),
        "gpu_mib": median(gpu) if gpu else None,
        "busy_cores": (before[-1].host_busy_s - before[0].host_busy_s) / seconds,
    }


def _official(recording: Recording) -> dict[str, Any]:
    """The organisers' columns, by both protocols."""
    content, interval_s = case_content(recording), recording.header.interval_s
    tables = {}
    for name in ("flare22", "flare23"):
        protocol = PROTOCOLS[name]
        row = figures(content, protocol, interval_s).row("")
        tables[name] = dict(zip(protocol.columns[1:], row[1:], strict=True))
    return tables


def _host(recording: Recording) -> dict[str, Any]:
    baseline, running = _baseline(recording), recording.during("run", "end")
    seconds = running[-1].monotonic_s - running[0].monotonic_s
    busy_s = running[-1].host_busy_s - running[0].host_busy_s
    return {
        "memory": _memory(recording, "host_memory_mib", baseline["memory_mib"] if baseline else None),
        "cpu": {
            "core_s": busy_s,
            "core_s_above_baseline": busy_s - baseline["busy_cores"] * seconds if baseline else None,
            "percent_s": 100 * busy_s / recording.header.cores,
        },
    }


def _gpu(recording: Recording) -> dict[str, Any] | None:
    """Of the whole device; None without one, and if it never answered."""
    baseline = _baseline(recording)
    memory = _memory(recording, "gpu_mib", baseline["gpu_mib"] if baseline else None)
    if memory is None:
        return None
    running = _points(recording.during("run"), "gpu_mib")
    times, values = zip(*_points(recording.during("run", "end"), "gpu_mib"), strict=True)
    tolerated = above([value for _, value in running], GPU_TOLERANCE_MB)
    return memory | {
        "stable_peak_mib": stable_maximum([value for _, value in running]),
        "area_sum_above_2048": sum_area(tolerated, recording.header.interval_s),
        "area_trapezoid_above_2048": trapezoid_area(times, above(values, GPU_TOLERANCE_MB)),
    }


def _own(recording: Recording) -> dict[str, Any]:
    """Of the process tree or the container."""
    cpu = [found.cpu_s for found in recording.during("run", "end") if found.cpu_s is not None]
    core_s = cpu[-1] if cpu else None
    if recording.header.scope == "tree" and recording.ending and core_s is not None:
        core_s = max(core_s, recording.ending.command_cpu_s)
    return {
        "scope": recording.header.scope,
        "memory": _memory(recording, "memory_mib", None),
        "cpu": {
            "core_s": core_s,
            "percent_s": None if core_s is None else 100 * core_s / recording.header.cores,
        },
    }


def _memory(recording: Recording, name: str, baseline_mib: float | None) -> dict[str, Any] | None:
    """Peak and areas of a curve; None if nothing was measured. ``area_sum`` leaves the sample after the end out."""
    points = _points(recording.during("run", "end"), name)
    if not points:
        return None
    times = [time for time, _ in points]
    values = [value for _, value in points]
    running = [value for _, value in _points(recording.during("run"), name)]
    area = trapezoid_area(times, values)
    return {
        "peak_mib": max(values),
        "area_sum": sum_area(running, recording.header.interval_s),
        "area_trapezoid": area,
        "area_trapezoid_above_baseline": None if baseline_mib is None else area - baseline_mib * (times[-1] - times[0]),
    }


def _stages(recording: Recording, timeline: Timeline) -> dict[str, Any]:
    table, loading = stage_table(timeline.spans, recording), timeline.loading
    return {
        "table": [asdict(row) for row in table],
        "memory_peak_in": largest(table, "memory_peak_mib"),
        "most_memory_in": largest(table, "memory_area"),
        "most_cpu_in": largest(table, "cpu_s"),
        "network_loaded_beside": asdict(stage_table([loading], recording)[0]) if loading else None,
        "spans": [asdict(span) for span in timeline.spans],
    }


def _points(samples: Sequence[Sample], name: str) -> list[tuple[float, float]]:
    found = [(sample.monotonic_s, getattr(sample, name)) for sample in samples]
    return [(time, value) for time, value in found if value is not None]


def _gaps(samples: Sequence[Sample]) -> list[float]:
    times = [sample.monotonic_s for sample in samples]
    return [late - early for early, late in pairwise(times)]
