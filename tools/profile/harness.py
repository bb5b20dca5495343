"""FLARE's evaluation of running time and memory: one container start per case."""

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from app.errors import DeviceError, FolderError
from tools.profile.container import Container, ContainerStop
from tools.profile.live import LiveLine
from tools.profile.measuring import REPORT_FILE, Sampling, describe, prepare_empty_folder, record, write_profile
from tools.profile.official import case_content, figures, write_case
from tools.profile.recording import Ending
from tools.profile.results import DETAILS, CaseResult, judge, write_results
from tools.profile.runner import Job
from tools.profile.scopes.cgroup import ContainerScope

OUTPUTS = "outputs"

_SCAN_SUFFIX, _CHANNEL_SUFFIX = ".nii.gz", "_0000.nii.gz"
_DOCKER_FAILED = 125
_OPEN_TO_ALL = 0o777  # the organisers' own: a container may run as any user


class Harness:
    """Runs cases and writes the results of each as soon as it has ended.

    Attributes:
        folder: the organisers' files, ``outputs`` with the label maps, ``details``.
        results: of the cases so far.
    """

    def __init__(self, container: Container, sampling: Sampling, out: Path, timeout_s: float, live: bool) -> None:
        """Makes ``OUT/TEAM``; ``live`` shows a line on a terminal.

        Raises:
            DeviceError: no Docker or no such image.
            FolderError: the folder cannot be written, or holds results already.
        """
        self._container, self._sampling, self._timeout_s, self._live = container, sampling, timeout_s, live
        self._facts = {
            "image": container.image,
            "image_id": container.image_id(),
            "team": container.team,
            "limits": container.all_limits(),
            "flags": container.flags,
            "columns": container.protocol.columns,
            "timeout_s": timeout_s,
            "interval_s": sampling.interval_s,
            "no_gpu": sampling.no_gpu,
        }
        self.folder = out.resolve() / container.team
        self.results: list[CaseResult] = []
        prepare_empty_folder(self.folder)

    def run_case(self, scan: Path, label: str) -> CaseResult:
        """Measures one case and writes its files and the tables.

        Raises:
            DeviceError: Docker could not start the container; the case says nothing about the image.
            FolderError: the scan cannot be copied.
        """
        from tools.profile.plots import draw_official  # not loaded while the first container is measured

        stem = stem_of(scan)
        details, outputs = self.folder / DETAILS / stem, self.folder / OUTPUTS
        for folder in (details, outputs):
            folder.mkdir(parents=True, exist_ok=True)
        outputs.chmod(_OPEN_TO_ALL)
        present = _names(outputs)
        with tempfile.TemporaryDirectory(prefix="inputs-", dir=self.folder, ignore_cleanup_errors=True) as name:
            inputs = Path(name)
            inputs.chmod(_OPEN_TO_ALL)
            _copy_scan(scan, inputs)
            ending = self._measure(inputs, outputs, details, label)
            left = _names(inputs) - {scan.name}
        made = {name: is_plain_file(outputs / name) for name in _names(outputs) - present}
        status, notes = judge(ending, label_map_name(scan), made, left)
        recording, profile = write_profile(details)
        content, interval_s = case_content(recording), self._sampling.interval_s
        write_case(content, self.folder / f"{stem}.json")
        draw_official(content, stem, self.folder, interval_s)
        measured = figures(content, self._container.protocol, interval_s)
        self.results.append(CaseResult(scan.name, stem, status, measured, profile, notes))
        write_results(self.folder, self._container, self._facts, self.results)
        return self.results[-1]

    def _measure(self, inputs: Path, outputs: Path, details: Path, label: str) -> Ending:
        """How the container ended; samples, log and the app's report, if it wrote one, are then in ``details``."""
        id_file, log, live = details / "container-id", details / "log.txt", LiveLine(label, self._live)
        gpu = self._sampling.gpu
        with tempfile.TemporaryDirectory(dir=details, ignore_cleanup_errors=True) as name:
            report = Path(name)
            report.chmod(_OPEN_TO_ALL)
            command = self._container.command(inputs, outputs, id_file, report, gpu.index if gpu else None)
            stop, ending = ContainerStop(id_file), None
            job = Job(command, log, self._timeout_s, ContainerScope(id_file), stop, live.show)
            try:
                ending = record(job, self._sampling, details)
            finally:
                live.close()
                stop.finish(ended=ending is not None)
                id_file.unlink(missing_ok=True)
            if ending.exit_code == _DOCKER_FAILED and _docker_complained(log):
                raise DeviceError(f"{log}: Docker could not start the container. It ends:\n{_tail(log)}")
            if is_plain_file(report / REPORT_FILE):
                shutil.copyfile(report / REPORT_FILE, details / REPORT_FILE)
            return ending


def _copy_scan(scan: Path, inputs: Path) -> None:
    """Hands a scan over as the organisers do: a copy, which any user may read."""
    try:
        Path(shutil.copy(scan, inputs)).chmod(_OPEN_TO_ALL)
    except OSError as error:
        reason = error.strerror or error
        raise FolderError(
            f"{scan}: cannot be copied to {inputs} ({reason}); expected a readable file and room in --out"
        ) from error


def _docker_complained(log: Path) -> bool:
    """Whether Docker's client said why there is no container; without that, 125 is the code of predict.sh."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return any(line.startswith("docker: ") for line in text.splitlines())


def find_scans(inputs: Path) -> list[Path]:
    """The ``.nii.gz`` files of a folder, by name; hidden ones, such as macOS leaves beside each, are passed over.

    Raises:
        FolderError: there are none, or results of two would have one name.
    """
    found = (path for path in inputs.glob(f"*{_SCAN_SUFFIX}") if not path.name.startswith("."))
    scans = sorted(path for path in found if path.is_file())
    if not scans:
        raise FolderError(f"{inputs}: no *{_SCAN_SUFFIX} in it; expected a folder with scans as FLARE names them")
    for name_of in (stem_of, label_map_name):
        by_name = defaultdict(list)
        for scan in scans:
            by_name[name_of(scan)].append(scan.name)
        if clash := next((names for names in by_name.values() if len(names) > 1), None):
            raise FolderError(f"{inputs}: {' and '.join(clash)} would give results of one name; rename one of them")
    return scans


def stem_of(scan: Path) -> str:
    """The name up to its first dot, after which the organisers name a case's files."""
    return scan.name.partition(".")[0]


def label_map_name(scan: Path) -> str:
    """``X.nii.gz`` of ``X_0000.nii.gz``; any other name is kept."""
    if scan.name.endswith(_CHANNEL_SUFFIX):
        return scan.name.removesuffix(_CHANNEL_SUFFIX) + _SCAN_SUFFIX
    return scan.name


def is_plain_file(path: Path) -> bool:
    """Whether it is a file itself; what a container's link leads to is another thing here than there."""
    return not path.is_symlink() and path.is_file()


def run_cases(harness: Harness, scans: Sequence[Path]) -> bool:
    """Measures the cases one after another and prints a line for each; False if it was interrupted."""
    start = time.monotonic()
    for done, scan in enumerate(scans):
        left = f", {(time.monotonic() - start) / done * (len(scans) - done):.0f} s to go" if done else ""
        result = harness.run_case(scan, f"[{done + 1}/{len(scans)}{left}] {scan.name}")
        print(f"[{done + 1}/{len(scans)}] {result.stem}: {result.status}, {describe(result.profile)}", flush=True)
        for note in result.notes:
            print(f"    {note}", flush=True)
        if result.status == "interrupted":
            return False
    return True


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
