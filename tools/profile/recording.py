"""The file of samples: written as they come, so that a killed run keeps its curves; read back for figures and plots."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from app.errors import FolderError
from tools.profile.scopes import ScopeKind

RECORDING_FILE = "samples.jsonl"
RECORDING_SCHEMA_VERSION = 1

Phase = Literal["before", "run", "end"]
Reason = Literal["exit", "timeout", "signal"]


@dataclass(frozen=True)
class Header:
    """What was run, and how it was sampled; the file's first line.

    Attributes:
        interval_s: nominal distance of samples.
        scope: what ``memory_mib`` and ``cpu_s`` of a sample are of.
        cores: of the host.
        gpu: index, name and total_mib; None if there is none.
        no_gpu: why there is none.
    """

    command: list[str]
    interval_s: float
    scope: ScopeKind
    cores: int
    machine: dict[str, Any] = field(default_factory=dict)
    gpu: dict[str, Any] | None = None
    no_gpu: str | None = None
    schema_version: int = RECORDING_SCHEMA_VERSION


@dataclass(frozen=True)
class Sample:
    """One reading of everything. Times in seconds are cumulative: only their differences mean something.

    Attributes:
        phase: before the command started, while it ran, or one more when it had ended.
        monotonic_s: a clock that nobody sets.
        unix_s: seconds since 1970.
        host_user_s, host_system_s, host_idle_s, host_busy_s: see ``HostCpu``.
        host_memory_mib: see ``host_memory_mib``.
        gpu_mib: see ``Gpu``.
        memory_mib, cpu_s: of the process tree or the container; see ``Usage``.
    """

    phase: Phase
    monotonic_s: float
    unix_s: float
    host_user_s: float
    host_system_s: float
    host_idle_s: float
    host_busy_s: float
    host_memory_mib: float
    gpu_mib: float | None
    memory_mib: float | None
    cpu_s: float | None


@dataclass(frozen=True)
class Ending:
    """How the command ended; the file's last line.

    Attributes:
        exit_code: as a shell gives it: 128 + n for signal n.
        reason: by itself, by the time-out, or because the profiler was told to stop.
        start_unix_s, start_monotonic_s: just before it was started.
        wall_s: from then until it had ended.
        command_cpu_s: CPU time of the command and the children that it waited for, as the kernel counts it.
        sampler_cpu_s: CPU time that the profiler itself took meanwhile.
        skipped_samples: moments at which the profiler should have sampled and was not given the CPU.
    """

    exit_code: int
    reason: Reason
    start_unix_s: float
    start_monotonic_s: float
    wall_s: float
    command_cpu_s: float
    sampler_cpu_s: float
    skipped_samples: int


@dataclass(frozen=True)
class Recording:
    """A file of samples; ``ending`` is None if the profiler was killed."""

    header: Header
    samples: list[Sample]
    ending: Ending | None

    def during(self, *phases: Phase) -> list[Sample]:
        """The samples of these phases."""
        return [sample for sample in self.samples if sample.phase in phases]

    @property
    def seconds(self) -> float:
        """Wall time of the command; that between its first and last sample if the profiler was killed."""
        if self.ending:
            return self.ending.wall_s
        running = self.during("run")
        return running[-1].monotonic_s - running[0].monotonic_s

    @property
    def start_unix_s(self) -> float:
        """When the command was started; its first sample if the profiler was killed."""
        return self.ending.start_unix_s if self.ending else self.during("run")[0].unix_s


class RecordingWriter:
    """Appends lines to the file, each handed to the kernel at once.

    Raises:
        FolderError: from every method, when the disk is full.
    """

    def __init__(self, stream: IO[bytes], header: Header) -> None:
        self._stream = stream
        self._write("header", header)

    def sample(self, sample: Sample) -> None:
        """Appends a sample."""
        self._write("sample", sample)

    def ending(self, ending: Ending) -> None:
        """Appends the last line."""
        self._write("ending", ending)

    def _write(self, kind: str, record: Header | Sample | Ending) -> None:
        try:
            os.write(self._stream.fileno(), json.dumps({"record": kind, **vars(record)}).encode() + b"\n")
        except OSError as error:
            raise FolderError(f"{self._stream.name}: cannot be written ({error.strerror}); free space") from error


_KINDS: dict[str, Callable[..., Header | Sample | Ending]] = {"header": Header, "sample": Sample, "ending": Ending}


def read_recording(path: Path) -> Recording:
    """The content of a file of samples; a last line that was cut off by a kill is left out.

    Raises:
        FolderError: there is no such file, or it is not one of these.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line's end is empty, or cut off
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror}; expected the {RECORDING_FILE} of an earlier run") from error
    records: list[Header | Sample | Ending] = []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            records.append(_KINDS[content.pop("record")](**content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FolderError(f"{path}: line {number} is not of a recording; expected {RECORDING_FILE}") from error
    if not records or not isinstance(records[0], Header):
        raise FolderError(f"{path}: the first line is not a recording's header; expected {RECORDING_FILE}")
    if records[0].schema_version != RECORDING_SCHEMA_VERSION:
        found, expected = records[0].schema_version, RECORDING_SCHEMA_VERSION
        raise FolderError(f"{path}: schema version {found}; this profiler reads {expected}. Use the one that wrote it")
    samples = [record for record in records if isinstance(record, Sample)]
    return Recording(records[0], samples, next((found for found in records if isinstance(found, Ending)), None))
