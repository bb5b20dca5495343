"""What was measured beside what FLARE tolerates: within, above, or not measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tools.profile.areas import GPU_TOLERANCE_MB
from tools.profile.official import PENALTY_TIME_S
from tools.report.measured import Measured, Run

MEAN_TIME_S = 3 * 3600 / 50  # the organisers stop 50 cases after 3 h
HOST_MEMORY_MIB = 28 * 1024.0  # of the 32 GB of their machine
LAPTOP_MEMORY_MIB = 8 * 1024.0

_NO_STARTS = "no container start per case was profiled to its end"

Verdict = Literal["within", "above", "not measured"]


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        name: what is limited.
        limit: largest value that is within.
        unit: of both.
        found: None if it was not measured.
        where: the case that decides, or why it was not measured.
        source: where the limit is from.
        exclusive: the limit itself is above.
    """

    name: str
    limit: float
    unit: str
    found: float | None
    where: str
    source: str
    exclusive: bool = False

    @property
    def verdict(self) -> Verdict:
        """Within, unless it is more; the limit itself is within too, but where it is exclusive."""
        if self.found is None:
            return "not measured"
        return "above" if self.found > self.limit or (self.exclusive and self.found == self.limit) else "within"

    @property
    def share(self) -> float:
        """Part of the limit that was used, at most 1: for the bar."""
        return min(1.0, (self.found or 0.0) / self.limit)


def flare_limits(measured: Measured) -> list[Limit]:
    """All limits, each with the run that comes closest to it."""
    runs = [run for run in measured.runs if run.profile]
    no_gpu = next((why for run in runs for why in run.missing if why.startswith("no GPU")), "no profile")
    return [
        replace(
            _largest("time of a case", PENALTY_TIME_S, "s", runs, _seconds, "a container is stuck then", _NO_STARTS),
            exclusive=True,
        ),
        _mean_time(measured),
        _largest("GPU memory", GPU_TOLERANCE_MB, "MiB", runs, _gpu_peak, "what is above counts as area", no_gpu),
        _largest("memory", HOST_MEMORY_MIB, "MiB", runs, _memory_peak, "28 of the host's 32 GB", "no profile"),
        _largest("memory, laptop track", LAPTOP_MEMORY_MIB, "MiB", runs, _memory_peak, "-m 8G", "no profile"),
    ]


def _largest(
    name: str,
    limit: float,
    unit: str,
    runs: Sequence[Run],
    value_of: Callable[[Run], float | None],
    source: str,
    reason: str,
) -> Limit:
    found = {run.name: value for run in runs if (value := value_of(run)) is not None}
    worst = max(found, key=found.__getitem__) if found else None
    if worst is None:
        return Limit(name, limit, unit, None, reason, source)
    return Limit(name, limit, unit, found[worst], worst, source)


def _mean_time(measured: Measured) -> Limit:
    """Of the organisers' table, penalties included."""
    cases = measured.harness["cases"] if measured.harness else []
    seconds = [case["row"]["Time"] for case in cases if case["row"]]
    mean = sum(seconds) / len(seconds) if seconds else None
    where = f"{len(seconds)} cases" if seconds else _NO_STARTS
    return Limit("time of a case, mean", MEAN_TIME_S, "s", mean, where, "3 h for 50 cases")


def _seconds(run: Run) -> float | None:
    """A container that was stuck or failed has the organisers' penalty, however early it ended.

    One that was interrupted says nothing about the image.
    """
    if run.status in ("stuck", "failed"):
        return PENALTY_TIME_S
    return run.seconds if run.case_id and run.status != "interrupted" else None


def _memory_peak(run: Run) -> float | None:
    memory = run.profile["own"]["memory"] if run.profile else None
    return memory["peak_mib"] if memory else None


def _gpu_peak(run: Run) -> float | None:
    gpu = run.profile["gpu"] if run.profile else None
    return gpu["peak_mib"] if gpu else None
