"""Predicted against measured peak memory of the app, one cold process per scan.

``--one-window`` runs the network on the first window only and gives its logits for all others: the memory is that of
a whole run, the time is not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from app.backends import network_source
from app.bundle import Bundle, load_bundle
from app.cases import single_case
from app.machine_limits import processor_limit
from app.options import Options
from app.progress import SilentProgress
from app.report import RunRecord, peak_memory_mib
from app.runs import run
from app.sliding_window import Predictor
from app.sources import NetworkSource, NetworkSources
from app.volume import Float32Array

_ROOT = Path(__file__).resolve().parent.parent
_LARGEST_DEVIATION = 0.15


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


def _first_window_only(source: NetworkSource) -> tuple[Predictor, tuple[str, ...]]:
    predictor, warnings = source.load()
    return FirstWindowOnly(predictor), warnings


def main(argv: list[str] | None = None) -> int:
    """0 if every prediction is within 15 % of what was measured, else 1."""
    arguments = _parser().parse_args(argv)
    if arguments.measure:
        print(json.dumps(asdict(_measure(arguments, arguments.scans[0]))))
        return 0
    comparisons = [_measure_in_new_process(arguments, scan) for scan in arguments.scans]
    print("| scan | voxels (z, y, x) | network grid | predicted MiB | in stage | measured MiB | deviation |")
    print("|---|---|---|---|---|---|---|")
    for found in comparisons:
        shapes = " | ".join("x".join(map(str, found[key])) for key in ("shape_zyx", "network_shape_zyx"))
        print(
            f"| {found['scan']} | {shapes} | {found['predicted_mib']:.0f} | {found['stage']} | "
            f"{found['measured_mib']:.0f} | {100 * found['deviation']:+.1f} % |"
        )
    if arguments.out:
        record = {
            "machine": platform.node(),
            "bundle": str(arguments.bundle),
            "backend": arguments.backend,
            "precision": arguments.precision,
            "mode": arguments.mode,
            "one_window": arguments.one_window,
            "uncertainty": arguments.uncertainty,
            "scans": comparisons,
        }
        arguments.out.write_text(json.dumps(record, indent=2))
    return int(any(abs(found["deviation"]) > _LARGEST_DEVIATION for found in comparisons))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.memory_check", description=__doc__)
    parser.add_argument("scans", type=Path, nargs="+", metavar="SCAN")
    parser.add_argument("--bundle", type=Path, default=_ROOT / "weights" / "default", metavar="DIR")
    parser.add_argument("--backend", choices=("openvino", "onnxruntime", "torch"), default="openvino")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="fp32")
    parser.add_argument("--mode", choices=("fastest", "normal"), default="fastest")
    parser.add_argument("--uncertainty", action="store_true", help="run the bundle's twin too")
    parser.add_argument("--one-window", action="store_true", help="run the network on one window only")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the comparison")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # in the new process
    return parser


def _measure_in_new_process(arguments: argparse.Namespace, scan: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tools.memory_check", "--measure", str(scan.resolve())]
    command += ["--bundle", str(arguments.bundle.resolve()), "--backend", arguments.backend, "--mode", arguments.mode]
    command += ["--precision", arguments.precision]
    command += ["--one-window"] if arguments.one_window else []
    command += ["--uncertainty"] if arguments.uncertainty else []
    done = subprocess.run(command, cwd=_ROOT, env=dict(os.environ), stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(arguments: argparse.Namespace, scan: Path) -> Comparison:
    """Segments the scan in this process."""
    bundle = load_bundle(arguments.bundle)

    def source(part: Bundle | None) -> NetworkSource | None:
        if part is None:
            return None
        found = network_source(part, arguments.backend, "cpu", arguments.precision, processor_limit())
        return replace(found, load=partial(_first_window_only, found)) if arguments.one_window else found

    if arguments.uncertainty and bundle.twin is None:
        raise SystemExit(f"--uncertainty: {bundle.folder} has no twin")
    crop = bundle.plan.shortcuts.crop
    segmenter = source(bundle)
    assert segmenter is not None
    sources = NetworkSources(
        segmenter,
        source(bundle.locator if crop == "organs" else None),
        source(bundle.twin if arguments.uncertainty else None),
    )
    record = RunRecord(options={})
    options = Options(mode=arguments.mode, spacing=bundle.plan.spacing.enforce, crop=crop)
    with tempfile.TemporaryDirectory() as folder:
        case = single_case(scan, Path(folder) / "labels.nii.gz")
        progress = SilentProgress()
        run([case], sources, options, progress, record)
    (done,) = record.cases
    if not (done.memory and done.shape_zyx and done.network_shape_zyx):
        raise SystemExit(f"{scan}: {done.error}")
    measured_mib = peak_memory_mib()
    return Comparison(
        scan=scan.name,
        shape_zyx=done.shape_zyx,
        network_shape_zyx=done.network_shape_zyx,
        predicted_mib=done.memory.need_mib,
        stage=done.memory.stage,
        strategy=done.memory.strategy,
        measured_mib=measured_mib,
        deviation=done.memory.need_mib / measured_mib - 1,
    )


if __name__ == "__main__":
    sys.exit(main())
