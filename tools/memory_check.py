"""Predicted against measured peak memory of the app, one cold process per scan.

``--one-window`` runs the network on the first window only and gives its logits for all others: the memory is that of
a whole run, the time is not. ``--together`` runs all scans in one process, each read ahead while the network works on
the one before: the largest prediction against the peak. A bundle's locator runs, and is made to find organs everywhere,
since predictions do not count on what a crop saves.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from app.backends import network_source
from app.bundle import Bundle, load_bundle
from app.cases import single_case
from app.errors import EXIT_CASE_FAILED, EXIT_OK, AppError, CaseError, FolderError, UsageError
from app.machine_limits import processor_limit
from app.options import Options
from app.progress import SilentProgress
from app.report import RunRecord, peak_memory_mib
from app.runs import run
from app.sliding_window import Predictor
from app.sources import NetworkSource, NetworkSources
from app.volume import Float32Array
from tools.check_records import prepare_record, write_record
from tools.exit_codes import error_kind, exit_code_of
from tools.machine import machine_facts

_ROOT = Path(__file__).resolve().parent.parent
_LARGEST_DEVIATION = 0.15
_RECORDED = ("backend", "precision", "mode", "one_window", "uncertainty", "together")


@dataclass(frozen=True)
class Comparison:
    """One scan.

    Attributes:
        stage: the one that the prediction takes for the largest.
        strategy: see ``app.memory``.
        deviation: predicted / measured - 1.
        measured_mib: VmHWM at the end of the process.
    """

    scan: str
    shape_zyx: tuple[int, int, int]
    network_shape_zyx: tuple[int, int, int]
    predicted_mib: float
    stage: str
    strategy: str
    measured_mib: float
    deviation: float


class FirstWindowOnly:
    """A predictor that gives the first window's logits for every window."""

    def __init__(self, predictor: Predictor) -> None:
        self.backend, self.device, self.precision = predictor.backend, predictor.device, predictor.precision
        self._predictor = predictor
        self._logits: Float32Array | None = None

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        if self._logits is None:
            self._logits = self._predictor.predict(tile)
        return self._logits


class OrgansEverywhere:
    """A locator's predictor that takes all that it sees for the first organ, after as much work as ever."""

    def __init__(self, predictor: Predictor) -> None:
        self.backend, self.device, self.precision = predictor.backend, predictor.device, predictor.precision
        self._predictor = predictor

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        logits = self._predictor.predict(tile)
        logits[...] = 0
        logits[1] = 1
        return logits


def _wrapped(source: NetworkSource, wrap: Callable[[Predictor], Predictor]) -> NetworkSource:
    def load() -> tuple[Predictor, tuple[str, ...]]:
        predictor, warnings = source.load()
        return wrap(predictor), warnings

    return replace(source, load=load)


def main(argv: list[str] | None = None) -> int:
    """0 if every scan was measured and every prediction is within 15 % of that, else 1."""
    words = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(words)
    return exit_code_of(lambda: _check(arguments, words), "interrupted; nothing was written")


def _check(arguments: argparse.Namespace, words: list[str]) -> int:
    bundle = load_bundle(arguments.bundle)
    if missing := [str(scan) for scan in arguments.scans if not scan.exists()]:
        raise FolderError(f"{', '.join(missing)}: no such scan")
    if arguments.out:
        prepare_record(arguments.out)
    arguments.mode = arguments.mode or bundle.plan.mode
    if arguments.measure:
        print(json.dumps(asdict(_measure(arguments))))
        return EXIT_OK
    groups = [arguments.scans] if arguments.together else [[scan] for scan in arguments.scans]
    comparisons = [found for scans in groups if (found := _attempt(arguments, scans))]
    if not comparisons:
        return EXIT_CASE_FAILED
    record = {
        "schema_version": 2,
        "command": shlex.join(["python", "-m", "tools.memory_check", *words]),
        "machine": machine_facts(),
        "bundle": bundle.plan.name,
        "sha256": bundle.sha256,
        **{name: getattr(arguments, name) for name in _RECORDED},
        "scans": comparisons,
    }
    table = markdown(record)
    print(table, end="")
    if arguments.out:
        write_record(arguments.out, record, table)
    holds = all(abs(found["deviation"]) <= _LARGEST_DEVIATION for found in comparisons)
    return EXIT_OK if holds and len(comparisons) == len(groups) else EXIT_CASE_FAILED


def _attempt(arguments: argparse.Namespace, scans: list[Path]) -> dict[str, Any] | None:
    """The comparison of these scans, or None if one cannot be segmented: the others go on."""
    try:
        return _measure_in_new_process(arguments, scans)
    except CaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return None


def markdown(record: dict[str, Any]) -> str:
    """A line for each process: shapes, what was predicted, what was measured."""
    lines = [f"`{record['command']}`", ""]
    how = f"Bundle {record['bundle']}; {record['backend']}, {record['precision']}, {record['mode']}"
    lines += [f"{how} ({record['machine']['cpu']}).", ""]
    lines += ["| scan | voxels (z, y, x) | network grid | predicted MiB | in stage | measured MiB | deviation |"]
    lines += ["|---|---|---|---:|---|---:|---:|"]
    for found in record["scans"]:
        shapes = " | ".join("x".join(map(str, found[key])) for key in ("shape_zyx", "network_shape_zyx"))
        lines.append(
            f"| {found['scan']} | {shapes} | {found['predicted_mib']:.0f} | {found['stage']} | "
            f"{found['measured_mib']:.0f} | {100 * found['deviation']:+.1f} % |"
        )
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.memory_check", description=__doc__)
    parser.add_argument("scans", type=Path, nargs="+", metavar="SCAN")
    parser.add_argument("--bundle", type=Path, default=_ROOT / "weights" / "default", metavar="DIR")
    parser.add_argument("--backend", choices=("openvino", "onnxruntime", "torch"), default="openvino")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32")
    parser.add_argument("--mode", choices=("fastest", "normal"), help="default: the bundle's")
    parser.add_argument("--uncertainty", action="store_true", help="run the bundle's twin too")
    parser.add_argument("--together", action="store_true", help="all scans in one process")
    parser.add_argument("--one-window", action="store_true", help="run the network on one window only")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the comparison, and FILE.md")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # in the new process
    return parser


def _measure_in_new_process(arguments: argparse.Namespace, scans: list[Path]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tools.memory_check", "--measure", *(str(scan.resolve()) for scan in scans)]
    command += ["--bundle", str(arguments.bundle.resolve()), "--backend", arguments.backend, "--mode", arguments.mode]
    command += ["--precision", arguments.precision]
    command += ["--one-window"] if arguments.one_window else []
    command += ["--uncertainty"] if arguments.uncertainty else []
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise error_kind(done.returncode)(f"{', '.join(map(str, scans))}: not measured; the message is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(arguments: argparse.Namespace) -> Comparison:
    """Segments the scans in this process."""
    sources, options = _sources(arguments)
    record = RunRecord(options={})
    with tempfile.TemporaryDirectory() as folder:
        cases = [single_case(scan, Path(folder) / f"{index}.nii.gz") for index, scan in enumerate(arguments.scans)]
        run(cases, sources, options, SilentProgress(), record)
    measured_mib = peak_memory_mib()
    if measured_mib is None:
        raise AppError("this kernel does not tell the peak memory of a process (VmHWM in /proc/self/status)")
    needs = []
    for done in record.cases:
        if not (done.memory and done.shape_zyx and done.network_shape_zyx):
            raise CaseError(f"{done.input}: {done.error}")
        needs.append((done.memory, done.shape_zyx, done.network_shape_zyx))
    memory, shape, network_shape = max(needs, key=lambda need: need[0].need_mib)
    return Comparison(
        scan=", ".join(scan.name for scan in arguments.scans),
        shape_zyx=shape,
        network_shape_zyx=network_shape,
        predicted_mib=memory.need_mib,
        stage=memory.stage,
        strategy=memory.strategy,
        measured_mib=measured_mib,
        deviation=memory.need_mib / measured_mib - 1,
    )


def _sources(arguments: argparse.Namespace) -> tuple[NetworkSources, Options]:
    """The networks of the bundle, and its own way to run them."""
    bundle = load_bundle(arguments.bundle)
    if arguments.uncertainty and bundle.twin is None:
        raise UsageError(f"--uncertainty: {bundle.folder} has no twin")
    crop = bundle.plan.shortcuts.crop

    def source(part: Bundle) -> NetworkSource:
        return network_source(part, arguments.backend, "cpu", arguments.precision, processor_limit())

    segmenter = source(bundle)
    twin = source(bundle.twin) if arguments.uncertainty and bundle.twin else None
    if arguments.one_window:
        segmenter = _wrapped(segmenter, FirstWindowOnly)
        twin = _wrapped(twin, FirstWindowOnly) if twin else None
    locator = None
    if crop == "organs" and bundle.locator:
        locator = _wrapped(source(bundle.locator), OrgansEverywhere)
    options = Options(mode=arguments.mode, spacing=bundle.plan.spacing.enforce, crop=crop)
    return NetworkSources(segmenter, locator, twin), options


if __name__ == "__main__":
    sys.exit(main())
