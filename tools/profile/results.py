"""What became of the cases of a harness run: the verdict on each, the organisers' table, and the details."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from app.atomic_files import write_text
from tools.profile.container import Container
from tools.profile.official import Cell, Figures, write_table
from tools.profile.recording import Ending

HARNESS_SCHEMA_VERSION = 1
HARNESS_FILE, DETAILS, DETAILS_FILE = "harness.json", "details", "details.csv"
NO_FILE = "a link or folder, no file"

Status = Literal["ok", "stuck", "failed", "interrupted"]

_KILLED = 137
_DETAIL_COLUMNS = (
    "Name",
    "Status",
    "ExitCode",
    "Time",
    "ContainerPeak_MiB",
    "ContainerArea_MiBs",
    "ContainerCPU_core_s",
    "HostRAMAboveBaseline_MiBs",
    "HostCPUAboveBaseline_core_s",
    "GPUAreaAbove2048_MiBs",
    "Sampler_percent_of_core",
    "Notes",
)


@dataclass(frozen=True)
class CaseResult:
    """One case.

    Attributes:
        scan: name of its file, which tells the case: the stem of ``a.b_0000.nii.gz`` is ``a``.
        stem: the scan's name up to its first dot, as the organisers name their files.
        status: ``stuck`` ran into the time-out; ``failed`` has an exit code or no label map; ``interrupted`` says
            nothing about the image.
        measured: before any penalty.
        profile: content of ``profile.json``.
        notes: what is not as the challenge expects it.
    """

    scan: str
    stem: str
    status: Status
    measured: Figures
    profile: dict[str, Any]
    notes: list[str]

    @property
    def name(self) -> str:
        """As the organisers' table has it."""
        return f"{self.stem}.nii.gz"

    def scored(self) -> Figures | None:
        """With the penalty that the status brings; None if the case does not count."""
        if self.status == "interrupted":
            return None
        return self.measured if self.status == "ok" else self.measured.penalised()


def judge(ending: Ending, expected: str, made: Mapping[str, bool], left: set[str]) -> tuple[Status, list[str]]:
    """(what becomes of a case, what is not as the challenge expects it).

    Args:
        ending: of its container.
        expected: name of the label map.
        made: names that are new in outputs, and whether each is a plain file: a link may lead nowhere outside of the
            container.
        left: names that are new in inputs.
    """
    has_label_map, notes = made.get(expected, False), []
    if not has_label_map:
        missing = f"no label map: expected outputs/{expected}"
        notes.append(f"outputs/{expected}: {NO_FILE}; expected the label map" if expected in made else missing)
    others = sorted(made.keys() - {expected})
    notes += [f"outputs/{name}: nothing but the label map may be left there" for name in others]
    notes += [f"inputs/{name}: nothing may be left there" for name in sorted(left)]
    if ending.reason == "signal":
        return "interrupted", notes
    if ending.reason == "timeout":
        return "stuck", [f"stopped after {ending.wall_s:.0f} s", *notes]
    if ending.exit_code:
        hint = "; 137 is SIGKILL, as when the memory limit is passed" if ending.exit_code == _KILLED else ""
        notes = [f"exit code {ending.exit_code}, see log.txt in details{hint}", *notes]
    return "failed" if ending.exit_code or not has_label_map else "ok", notes


def write_results(folder: Path, container: Container, facts: dict[str, Any], results: Sequence[CaseResult]) -> None:
    """Writes the organisers' table, ``details/details.csv`` and ``harness.json``, which has ``facts`` in it."""
    results = sorted(results, key=lambda result: result.stem)
    columns = container.protocol.columns
    rows = {result.stem: scored.row(result.name) for result in results if (scored := result.scored())}
    write_table(columns, list(rows.values()), folder / f"{container.team}_Efficiency.csv")
    write_table(_DETAIL_COLUMNS, [_detail_row(result) for result in results], folder / DETAILS / DETAILS_FILE)
    cases = [
        {
            "scan": result.scan,
            "stem": result.stem,
            "status": result.status,
            "notes": result.notes,
            "folder": f"{DETAILS}/{result.stem}",
            "measured": asdict(result.measured),
            "row": dict(zip(columns, rows[result.stem], strict=True)) if result.stem in rows else None,
        }
        for result in results
    ]
    means = dict(zip(columns[1:], mean_row(results), strict=True))
    content = {"schema_version": HARNESS_SCHEMA_VERSION, **facts, "means": means, "cases": cases}
    write_text(folder / HARNESS_FILE, json.dumps(content, indent=2))


def mean_row(results: Sequence[CaseResult]) -> list[float | None]:
    """Means of the table's columns behind the name, penalties included; None where no case has a value."""
    rows = [astuple(scored) for result in results if (scored := result.scored())]
    columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
    return [fmean(column) if column else None for column in columns] or [None] * len(fields(Figures))


def describe_all(results: Sequence[CaseResult]) -> str:
    """One line: how many cases ended how, and the mean of what the challenge ranks."""
    counts = Counter(result.status for result in results)
    time_s, _, gpu_area, _, cpu_area, _, _ = mean_row(results)
    parts = [", ".join(f"{count} {status}" for status, count in counts.items())]
    parts += [] if time_s is None else [f"mean Time {time_s:.2f} s"]
    parts += [] if gpu_area is None else [f"AUC_GPU_Time {gpu_area:.0f} MB s"]
    parts += [] if cpu_area is None else [f"AUC_CPU_Time {cpu_area:.2f} percent s"]
    return ", ".join(parts)


def _detail_row(result: CaseResult) -> list[Cell]:
    profile = result.profile
    own, host, gpu, ending = profile["own"], profile["host"], profile["gpu"] or {}, profile["ending"]
    memory = own["memory"] or {}
    return [
        result.name,
        result.status,
        ending["exit_code"],
        ending["wall_s"],
        memory.get("peak_mib"),
        memory.get("area_trapezoid"),
        own["cpu"]["core_s"],
        host["memory"]["area_trapezoid_above_baseline"],
        host["cpu"]["core_s_above_baseline"],
        gpu.get("area_sum_above_2048"),
        profile["sampler"]["cpu_percent_of_a_core"],
        "; ".join(result.notes),
    ]
