"""Prepares and measures one run of a row; every run is a cold process of its own."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from app.bundle import CARD_FILE, HASH_FILE, Bundle
from app.errors import AppError
from app.plan import Plan
from app.sliding_window import count_windows
from app.spacing import network_grid
from tools.bench.networks import bench_bundle, write_peer_spec
from tools.bench.rows import NetworkName, Row
from tools.bench.scans import prepare_scan
from tools.bench.summary import STAGES
from tools.machine import ROOT, digest_of, machine_facts
from tools.parity.compare import compare_label_maps
from tools.parity.environments import ensure_environment, runner, variables
from tools.parity.measure import run_measured
from tools.parity.peer_models import Peer
from tools.profile.scopes.host import host_cpu

# Runs made with another code than this, which is measured or measures, are not kept.
_MEASURED = (
    *("app/**/*.py", "tools/bench/*.py", "tools/parity/run_*.py", "tools/parity/requirements-*.txt"),
    *(f"tools/parity/{name}.py" for name in ("compare", "environments", "measure", "peer_models")),
    "tools/profile/scopes/host.py",
)
_DRAWING = {"plots.py", "table.py", "summary.py", "targets.py", "__main__.py"}  # of tools/bench: change no measurement

_NOTHING = {"wall_s": None, "cpu_s": None, "peak_rss_mib": None, "others_cores": None, "windows": None}


@dataclass
class Workshop:
    """Folders of a bench, and what this process has prepared in them.

    Attributes:
        work: parent of scans, bundles, models, label maps and logs.
        data: folder with the real scans.
        default: bundle of the default network.
        environments: where the peers' environments are, or are made.
        pip_options: given to pip when they are made.
    """

    work: Path
    data: Path
    default: Path
    environments: Path
    pip_options: str = ""
    _models: dict[str, Path] = field(default_factory=dict)
    _label_maps: set[Path] = field(default_factory=set)

    def digest(self, row: Row) -> str:
        """SHA-256 of the code, the network and the machine: what runs that are compared have in common."""
        lines = (self._bundle(row.network).folder / HASH_FILE).read_text(encoding="utf-8").splitlines()
        hashes = "\n".join(line for line in lines if not line.endswith(CARD_FILE)).encode()
        facts = machine_facts()
        place = json.dumps([facts[name] for name in ("host", "cpu", "cores", "kernel", "packages")])
        return sha256(digest_of(_MEASURED, "bench", _DRAWING).encode() + hashes + place.encode()).hexdigest()

    def run(self, row: Row) -> dict[str, Any]:
        """The record of one run; ``error`` says why it failed, and then the rest is null."""
        try:
            measure = {"window": self._window, "app": self._app}.get(row.program, self._peer)
            command, expected, read = measure(row)
            self._label_maps.discard(expected)
            shutil.rmtree(expected.parent, ignore_errors=True)
            expected.parent.mkdir(parents=True)
            started = datetime.now(UTC).isoformat(timespec="milliseconds")
            found = self._child(command, row.name.replace("/", "-"), expected)
            return {"started": started, **found, **read(found["wall_s"]), "error": None}
        except AppError as error:
            return {"started": datetime.now(UTC).isoformat(timespec="milliseconds"), **_NOTHING, "error": str(error)}

    def scan_facts(self, name: str) -> dict[str, Any]:
        """Size of a scan, for the results."""
        path = prepare_scan(name, self.data, self.work / "scans")
        shape, spacing = _grid(path)
        return {"shape_zyx": shape, "spacing_zyx_mm": spacing, "file_mib": path.stat().st_size / 2**20}

    def _window(self, row: Row) -> "_Job":
        out = self._out(row) / "window.json"
        command = [sys.executable, "-m", "tools.bench.window", str(self._bundle(row.network).folder)]
        command += ["--precision", row.precision, "--out", str(out)]
        return command, out, lambda _: dict(json.loads(out.read_text(encoding="utf-8")))

    def _app(self, row: Row) -> "_Job":
        scan, report = self._scan(row), self._out(row) / "report.json"
        out = self._out(row) / f"{row.scan}.nii.gz"
        command = [sys.executable, "-m", "app", "--bundle", str(self._bundle(row.network).folder), "--quiet"]
        command += ["--input", str(scan), "--output", str(out), "--report", str(report), "--spacing", row.spacing]
        command += ["--crop", "none"] if row.crop == "none" else []
        command += ["--backend", "openvino", "--device", "cpu", "--precision", row.precision, "--mode", row.mode]

        def read(wall_s: float) -> dict[str, Any]:
            self._label_maps.add(out)
            facts = facts_of_report(json.loads(report.read_text(encoding="utf-8")), wall_s)
            return {**facts, "worst_against_fp32": self._worst_against_fp32(row, out)}

        return command, out, read

    def _worst_against_fp32(self, row: Row, label_map: Path) -> dict[str, Any] | None:
        """The organ that differs most from fp32's label map of that scan, null without organs; None without that."""
        reference = self._out(replace(row, precision="fp32")) / label_map.name
        if row.precision == "fp32" or reference not in self._label_maps:
            return None
        found = compare_label_maps(reference, label_map, self._bundle(row.network).plan.labels)
        worst = found.worst_organ()
        organ, dsc = worst or (None, None)
        return {"organ": organ, "dsc": dsc, "different_voxels": found.different}

    def _peer(self, row: Row) -> "_Job":
        assert row.peer is not None
        scan, plan = self._scan(row), self._bundle(row.network).plan
        out = self._out(row) / f"{row.scan}.nii.gz"
        command = [*self._runner(row.peer), "predict", str(self._model(row.peer, row.network)), str(scan.parent)]
        command += [str(out.parent), "--step", f"{plan.sliding_window.tile_step_size:g}"]
        command += ["--mode", row.mode] if row.peer == "v1" else []
        return command, out, lambda _: {"windows": peer_windows(scan, plan)}

    def _out(self, row: Row) -> Path:
        return self.work / "outputs" / row.name

    def _scan(self, row: Row) -> Path:
        assert row.scan is not None
        return prepare_scan(row.scan, self.data, self.work / "scans")

    def _bundle(self, network: NetworkName) -> Bundle:
        return bench_bundle(network, self.default, self.work / "bundles")

    def _runner(self, peer: Peer) -> list[str]:
        return runner(peer, ensure_environment(peer, self.environments, self.pip_options))

    def _model(self, peer: Peer, network: NetworkName) -> Path:
        """The peer's model folder, written by the peer from our weights; once a process."""
        name = f"{peer}-{network}"
        if name not in self._models:
            folder = self.work / "models" / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            spec = write_peer_spec(peer, self._bundle(network), self.work / "specs" / name)
            self._child([*self._runner(peer), "write", str(spec), str(folder)], f"write-{name}", folder / "fold_0")
            self._models[name] = folder
        return self._models[name]

    def _child(self, command: list[str], log_name: str, expected: Path) -> dict[str, Any]:
        """Wall, CPU and peak memory of a command that must leave ``expected`` behind."""
        log = self.work / "logs" / f"{log_name}.txt"
        busy_before_s = host_cpu().busy_s
        found = asdict(run_measured(command, log, ROOT, variables(self.environments)))
        others_s = host_cpu().busy_s - busy_before_s - found["cpu_s"]
        found["others_cores"] = max(0.0, others_s / found["wall_s"])
        if found.pop("exit_code") != 0 or not expected.exists():
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
            raise AppError(f"{log}: the command failed; expected {expected}. The log ends:\n{tail}")
        return found


# A command, the file that it must leave behind, and what of it is kept, given the wall seconds.
_Job = tuple[list[str], Path, Callable[[float], dict[str, Any]]]


def facts_of_report(report: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """What a run keeps of the app's ``--report``: windows, peak memory as the kernel has it, stages.

    A process does not see its own start and end: ``start_up`` is wall minus the app's own total, imports and reading
    the plan for the most part. ``other`` is what no stage of the app counts.
    """
    (case,) = report["cases"]
    own = {stage: case["seconds"].get(stage, 0.0) for stage in STAGES if stage not in ("start_up", "other")}
    return {
        "windows": case["windows"],
        "app_peak_mib": report["peak_memory_mib"],
        "network_load_s": report["network_load_s"],
        "stages": {"start_up": wall_s - report["seconds"], **own, "other": report["seconds"] - sum(own.values())},
    }


def peer_windows(scan: Path, plan: Plan) -> int:
    """Windows that nnU-Net takes: from the true spacing to the plan's, every axis rounded, v1's and v2's own rule.

    Not counted: its crop of a frame of 0 HU, which scans with air around the patient do not have.
    """
    shape, spacing = _grid(scan)
    grid = network_grid(shape, spacing, 0, plan.spacing, "off")
    return count_windows(grid.shape_zyx, plan.sliding_window)


def _grid(scan: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(scan))
    reader.ReadImageInformation()
    x, y, z = reader.GetSize()
    x_mm, y_mm, z_mm = reader.GetSpacing()
    return (z, y, x), (z_mm, y_mm, x_mm)
