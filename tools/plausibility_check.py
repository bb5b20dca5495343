"""How far good and bad scans lie apart in what ``app.plausibility`` measures: real scans, the same turned and spoilt.

Every scan is segmented as it is, with its voxels turned under an unchanged header, and in parts that show no abdomen.
Segmenting takes up to a minute each on two cores: label maps are kept in ``--work``, by bundle, and not made again.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from app.atomic_files import atomic_file, write_text
from app.bundle import HASH_FILE, Bundle, load_bundle
from app.cases import prepare_output_folder
from app.errors import EXIT_CASE_FAILED, EXIT_OK, CaseError, FolderError
from app.pipeline import segment
from app.plausibility import (
    LEAST_COMPACTNESS,
    LEAST_ORGANS_ML,
    LEAST_TISSUE_SHARE,
    TURNED_MM,
    Findings,
    examine,
    find_warnings,
    look_at,
)
from app.postprocessing import organ_volumes_ml
from app.volume import LabelArray, Volume
from app.volume_io import read_volume
from tools.exit_codes import exit_code_of
from tools.robustness.measure import load_networks

_ROOT = Path(__file__).resolve().parent.parent
AS_IS = "as_is"
_TURNS = ("z", "y", "x", "zx", "yx")  # zx: feet first taken for head first; yx: prone taken for supine
# Of scans of shared/data/abdomen_ct: what shows no abdomen, by slices from the feet.
_PARTS = {
    "legs": ("ct_002", slice(0, 30)),
    "thighs and pelvis": ("ct_002", slice(0, 45)),
    "pelvis": ("ct_003", slice(0, 28)),
    "pelvis with a giant cyst": ("ct_007", slice(0, 40)),
    "top of the chest": ("ct_001", slice(-36, None)),
    "top of the chest, without contrast": ("ct_004", slice(-35, None)),
    "chest": ("ct_008", slice(-40, None)),
}
# What a scan's voxels become without calibration; the label map is then looked at as it was.
_SPOILT: dict[str, Callable[[Any], Any]] = {
    "stored from 0": lambda hu: np.clip(hu, -1024, None) + 1024,
    "shifted twice": lambda hu: hu - 1024,
    "8 bits of a soft-tissue window": lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255),
    "0 to 1": lambda hu: np.clip((hu + 1000) / 2000, 0, 1),
}


@dataclass(frozen=True)
class Row:
    """One scan, changed or not.

    Attributes:
        change: ``as_is``, axes that were turned, a part of the scan, or what became of its voxels.
        cpu_s: processor time that looking at it and examining it took.
    """

    scan: str
    change: str
    findings: Findings
    warnings: list[str]
    cpu_s: float


def main(argv: list[str] | None = None) -> int:
    """0 unless a scan as it is gets a warning or cannot be read; writes the JSON either way."""
    arguments = _parser().parse_args(argv)
    command = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _run(arguments, command), "interrupted; finished label maps are kept in --work")


def _run(arguments: argparse.Namespace, argv: list[str]) -> int:
    scans = sorted(arguments.scans.glob("*_0000.nii.gz"))
    if not scans:
        raise FolderError(f"{arguments.scans}: no X_0000.nii.gz; expected scans. Give --scans")
    bundle = load_bundle(arguments.bundle)
    prepare_output_folder(arguments.out.parent)
    check = _Check(bundle, arguments.work, arguments.kept)
    rows: list[Row] = []
    failed = False
    for path in scans:
        try:
            for row in check.rows(path, arguments.turns):
                print(f"{row.scan} {row.change}: {'; '.join(row.warnings) or 'nothing'}", flush=True)
                rows.append(row)
        except CaseError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    if not rows:
        return EXIT_CASE_FAILED
    command = shlex.join(["python", "-m", "tools.plausibility_check", *argv])
    limits = {
        "tissue_share": LEAST_TISSUE_SHARE,
        "organs_ml": LEAST_ORGANS_ML,
        "compactness": LEAST_COMPACTNESS,
        "position_mm": TURNED_MM,
    }
    report = {
        "schema_version": 1,
        "command": command,
        "bundle": {"name": bundle.plan.name, **bundle.sha256},
        "limits": limits,
        "summary": summarise(rows),
        "rows": [asdict(row) for row in rows],
    }
    write_text(arguments.out, json.dumps(report, indent=1) + "\n")
    warned = any(row.warnings for row in rows if row.change == AS_IS)
    return EXIT_CASE_FAILED if failed or warned else EXIT_OK


def summarise(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """change -> scans, how many of them got a warning, and the range of each finding over them."""
    changes = dict.fromkeys(row.change for row in rows)
    summary = {}
    for change in changes:
        these = [row for row in rows if row.change == change]
        ranges = {}
        for name in asdict(these[0].findings):
            values = [value for row in these if (value := getattr(row.findings, name)) is not None]
            ranges[name] = [round(min(values), 3), round(max(values), 3)] if values else None
        warned = [row.scan for row in these if row.warnings]
        silent = [row.scan for row in these if not row.warnings]
        summary[change] = {"warned": warned, "silent": silent, **ranges, "cpu_s": max(row.cpu_s for row in these)}
    return summary


class _Check:
    """Segments with one bundle, and keeps what it made."""

    def __init__(self, bundle: Bundle, work: Path, kept: bool) -> None:
        self._networks = load_networks(bundle, uncertainty=False, backend="auto", precision="fp32", threads=None)
        self._plan, self._kept = bundle.plan, kept
        self._work = work / hashlib.sha256((bundle.folder / HASH_FILE).read_bytes()).hexdigest()[:12]
        self._work.mkdir(parents=True, exist_ok=True)

    def rows(self, path: Path, turns: list[str]) -> Iterator[Row]:
        """The rows of one scan."""
        volume, scan = read_volume(path), path.name.removesuffix("_0000.nii.gz")
        label_map = self._label_map(scan, AS_IS, volume)
        if label_map is None:
            raise CaseError(f"{path}: no label map of it in {self._work}; leave out --kept to make it")
        yield self._row(scan, AS_IS, volume, label_map)
        hu = volume.voxels * np.float32(volume.slope) + np.float32(volume.intercept)
        for change, spoil in _SPOILT.items():
            spoilt = replace(volume, voxels=spoil(hu).astype(np.float32), slope=1.0, intercept=0.0)
            yield self._row(scan, change, spoilt, label_map)
        for turn in turns:
            turned = np.ascontiguousarray(np.flip(volume.voxels, tuple("zyx".index(axis) for axis in turn)))
            yield from self._segmented(scan, turn, replace(volume, voxels=turned))
        for name, (of_scan, slices) in _PARTS.items():
            if of_scan == scan:
                voxels = np.ascontiguousarray(volume.voxels[slices])
                z, y, x = voxels.shape
                geometry = replace(volume.geometry, shape_zyx=(z, y, x))
                yield from self._segmented(scan, name, replace(volume, voxels=voxels, geometry=geometry))

    def _segmented(self, scan: str, change: str, volume: Volume) -> Iterator[Row]:
        label_map = self._label_map(scan, change, volume)
        if label_map is not None:
            yield self._row(scan, change, volume, label_map)

    def _row(self, scan: str, change: str, volume: Volume, label_map: LabelArray) -> Row:
        labels = self._plan.labels
        organs_ml = sum(organ_volumes_ml(label_map, labels, volume.geometry.voxel_volume_ml).values())
        start = time.process_time()
        findings = examine(look_at(volume), label_map, labels, organs_ml)
        cpu_s = time.process_time() - start
        return Row(scan, change, findings, find_warnings(findings, labels), round(cpu_s, 4))

    def _label_map(self, scan: str, change: str, volume: Volume) -> LabelArray | None:
        """Kept, or made now; None if it would have to be made and must not."""
        path = self._path(scan, change, volume)
        if path.exists():
            kept: LabelArray = np.load(path)["labels"]
            return kept
        if self._kept:
            return None
        networks = self._networks
        label_map, _, _ = segment(volume, networks.predictor, self._plan, networks.options, locator=networks.locator)
        with atomic_file(path) as stream:
            np.savez_compressed(stream, labels=label_map)
        return label_map

    def _path(self, scan: str, change: str, volume: Volume) -> Path:
        """By what the voxels are and where they lie, so that another scan of this name has another one."""
        what = hashlib.sha256(repr((volume.geometry, volume.slope, volume.intercept)).encode())
        what.update(np.ascontiguousarray(volume.voxels).data)
        return self._work / f"{scan}-{change.replace(' ', '_').replace(',', '')}-{what.hexdigest()[:12]}.npz"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.plausibility_check", description=__doc__)
    parser.add_argument("--scans", type=Path, required=True, metavar="DIR", help="shared/data/abdomen_ct/images")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--work", type=Path, default=Path("build/plausibility"), metavar="DIR", help="for label maps")
    parser.add_argument("--bundle", type=Path, default=_ROOT / "weights" / "default", metavar="DIR")
    parser.add_argument("--kept", action="store_true", help="segment nothing: only what --work holds")
    parser.add_argument("--turns", nargs="*", choices=_TURNS, default=list(_TURNS), metavar="AXES")
    return parser


if __name__ == "__main__":
    sys.exit(main())
