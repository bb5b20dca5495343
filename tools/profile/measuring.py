"""One run from the baseline before it to the files with its figures."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.cases import prepare_output_folder
from app.errors import FolderError
from tools.machine import machine_facts
from tools.profile.recording import RECORDING_FILE, Ending, Header, Recording, RecordingWriter, read_recording
from tools.profile.runner import Job, run_sampled
from tools.profile.sampler import Sampler
from tools.profile.scopes.gpu import Gpu

PROFILE_FILE, PICTURE_FILE, REPORT_FILE = "profile.json", "profile.png", "report.json"


@dataclass(frozen=True)
class Sampling:
    """How runs are sampled.

    Attributes:
        interval_s: distance of samples.
        baseline_s: how long the machine is sampled before a command starts; one sample at least.
        gpu: None samples none.
        no_gpu: why not.
    """

    interval_s: float
    baseline_s: float
    gpu: Gpu | None = None
    no_gpu: str | None = None


def prepare_empty_folder(folder: Path) -> None:
    """Makes a folder for one run.

    Raises:
        FolderError: it cannot be written, or holds something already.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FolderError(
            f"{folder}: is not empty; expected a new or empty folder, so that runs do not mix. Choose another --out"
        )
    prepare_output_folder(folder)


def record(job: Job, sampling: Sampling, folder: Path) -> Ending:
    """How the command ended; its samples are in ``folder`` from the moment at which they are taken."""
    gpu = sampling.gpu
    header = Header(
        command=list(job.command),
        interval_s=sampling.interval_s,
        scope=job.scope.kind if job.scope else "tree",
        cores=os.cpu_count() or 1,
        machine=machine_facts(),
        gpu={"index": gpu.index, "name": gpu.name, "total_mib": gpu.total_mib} if gpu else None,
        no_gpu=sampling.no_gpu,
    )
    with (folder / RECORDING_FILE).open("wb") as stream:
        writer = RecordingWriter(stream, header)
        sampler = Sampler(writer, sampling.interval_s, gpu)
        sampler.take_for(sampling.baseline_s, "before")
        ending = run_sampled(job, sampler)
        writer.ending(ending)
    return ending


def write_profile(folder: Path) -> tuple[Recording, dict[str, Any]]:
    """(what was recorded, its figures), after writing figures and picture beside the samples in ``folder``.

    A report of the app in ``folder`` adds the stages. One that cannot be used costs no figures: they say why.

    Raises:
        FolderError: no samples.
    """
    from tools.profile.plots import draw_profile  # numpy and matplotlib are not loaded while a command is measured
    from tools.profile.summary import summarise
    from tools.profile.timeline import read_timeline

    recording, report = read_recording(folder / RECORDING_FILE), folder / REPORT_FILE
    timeline, no_stages = None, f"no {REPORT_FILE} of the app"
    if report.exists():
        try:
            timeline = read_timeline(report, recording)
        except FolderError as error:
            no_stages = str(error)
    profile = summarise(recording, timeline, None if timeline else no_stages)
    write_text(folder / PROFILE_FILE, json.dumps(profile, indent=2))
    draw_profile(recording, timeline.spans if timeline else [], folder / PICTURE_FILE)
    return recording, profile


def describe(profile: dict[str, Any]) -> str:
    """One line with the figures that tell most."""
    own, ending, gpu = profile["own"], profile["ending"], profile["gpu"]
    memory, core_s = own["memory"], own["cpu"]["core_s"]
    parts = [f"{profile['seconds']:.2f} s", _end(ending)]
    parts += [f"{own['scope']} peak {memory['peak_mib']:.0f} MiB"] if memory else []
    parts += [] if core_s is None else [f"{core_s:.2f} CPU s"]
    parts.append(f"GPU peak {gpu['peak_mib']:.0f} MiB" if gpu else f"no GPU curve ({_no_gpu(profile)})")
    if stages := profile["stages"]:
        keys = {"most_memory_in": "most memory", "memory_peak_in": "its peak", "most_cpu_in": "most CPU"}
        parts += [f"{text} in {stages[key]}" for key, text in keys.items() if stages[key]]
    return ", ".join(parts)


def _end(ending: dict[str, Any] | None) -> str:
    if ending is None:
        return "profiler killed"
    stopped = {"exit": "", "timeout": "timed out, ", "signal": "interrupted, "}[ending["reason"]]
    return f"{stopped}exit code {ending['exit_code']}"


def _no_gpu(profile: dict[str, Any]) -> str:
    return profile["no_gpu"] or "it never answered"
