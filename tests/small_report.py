"""Two small cases with everything that a report can have: scans, label maps, scores, a harness's folder with a GPU.

The samples are written by hand, as tools/profile/README.md says. Time runs from 0 to 10 s, memory goes straight from
0 to 400 MiB at 5 s and back, one core is in use.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from app.volume import LabelArray
from tools.evaluate.__main__ import main as evaluate
from tools.profile.recording import RECORDING_FILE, read_recording
from tools.profile.summary import summarise
from tools.profile.timeline import read_timeline
from tools.report.__main__ import main as report

SHAPE = (12, 40, 50)
SPACING_ZYX_MM = (5.0, 2.0, 2.0)
LIVER, SPLEEN = 1, 3
START_S = 1000.0


def save(path: Path, array: npt.NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    z, y, x = SPACING_ZYX_MM
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)  # LPS


def scan() -> npt.NDArray[np.int16]:
    """A body of 40 HU in air; the slices grow brighter towards the head."""
    hu = np.full(SHAPE, -1000, dtype=np.int16)
    hu[:, 4:36, 4:46] = 40 + 5 * np.arange(SHAPE[0])[:, None, None]
    return hu


def organs(first: int, last: int, label: int = LIVER) -> LabelArray:
    """8 x 8 voxels in slices ``first`` to ``last``, in the middle of the plane."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[first : last + 1, 16:24, 21:29] = label
    return labels


def write_cases(folder: Path) -> Path:
    """Case a is right but for a slice; b has a spleen instead of the liver."""
    for case, prediction in {"a": organs(2, 6), "b": organs(2, 5, SPLEEN)}.items():
        save(folder / "scans" / f"{case}_0000.nii.gz", scan())
        save(folder / "references" / f"{case}.nii.gz", organs(2, 5))
        save(folder / "predictions" / f"{case}.nii.gz", prediction)
    return folder


def write_run(folder: Path, gpu_mib: float | None = None, peak_mib: float = 400.0) -> Mapping[str, Any]:
    """The folder of one run, 10 s long; returns its ``profile.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {
        "record": "header",
        "command": ["docker"],
        "interval_s": 0.1,
        "scope": "container",
        "cores": 2,
        "machine": {"cpu": "a processor", "memory_mib": 8192.0},
        "gpu": None if gpu_mib is None else {"index": 0, "name": "a GPU", "total_mib": 8192.0},
        "no_gpu": "this machine has none" if gpu_mib is None else None,
        "schema_version": 1,
    }
    samples = [_sample(index / 10, gpu_mib, peak_mib) for index in range(101)]
    ending = {
        "record": "ending",
        "exit_code": 0,
        "reason": "exit",
        "start_unix_s": START_S,
        "start_monotonic_s": 0.0,
        "wall_s": 10.0,
        "command_cpu_s": 0.1,
        "sampler_cpu_s": 0.1,
        "skipped_samples": 0,
    }
    lines = [json.dumps(record) + "\n" for record in (header, *samples, ending)]
    (folder / RECORDING_FILE).write_text("".join(lines))
    (folder / "report.json").write_text(json.dumps(app_report(folder.name.removesuffix("_0000"))))
    recording = read_recording(folder / RECORDING_FILE)
    profile = summarise(recording, read_timeline(folder / "report.json", recording))
    (folder / "profile.json").write_text(json.dumps(profile))
    return profile


def app_report(case_id: str) -> dict[str, Any]:
    """As the app writes it: read from 1 to 3 s, network from 3 to 9 s."""
    stages = {"read": (1, 3), "network": (3, 9)}
    return {
        "schema_version": 1,
        "network": {"backend": "openvino", "device": "cpu", "precision": "fp32"},
        "network_load_span": {"stage": "load", "start_unix_s": START_S + 1, "end_unix_s": START_S + 2},
        "cases": [
            {
                "case_id": case_id,
                "status": "segmented",
                "agreement": {"liver": 0.875, "spleen": 0.75, "aorta": None},
                "seconds": {stage: end - start for stage, (start, end) in stages.items()},
                "spans": [
                    {"stage": stage, "start_unix_s": START_S + start, "end_unix_s": START_S + end}
                    for stage, (start, end) in stages.items()
                ],
            }
        ],
    }


def write_harness(folder: Path, times: Mapping[str, float], gpu_mib: float | None = None) -> Path:
    """The folder of a harness; ``times`` are those of the organisers' table, penalties included."""
    cases = []
    for index, (case, time_s) in enumerate(times.items()):
        write_run(folder / "details" / f"{case}_0000", gpu_mib, 400.0 + 100 * index)
        cases.append(
            {
                "stem": f"{case}_0000",
                "status": "ok",
                "notes": [],
                "folder": f"details/{case}_0000",
                "row": {"Time": time_s, "AUC_GPU_Time": None, "AUC_CPU_Time": 50.5, "AUC_RAM_Time": 4000.0 + index},
            }
        )
    content = {"schema_version": 1, "image": "team:latest", "limits": {"-m": "8G"}, "cases": cases}
    (folder / "harness.json").write_text(json.dumps(content))
    return folder


def write_everything(folder: Path) -> Path:
    """Returns the page."""
    write_cases(folder)
    folders = {"--predictions": "predictions", "--references": "references", "--out": "scores"}
    words = [word for option, name in folders.items() for word in (option, str(folder / name))]
    assert evaluate([*words, "--no-pictures", "--quiet"]) == 0
    write_harness(folder / "measured" / "team", {"a": 10.0, "b": 10.0}, gpu_mib=1500.0)
    more = ["--references", "references", "--scores", "scores/scores.json", "--profile", "measured"]
    assert run(folder, *more) == 0
    return folder / "report.html"


def run(folder: Path, *more: str) -> int:
    """The exit code of the command line for the folder's cases; paths in ``more`` are relative to it."""
    given = ["--scans", "scans", "--predictions", "predictions", *more]
    paths = [str(folder / word) if (folder / word).exists() else word for word in given]
    return report(["--out", str(folder / "report.html"), *paths])


def _sample(time_s: float, gpu_mib: float | None, peak_mib: float) -> dict[str, Any]:
    return {
        "record": "sample",
        "phase": "end" if time_s == 10 else "run",
        "monotonic_s": time_s,
        "unix_s": START_S + time_s,
        "host_user_s": time_s,
        "host_system_s": 0.0,
        "host_idle_s": time_s,
        "host_busy_s": time_s,
        "host_memory_mib": 4000.0,
        "gpu_mib": gpu_mib,
        "memory_mib": peak_mib * (1 - abs(time_s - 5) / 5),
        "cpu_s": time_s,
    }
