"""The stages of the app's report beside the curves: which of them holds the memory, which the CPU."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import FolderError
from app.json_values import build_value
from app.report import Span
from tools.profile.recording import Recording, Sample

START_UP, BETWEEN, EXIT = "start-up", "between", "exit"
_CLOCK_S = 1.0  # that a clock which is being set may differ by

Curve = npt.NDArray[np.float64]  # (2, points): times, values


@dataclass(frozen=True)
class StageUse:
    """What one stage took, over the part of its spans that lies between known samples. None is what was not measured.

    Attributes:
        stage: the report's name; start-up, between and exit are what no stage covers.
        seconds: of the whole spans.
        memory_mib: mean over the time in which it is known.
        memory_area: MiB s.
        memory_peak_mib: largest sample or interpolated edge.
        memory_change_mib: what it left behind: sum of last minus first over its spans.
        cpu_s: of the process tree or the container.
        cores: cpu_s per second in which it is known.
        gpu_peak_mib: of the whole device.
    """

    stage: str
    seconds: float
    memory_mib: float | None
    memory_area: float | None
    memory_peak_mib: float | None
    memory_change_mib: float | None
    cpu_s: float | None
    cores: float | None
    gpu_peak_mib: float | None


def read_spans(path: Path) -> tuple[list[Span], Span | None]:
    """(stages of all cases in order of time, when the network was loaded beside them) of a report of the app.

    Raises:
        FolderError: there is no such report, or it does not tell when its stages ran.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        spans = [_span(span) for case in report["cases"] for span in case["spans"]]
        loading = report["network_load_span"]
        return sorted(spans, key=lambda span: span.start_unix_s), _span(loading) if loading else None
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}; expected what `python -m app --report` writes") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FolderError(f"{path}: tells no spans of stages; expected a report of this app (--report)") from error


def _span(content: Any) -> Span:
    span: Span = build_value(Span, content, "span")
    return span


@dataclass(frozen=True)
class Timeline:
    """What the app's report says about when it did what.

    Attributes:
        spans: the whole run, from start to end of the command, as stages without gaps.
        loading: when the network was loaded beside them.
    """

    spans: list[Span]
    loading: Span | None


def read_timeline(report: Path, recording: Recording) -> Timeline:
    """The timeline of a recorded run.

    Raises:
        FolderError: there is no such report, it tells no spans, or it is of another run.
    """
    spans, loading = read_spans(report)
    start, end = recording.start_unix_s, recording.start_unix_s + recording.seconds
    if any(span.start_unix_s < start - _CLOCK_S or span.end_unix_s > end + _CLOCK_S for span in spans):
        raise FolderError(f"{report}: its stages did not run while the command did; expected the report of this run")
    return Timeline(partition(spans, start, end), loading)


def partition(spans: Sequence[Span], start_unix_s: float, end_unix_s: float) -> list[Span]:
    """The whole run without gaps: start-up, the stages with what lies between them, exit.

    Of a run from 10 to 20 s with read from 12 to 13 and write from 15 to 19, that is start-up 10 to 12, read, between
    13 to 15, write, exit 19 to 20.
    """
    found: list[Span] = []
    now, gap = start_unix_s, START_UP
    for span in spans:
        if span.start_unix_s > now:
            found.append(Span(gap, now, span.start_unix_s))
        found.append(span)
        now, gap = max(now, span.end_unix_s), BETWEEN
    if end_unix_s > now:
        found.append(Span(EXIT if spans else START_UP, now, end_unix_s))
    return found


def stage_table(spans: Sequence[Span], recording: Recording) -> list[StageUse]:
    """One row a stage, in order of its first appearance."""
    samples = recording.during("run", "end")
    curves = {name: _curve(samples, name) for name in ("memory_mib", "cpu_s", "gpu_mib")}
    by_stage: dict[str, list[Span]] = {}
    for span in spans:
        by_stage.setdefault(span.stage, []).append(span)
    return [_use(stage, found, curves) for stage, found in by_stage.items()]


def largest(rows: Sequence[StageUse], field: str) -> str | None:
    """The stage with the largest value of a field, the first of several; None if no stage has one."""
    known: dict[str, Any] = {row.stage: value for row in rows if (value := getattr(row, field)) is not None}
    return max(known, key=known.__getitem__) if known else None


def _use(stage: str, spans: list[Span], curves: dict[str, Curve]) -> StageUse:
    memory, cpu, gpu = ([_cut(curves[name], span) for span in spans] for name in ("memory_mib", "cpu_s", "gpu_mib"))
    memory_s, cpu_known_s = _seconds(memory), _seconds(cpu)
    area = sum(float(np.trapezoid(values, times)) for times, values in memory)
    cpu_s = _change(cpu) if cpu_known_s else None
    return StageUse(
        stage=stage,
        seconds=sum(span.end_unix_s - span.start_unix_s for span in spans),
        memory_mib=area / memory_s if memory_s else None,
        memory_area=area if memory_s else None,
        memory_peak_mib=_peak(memory),
        memory_change_mib=_change(memory) if memory_s else None,
        cpu_s=cpu_s,
        cores=None if cpu_s is None else cpu_s / cpu_known_s,
        gpu_peak_mib=_peak(gpu),
    )


def _curve(samples: list[Sample], name: str) -> Curve:
    """float64 (2, samples): Unix times and values, of the samples that have one."""
    points = [(sample.unix_s, value) for sample in samples if (value := getattr(sample, name)) is not None]
    return np.array(points, dtype=np.float64).reshape(-1, 2).T


def _cut(curve: Curve, span: Span) -> Curve:
    """The part of a curve within a span, straight between samples; empty where the span lies before or after them all.

    Of samples at 1, 2 and 3 s, a span from 0 to 1.5 s gets the curve from 1 to 1.5 s: nobody knows what was before.
    """
    times, values = curve
    if not times.size:
        return curve
    start, end = max(span.start_unix_s, times[0]), min(span.end_unix_s, times[-1])
    if start > end:
        return curve[:, :0]
    inside = (times > start) & (times < end)
    cut = np.array([start, *times[inside], end])
    return np.array([cut, np.interp(cut, times, values)])


def _seconds(curves: list[Curve]) -> float:
    return sum(float(times[-1] - times[0]) for times, _ in curves if times.size)


def _change(curves: list[Curve]) -> float:
    return sum(float(values[-1] - values[0]) for _, values in curves if values.size)


def _peak(curves: list[Curve]) -> float | None:
    return max((float(values.max()) for _, values in curves if values.size), default=None)
