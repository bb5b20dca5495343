"""The record of a run: what was done to each case, how long it took, what was found."""

import json
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from app import __version__
from app.atomic_files import write_text
from app.earlier_report import EarlierRun, read_earlier_runs, without_redone
from app.errors import CaseError, FolderError
from app.memory import MemoryRecord
from app.plausibility import Findings
from app.volume import Shape, Vector

logger = logging.getLogger(__name__)

REPORT_SCHEMA_VERSION = 1

Item = TypeVar("Item")


@dataclass(frozen=True)
class Span:
    """A stretch of time in which one stage ran, in seconds since 1970 (Unix time): other programs can place it."""

    stage: str
    start_unix_s: float
    end_unix_s: float


class StageClock:
    """Adds up the seconds of the named stages of one case; a stage may be entered many times.

    A stage entered within another one interrupts it: read 0 to 2 s with load within it from 1 to 1.5 s gives read
    1.5 s and load 0.5 s, in three spans.

    Attributes:
        seconds: by stage.
        spans: in the order in which they ended; they never overlap.
    """

    def __init__(self, case_id: str = "") -> None:
        self.seconds: dict[str, float] = {}
        self.spans: list[Span] = []
        self._case_id = case_id
        self._entered: list[str] = []
        self._since = 0.0
        self._unix_at_zero_s = time.time() - time.perf_counter()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Counts the time within the block to ``stage``."""
        self._end_span()
        self._entered.append(stage)
        try:
            yield
        finally:
            self._end_span()
            self._entered.pop()

    def measure_items(self, stage: str, items: Iterator[Item]) -> Iterator[Item]:
        """Passes ``items`` on and counts the time that it takes to make them."""
        while True:
            with self.measure(stage):
                item = next(items, None)
            if item is None:
                return
            yield item

    def log(self, stage: str, shape_zyx: Shape, spacing_zyx_mm: Vector) -> None:
        """Logs a finished stage: the grid that it worked on and its seconds so far."""
        shape = "x".join(map(str, shape_zyx))
        spacing = "x".join(f"{length:.3g}" for length in spacing_zyx_mm)
        logger.info("%s: %s %s at %s mm (z, y, x), %.2f s", self._case_id, stage, shape, spacing, self.seconds[stage])

    def _end_span(self) -> None:
        """Counts the time since the last call to the stage that is running, if there is one."""
        now = time.perf_counter()
        if self._entered:
            stage = self._entered[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
            self.spans.append(Span(stage, self._unix_at_zero_s + self._since, self._unix_at_zero_s + now))
        self._since = now


@dataclass
class CaseRecord:
    """One case of the report.

    Attributes:
        status: ``skipped`` means that the label map was there already, ``not_begun`` that the run ended before.
        error: why it failed, as logged.
        warnings: about the file and the scan.
        shape_zyx, spacing_zyx_mm: as stored.
        network_shape_zyx, network_spacing_zyx_mm: of the grid that the network saw.
        windows: tiles, not counting mirrored passes.
        shortcut_share: see ``Restoration``.
        memory: how the case was made to fit, with the next scan if that was read ahead; None if its header could not
            be read.
        seconds: by stage: read (waiting, if it was read ahead; and the header of the next scan), locate, preprocess,
            load (waiting for a network), network, restore, postprocess, twin, write.
        spans: when each stage ran; network and restore take turns, slab by slab. The next scan may be read beside them.
        volumes_ml: by organ; 0 is an organ that was not found.
        agreement: by organ, DSC between the label maps of both networks, null if neither found it; null without
            ``--uncertainty``, and where there was no memory for two.
        plausibility: what warnings about wrong but valid input were based on.
    """

    case_id: str
    input: str
    output: str
    status: Literal["segmented", "skipped", "failed", "not_begun"] = "failed"
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    shape_zyx: Shape | None = None
    spacing_zyx_mm: Vector | None = None
    network_shape_zyx: Shape | None = None
    network_spacing_zyx_mm: Vector | None = None
    windows: int | None = None
    shortcut_share: float | None = None
    memory: MemoryRecord | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float | None] | None = None
    plausibility: Findings | None = None


@dataclass
class RunRecord:
    """The whole report.

    Attributes:
        network: backend, device and precision that ran; None if it was never loaded.
        network_load_s: seconds to load it and the locator, in parallel to reading and resampling the first scan.
        network_load_span: when that was.
        threads: of the network on a CPU.
        error, exit_code: why the run ended early; None as long as it has not ended.
        earlier_runs: see ``earlier_report``.
        peak_memory_mib: largest resident memory of this process (VmHWM); None where the kernel does not tell.
    """

    options: dict[str, Any]
    bundle: dict[str, str] = field(default_factory=dict)
    network: dict[str, str] | None = None
    network_load_s: float | None = None
    network_load_span: Span | None = None
    threads: int | None = None
    warnings: list[str] = field(default_factory=list)
    cases: list[CaseRecord] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None
    exit_code: int | None = None
    peak_memory_mib: float | None = None
    earlier_runs: list[EarlierRun] = field(default_factory=list)
    schema_version: int = REPORT_SCHEMA_VERSION
    app_version: str = __version__
    machine: str = field(default_factory=platform.node)

    def count(self, status: str) -> int:
        """How many cases ended so."""
        return sum(case.status == status for case in self.cases)

    def outcome(self) -> str:
        """Which cases are done, for whoever ended the run: "2 of 5 cases are done (a, b), not c, d, e"."""
        done = [case.case_id for case in self.cases if case.status in ("segmented", "skipped")]
        others = [case.case_id for case in self.cases if case.status not in ("segmented", "skipped")]
        listed = f" ({', '.join(done)})" if done else ""
        return f"{len(done)} of {len(self.cases)} cases are done{listed}{', not ' if others else ''}{', '.join(others)}"

    def carry_on(self, path: Path) -> None:
        """Takes over what the report at ``path`` says, which this one will replace.

        Raises:
            FolderError: it cannot be read or renamed.
        """
        try:
            self.earlier_runs = read_earlier_runs(path, self.schema_version)
        except OSError as error:
            raise FolderError(f"{path}: cannot be read ({error.strerror or error}); choose another --report") from error

    def write(self, path: Path) -> None:
        """Writes the report as JSON, all at once or not at all.

        Raises:
            FolderError: it cannot be written, or another run is writing it.
        """
        redone = {case.output for case in self.cases if case.status == "segmented"}
        self.earlier_runs = without_redone(self.earlier_runs, redone)
        self.peak_memory_mib = peak_memory_mib()
        text = json.dumps(asdict(self), indent=2, default=str)
        try:
            write_text(path, text)
        except CaseError as error:  # no case failed
            raise FolderError(str(error)) from error


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process so far; None where the kernel does not tell (gVisor's, say).

    Read from ``/proc``: the kernel's ``ru_maxrss`` starts from that of the program that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None
