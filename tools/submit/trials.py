"""Runs of the image through the profiler's harness: as FLARE does it, and hardened."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tools.profile.container import Container
from tools.profile.harness import OUTPUTS, Harness, is_plain_file, label_map_name, run_cases, stem_of
from tools.profile.measuring import Sampling
from tools.profile.results import DETAILS, NO_FILE
from tools.submit.label_map_checks import check_label_maps
from tools.submit.rules import Check, judged
from tools.submit.shell_lint import find_complaints

# Each is one rule; the words win over the protocol's.
HARDENED = {
    "network": ("--network", "none"),
    "shm": ("--shm-size", "64m"),
    "user": ("--user", "1000:1000"),
    "read_only": ("--read-only", "--tmpfs", "/tmp"),
    "capabilities": ("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
}
MEASURED_RULES = ("run", "inputs", "outputs", "grid", "labels", "type")
HARDENED_RULES = ("together", *HARDENED)


@dataclass(frozen=True)
class Trials:
    """How the image is run.

    Attributes:
        container: as FLARE starts it.
        sampling: of the runs that are measured.
        timeout_s: of a case.
        folder: gets one folder a run.
        live: shows a line on a terminal.
    """

    container: Container
    sampling: Sampling
    timeout_s: float
    folder: Path
    live: bool

    def measure(self, scans: Sequence[Path]) -> Harness:
        """FLARE's command on each scan, and nothing else.

        Raises:
            DeviceError: Docker could not start a container.
            KeyboardInterrupt: it was stopped.
        """
        return self._run("flare", (), self.sampling, scans)

    def harden(self, scan: Path) -> list[Check]:
        """One run with all restrictions at once; if it fails, one with each of them, so that its cause has a name.

        Raises:
            DeviceError: Docker could not start a container.
            KeyboardInterrupt: it was stopped.
        """
        good, found = self._try("hardened", [word for words in HARDENED.values() for word in words], scan)
        checks = [judged("together", good, found)]
        if good:
            return checks + [judged(rule, True, "with all at once") for rule in HARDENED]
        for rule, words in HARDENED.items():
            checks.append(judged(rule, *self._try(f"hardened-{rule}", words, scan)))
        return checks

    def _try(self, name: str, flags: Sequence[str], scan: Path) -> tuple[bool, str]:
        result = self._run(name, flags, replace(self.sampling, baseline_s=0.0), [scan]).results[0]
        return result.status == "ok", f"{result.stem}: {'; '.join([result.status, *result.notes])}"

    def _run(self, name: str, flags: Sequence[str], sampling: Sampling, scans: Sequence[Path]) -> Harness:
        print(f"{name}: {' '.join(flags) or 'the command of FLARE'}", flush=True)
        container = replace(self.container, flags=tuple(flags))
        harness = Harness(container, sampling, self.folder / name, self.timeout_s, self.live)
        if not run_cases(harness, scans):
            raise KeyboardInterrupt
        return harness


def choose_scans(scans: Sequence[Path]) -> list[Path]:
    """The first and the largest file; if that is the first, the second largest with it."""
    first, *others = scans
    return [first, *sorted(others, key=lambda scan: scan.stat().st_size)[-1:]]


def check_measured(harness: Harness, scans: Sequence[Path], largest_label: int) -> list[Check]:
    """How FLARE's runs ended, what they left, and their label maps."""
    results, outputs = harness.results, harness.folder / OUTPUTS
    expected = {label_map_name(scan): scan for scan in scans}
    names = {stem_of(scan): name for name, scan in expected.items()}
    bad = [f"{result.stem}: {'; '.join([result.status, *result.notes])}" for result in results if result.status != "ok"]
    good = [names[result.stem] for result in results if result.status == "ok"]
    bad += [f"outputs/{name}: gone, or {NO_FILE}" for name in good if not is_plain_file(outputs / name)]
    left = [f"{result.stem}: {note}" for result in results for note in result.notes if note.startswith("inputs/")]
    strange = sorted(path.name for path in outputs.iterdir() if path.name not in expected)
    pairs = [(outputs / name, scan) for name, scan in expected.items() if is_plain_file(outputs / name)]
    return [
        judged("run", not bad, "; ".join(bad) or f"{len(results)} of {len(results)} ok"),
        judged("inputs", not left, "; ".join(left) or "nothing"),
        judged("outputs", not strange, ", ".join(strange) or "label maps only"),
        *check_label_maps(pairs, largest_label),
    ]


def complaints(harness: Harness) -> list[str]:
    """What the shell did not know in predict.sh, in all logs."""
    logs = (harness.folder / DETAILS / result.stem / "log.txt" for result in harness.results)
    return [line for log in logs for line in find_complaints(log.read_text(encoding="utf-8", errors="replace"))]
