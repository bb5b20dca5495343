"""Runs both sides of a row as cold child processes and keeps what came out."""

import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors.numpy import load

from app.bundle import PLAN_FILE, SAFETENSORS_FILE, load_bundle, write_hashes
from app.errors import AppError
from tools.parity import compare
from tools.parity.environments import ROOT, ensure_environment, runner, variables
from tools.parity.measure import Measurement, run_measured
from tools.parity.peer_models import Peer, write_spec
from tools.parity.rows import Row, peer_model
from tools.parity.scans import prepare_scan

_DEFAULT_BUNDLE = ROOT / "weights" / "default"


@dataclass
class Workshop:
    """Folders of a comparison, and what this process has made in them so far.

    Attributes:
        work: parent of all: models, bundles, scans, label maps, logs.
        data: folder with the real scans.
        environments: parent of the peers' virtual environments.
        pip_options: given to pip.
        threads: for both sides; None leaves it to them.
        again: run the peer anew where its label map is there.
        network_sha256: of plan and weights, on which what is kept depends.
    """

    work: Path
    data: Path
    environments: Path
    pip_options: str = ""
    threads: int | None = None
    again: bool = False
    _done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._bundle = load_bundle(_DEFAULT_BUNDLE)
        self._weights = load(self._bundle.read(SAFETENSORS_FILE))
        both = self._bundle.sha256[PLAN_FILE] + self._bundle.sha256[SAFETENSORS_FILE]
        self.network_sha256 = sha256(both.encode()).hexdigest()

    def run(self, row: Row) -> dict[str, Any]:
        """The record of a row: both measurements, the comparison, whether it counts and what it breaks."""
        scan = prepare_scan(row.scan, self.data, self.work / "scans")
        peer_map, peer = self._peer_prediction(row, scan)
        (file,) = scan.glob("*.nii.gz")
        our_map, ours = self._our_prediction(row, file, self._imported(row), row.name)
        found = compare.compare_label_maps(peer_map, our_map, self._bundle.plan.labels)
        worst = found.worst_organ()
        return {
            "name": row.name,
            "row": asdict(row),
            "network_sha256": self.network_sha256,
            "peer": asdict(peer),
            "ours": asdict(ours),
            "agreement": found.agreement,
            "different_voxels": found.different,
            "voxels": found.voxels,
            "worst_organ": worst and {"organ": worst[0], "dsc": worst[1]},
            "organs_found": found.organs_found,
            "dsc": found.dsc,
            "peer_ml": found.peer_ml,
            "our_ml": found.our_ml,
            "not_counted": compare.why_not_counted(row, found),
            "failures": compare.failures(row, found),
            "float32_sums": self._side_of_float32_sums(row, file, peer_map, our_map) if found.different else None,
        }

    def _side_of_float32_sums(self, row: Row, scan: Path, peer: Path, ours: Path) -> dict[str, int] | None:
        """Who is right where a peer with half-precision sums differs; None for other peers and seeded networks."""
        if row.peer != "v2" or row.seeded:
            return None
        judge, _ = self._our_prediction(row, scan, self._with_float32_sums(row), f"{row.name}-float32-sums")
        return compare.side_with(judge, peer, ours, len(self._bundle.plan.labels))

    def _peer_prediction(self, row: Row, scan: Path) -> tuple[Path, Measurement]:
        """The peer's label map and what it took; kept from an earlier run if it is there."""
        out = self.work / "peer" / self.network_sha256[:8] / row.peer_name
        record = out / "measurement.json"
        label_map = out / f"{row.scan}.nii.gz"
        if record.is_file() and label_map.is_file() and not (self.again and self._first(f"peer {row.peer_name}")):
            return label_map, Measurement(**json.loads(record.read_text(encoding="utf-8")))
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        python = self._environment(row.peer)
        options = ["--step", f"{row.step:g}", *(["--mirror"] if row.mirror else [])]
        options += ["--mode", row.mode] if row.peer == "v1" else []
        command = [*runner(row.peer, python), "predict", str(self._model(row)), str(scan), str(out), *options]
        measurement = self._child(command, f"peer-{row.peer_name}", label_map)
        record.write_text(json.dumps(asdict(measurement)), encoding="utf-8")
        return label_map, measurement

    def _our_prediction(self, row: Row, scan: Path, bundle: Path, name: str) -> tuple[Path, Measurement]:
        label_map = self.work / "ours" / name / f"{row.scan}.nii.gz"
        label_map.parent.mkdir(parents=True, exist_ok=True)
        label_map.unlink(missing_ok=True)
        command = [sys.executable, "-m", "app", "--bundle", str(bundle), "--input", str(scan)]
        command += ["--output", str(label_map), "--report", str(label_map.with_name("report.json")), "-v"]
        command += ["--backend", row.backend, "--device", "cpu", "--precision", "fp32", "--mode", row.mode]
        command += ["--mirror"] if row.mirror else []
        return label_map, self._child(command, f"ours-{name}", label_map)

    def _model(self, row: Row) -> Path:
        """The peer's model folder, written by the peer from our weights; once a process."""
        name = f"{row.peer}-{row.network}"
        folder = self.work / "models" / name
        if self._first(f"model {name}"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            model = peer_model(row.peer, row.network, self._bundle.plan, self._weights)
            spec = write_spec(model, self.work / "specs" / name)
            command = [*runner(row.peer, self._environment(row.peer)), "write", str(spec), str(folder)]
            self._child(command, f"write-{name}", folder / "fold_0")
        return folder

    def _imported(self, row: Row) -> Path:
        """The bundle that ``tools.convert`` makes of the peer's folder; once a process."""
        bundle = self.work / "bundles" / row.bundle_name
        if self._first(f"bundle {row.bundle_name}"):
            model = self._model(row)
            shutil.rmtree(bundle, ignore_errors=True)
            command = [sys.executable, "-m", "tools.convert", f"nnunet-{row.peer}", str(model), "--fold", "0"]
            command += ["--out", str(bundle), "--tile-step-size", f"{row.step:g}"]
            self._child(command, f"import-{row.bundle_name}", bundle / "plan.json")
        return bundle

    def _with_float32_sums(self, row: Row) -> Path:
        """The imported bundle with sums in single precision; once a process."""
        source, bundle = self._imported(row), self.work / "bundles" / f"{row.bundle_name}-float32-sums"
        if self._first(f"bundle {bundle.name}"):
            shutil.rmtree(bundle, ignore_errors=True)
            shutil.copytree(source, bundle)
            plan = json.loads((bundle / PLAN_FILE).read_text(encoding="utf-8"))
            plan["sliding_window"]["accumulator"] = plan["interpolation"]["logits_precision"] = "float32"
            (bundle / PLAN_FILE).write_text(json.dumps(plan), encoding="utf-8")
            write_hashes(bundle)
        return bundle

    def _environment(self, peer: Peer) -> Path:
        return ensure_environment(peer, self.environments, self.pip_options)

    def _first(self, what: str) -> bool:
        """Whether this process has not been asked for it before."""
        if what in self._done:
            return False
        self._done.add(what)
        return True

    def _child(self, command: list[str], log_name: str, expected: Path) -> Measurement:
        """Measures a command that must leave ``expected`` behind."""
        log = self.work / "logs" / f"{log_name}.txt"
        environment = variables(self.work)
        if self.threads is not None:
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "nnUNet_def_n_proc"), str(self.threads))
        measurement = run_measured(command, log, ROOT, environment)
        if measurement.exit_code != 0 or not expected.exists():
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
            raise AppError(f"{log}: exit code {measurement.exit_code}, expected {expected}. Its end:\n{tail}")
        return measurement
