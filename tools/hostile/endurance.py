"""Hundreds of cases in one process: whether memory, threads and file handles stay what they are."""

import gc
import shutil
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.backends import network_source
from app.bundle import load_bundle
from app.cases import find_cases
from app.machine_limits import resident_bytes
from app.options import Options
from app.progress import SilentProgress
from app.report import RunRecord
from app.runs import run
from app.sources import NetworkSources
from tools.hostile.workshop import make_workshop

CASES = 500
FEWEST_CASES = 2  # a line needs two points
STEEPEST_MIB = 0.1
_SETTLING = 0.2  # of the cases: caches of every grid fill, the allocator finds its size
_BAD_EVERY = 25  # a case that fails, among those that do not


@dataclass(frozen=True)
class Endurance:
    """What a long run showed.

    Attributes:
        cases, failed: how many ran, and how many of them were made to fail.
        slope_mib: resident memory gained a case, least squares over all but the first fifth.
        first_mib, last_mib: resident memory after that fifth and at the end.
        threads, handles: the different numbers seen after that fifth.
        failures: what was not as expected.
    """

    cases: int
    failed: int
    slope_mib: float
    first_mib: float
    last_mib: float
    threads: tuple[int, ...]
    handles: tuple[int, ...]
    failures: tuple[str, ...]


class _Samples(SilentProgress):
    """Looks at the process after every case."""

    def __init__(self) -> None:
        self.resident_mib: list[float] = []
        self.threads: list[int] = []
        self.handles: list[int] = []

    def finish_case(self) -> None:
        """Takes a sample."""
        self.resident_mib.append(resident_bytes() / 2**20)
        self.threads.append(sum(1 for _ in Path("/proc/self/task").iterdir()))
        self.handles.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))


def endure(cases: int) -> dict[str, Any]:
    """Segments so many phantoms in this process, copies of five, and says what became of it."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        shop = make_workshop(Path(folder))
        inputs, outputs = Path(folder) / "many", Path(folder) / "many_labels"
        for each in (inputs, outputs):
            each.mkdir()
        scans = sorted(shop.inputs.iterdir())
        for index in range(cases):
            bad = index % _BAD_EVERY == _BAD_EVERY - 1
            target = inputs / f"{index:04d}_0000.nii.gz"
            if bad:
                target.write_bytes(scans[0].read_bytes()[:-20])
            else:
                shutil.copy(scans[index % len(scans)], target)
        samples, record = _Samples(), RunRecord(options={})
        bundle = load_bundle(shop.bundle)
        options = Options("normal", "off", read_ahead=False)  # what is open between two cases is looked at
        gc.collect()
        sources = NetworkSources(network_source(bundle, "openvino", "cpu", "fp32", 1))
        run(find_cases(inputs, outputs), sources, options, samples, record)
        found = _conclude(samples, record, cases)
        written = len(list(outputs.iterdir()))
    expected = cases - cases // _BAD_EVERY
    if written != expected:
        found["failures"] = (*found["failures"], f"{written} label maps; expected {expected}")
    return found


def slope(values: npt.ArrayLike) -> float:
    """Growth a step, least squares: [3, 5, 7] grow by 2."""
    heights = np.asarray(values, dtype=np.float64)
    return float(np.polyfit(np.arange(len(heights)), heights, 1)[0])


def _conclude(samples: _Samples, record: RunRecord, cases: int) -> dict[str, Any]:
    settled = round(_SETTLING * cases)
    resident = samples.resident_mib[settled:]
    threads, handles = (tuple(sorted(set(seen[settled:]))) for seen in (samples.threads, samples.handles))
    growth = slope(resident)
    failures = []
    if growth >= STEEPEST_MIB:
        failures.append(f"{growth:.3f} MiB a case; expected less than {STEEPEST_MIB}")
    for name, seen in (("threads", threads), ("file handles", handles)):
        if len(seen) != 1:
            failures.append(f"{seen} {name}; expected one number")
    if len(samples.resident_mib) != cases or threading.active_count() > 2:
        failures.append(f"{len(samples.resident_mib)} cases, {threading.active_count()} threads at the end")
    found = Endurance(
        cases, record.count("failed"), growth, resident[0], resident[-1], threads, handles, tuple(failures)
    )
    return asdict(found)


def main() -> int:
    """``python -m tools.hostile.endurance N FILE``: in a process of its own, with nothing before it."""
    import json

    Path(sys.argv[2]).write_text(json.dumps(endure(int(sys.argv[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
