"""The organisers' figures, files and penalties, for FLARE22 and for FLARE23/24."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from app.atomic_files import write_text
from tools.evaluate.presets import DEFAULT_PRESET, PRESETS
from tools.profile.areas import official_cpu_percent, stable_maximum, sum_area
from tools.profile.recording import Recording, Sample

PENALTY_TIME_S = 3600.0
PENALTY_AUC_GPU = 29_491_200.0  # 8192 MB for 3600 s
PENALTY_AUC_CPU = 360_000.0  # 100 % for 3600 s
_SHORTEST_GAP = 0.9  # intervals; samples on time vary by some ms, and the kernel counts CPU in steps of 10 ms

Cell = str | float | None


@dataclass(frozen=True)
class Protocol:
    """How one of the challenges runs a container, and what its table is made of.

    Attributes:
        gpu_maximum: of the GPU memory: ``stable`` is the largest value in more than 2 % of the samples.
        columns: the table's, in order.
        memory, shm_size: what ``docker run`` gets for ``-m`` and ``--shm-size``.
        gpu: whether the container may get one.
        largest_label: of its label maps; 14 is FLARE23's tumour.
    """

    gpu_maximum: Literal["stable", "plain"]
    columns: tuple[str, ...]
    memory: str | None = None
    shm_size: str | None = None
    gpu: bool = True
    largest_label: int = DEFAULT_PRESET.official.largest_label


_COLUMNS_22 = ("Name", "Time", "GPU_Mem", "AUC_GPU_Time", "CPU_Utilization", "AUC_CPU_Time", "RAM", "AUC_RAM_Time")
_COLUMNS_23 = (
    "Name",
    "Time",
    "MaxGPU_Mem",
    "AUC_GPU_Time",
    "MaxCPU_Utilization",
    "AUC_CPU_Time",
    "MaxRAM",
    "AUC_RAM_Time",
)
_FLARE24 = Protocol("plain", _COLUMNS_23, memory="28G", shm_size="28gb")
PROTOCOLS = {
    "flare22": Protocol("stable", _COLUMNS_22),
    "flare23": replace(_FLARE24, largest_label=PRESETS["flare23"].official.largest_label),
    "flare24": _FLARE24,
    "laptop": Protocol("plain", _COLUMNS_23, memory="8G", gpu=False),
}
DEFAULT_PROTOCOL = DEFAULT_PRESET.name  # all tools take the same year unless told otherwise


@dataclass(frozen=True)
class Figures:
    """One row of the table, unrounded. MB are MiB, percent are of the whole host; None where nothing was measured.

    Attributes:
        time_s: wall clock around the command.
        gpu_mb: largest GPU memory, by the protocol's rule.
        gpu_area: MB s.
        cpu_percent: largest ``100 - idle``.
        cpu_area: percent s.
        ram_mb: largest memory of the host.
        ram_area: MB s.
    """

    time_s: float
    gpu_mb: float | None
    gpu_area: float | None
    cpu_percent: float | None
    cpu_area: float | None
    ram_mb: float
    ram_area: float

    def penalised(self) -> "Figures":
        """What a stuck case gets; a largest value has no penalty of its own and stays as measured."""
        gpu_area = None if self.gpu_area is None else PENALTY_AUC_GPU
        return replace(self, time_s=PENALTY_TIME_S, gpu_area=gpu_area, cpu_area=PENALTY_AUC_CPU)

    def row(self, name: str) -> list[Cell]:
        """The table's cells, rounded as the organisers do."""
        gpu = [None if value is None else float(round(value)) for value in (self.gpu_mb, self.gpu_area)]
        cpu = [None if value is None else round(value, 2) for value in (self.cpu_percent, self.cpu_area)]
        return [name, round(self.time_s, 2), *gpu, *cpu, round(self.ram_mb, 2), float(round(self.ram_area))]


def case_content(recording: Recording) -> dict[str, Any]:
    """The organisers' JSON of one case; ``gpu_memory`` is empty without a GPU, ``time`` missing if never ended.

    The first CPU share is that since the last sample before the start, if that was an interval ago. A run shorter than
    an interval without such a sample has none.
    """
    running = recording.during("run")
    times = [(found.host_user_s, found.host_system_s, found.host_idle_s) for found in _cpu_readings(recording)]
    content: dict[str, Any] = {
        "gpu_memory": [found.gpu_mib for found in running if found.gpu_mib is not None],
        "cpu_list": official_cpu_percent(times),
        "RAM_list": [found.host_memory_mib for found in running],
    }
    return content if recording.ending is None else content | {"time": recording.ending.wall_s}


def figures(content: dict[str, Any], protocol: Protocol, interval_s: float) -> Figures:
    """The figures of a case's JSON; without a time it is the number of samples times the interval."""
    gpu: list[float] = content["gpu_memory"]
    used = [100 - idle for _, _, idle in content["cpu_list"]]
    ram: list[float] = content["RAM_list"]
    return Figures(
        time_s=content.get("time", interval_s * len(ram)),
        gpu_mb=_gpu_maximum(gpu, protocol),
        gpu_area=sum_area(gpu, interval_s) if gpu else None,
        cpu_percent=max(used, default=None),
        cpu_area=sum_area(used, interval_s) if used else None,
        ram_mb=max(ram),
        ram_area=sum_area(ram, interval_s),
    )


def write_case(content: dict[str, Any], path: Path) -> None:
    """Writes a case's JSON, indented as theirs."""
    write_text(path, json.dumps(content, indent=4))


def write_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], path: Path) -> None:
    """Writes a CSV file; None is an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    write_text(path, text.getvalue())


def _cpu_readings(recording: Recording) -> list[Sample]:
    """Samples as far apart as readings of the organisers' loop, which sleeps an interval after each.

    Their formula reads a shorter gap as work. Of samples at 0, 0.1, 0.28, 0.3 and 0.4 s the one at 0.3 s is left out.
    """
    shortest_s = _SHORTEST_GAP * recording.header.interval_s
    running = recording.during("run")
    before = recording.during("before")
    kept = [found for found in before if running[0].monotonic_s - found.monotonic_s >= shortest_s][-1:]
    for found in running:
        if not kept or found.monotonic_s - kept[-1].monotonic_s >= shortest_s:
            kept.append(found)
    return kept


def _gpu_maximum(gpu: list[float], protocol: Protocol) -> float | None:
    if not gpu:
        return None
    if protocol.gpu_maximum == "plain":
        return max(gpu)
    return stable_maximum(gpu)
