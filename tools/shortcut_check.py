"""What a bundle's shortcuts save and what they change: every scan with each of them, against none.

``air``: windows of nothing but air are calculated once. ``body``, ``organs``: only the box of the body, or of what the
bundle's locator finds, is segmented. Shortcuts move windows, so that labels change a little everywhere; what counts is
what an organ loses. With ``--labels`` it is also said how much of each organ of the reference lies outside of the box,
and how well label maps agree with it.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.agreement import organ_agreement
from app.backends import create_predictor
from app.bundle import Bundle, load_bundle
from app.errors import EXIT_CASE_FAILED, EXIT_OK, CaseError, FolderError, UsageError
from app.options import Options
from app.orientation import axis_map_to_lps
from app.pipeline import segment
from app.plan import Crop, Plan
from app.postprocessing import organ_volumes_ml
from app.region import Locator, find_region
from app.report import StageClock
from app.sliding_window import Predictor
from app.volume import Float32Array, LabelArray, Volume
from app.volume_io import read_volume
from tools.check_records import prepare_record, write_record
from tools.evaluate.geometry import first_unequal_field
from tools.evaluate.label_maps import read_label_map
from tools.evaluate.metrics import dice
from tools.exit_codes import exit_code_of
from tools.machine import machine_facts

_ROOT = Path(__file__).resolve().parent.parent
_DATA = _ROOT.parent / "shared" / "data" / "abdomen_ct"
_SMALLEST_ML = 1.0  # an organ that both ways find less of is a speck
_SHORTCUTS: dict[str, tuple[Crop, bool]] = {"air": ("none", True), "body": ("body", False), "organs": ("organs", False)}
_NONE = "none"


@dataclass(frozen=True)
class Row:
    """One scan with one shortcut.

    Attributes:
        windows: that the network calculated.
        seconds: of finding the box and of the network.
        organs: by name: ml without and with the shortcut, DSC between the two (None: neither found it).
        outside_ml: of the reference, by organ, outside of the box; None without a reference.
        mean_dsc: with the reference, over the organs that it shows; None without.
    """

    scan: str
    shortcut: str
    windows: int
    seconds: dict[str, float]
    organs: dict[str, dict[str, float | None]]
    outside_ml: dict[str, float] | None
    mean_dsc: float | None


class _Counting:
    """A predictor that counts its windows."""

    def __init__(self, predictor: Predictor) -> None:
        self.backend, self.device, self.precision = predictor.backend, predictor.device, predictor.precision
        self._predictor, self.windows = predictor, 0

    def predict(self, tile: Float32Array) -> Float32Array:
        """See ``Predictor.predict``."""
        self.windows += 1
        return self._predictor.predict(tile)


class _Check:
    """Segments scans with one bundle, in every way."""

    def __init__(self, bundle: Bundle, precision: Any) -> None:
        self.plan = bundle.plan
        self.network = _Counting(create_predictor(bundle, "auto", "cpu", precision)[0])
        self.locator = None
        if bundle.locator:
            found, _ = create_predictor(bundle.locator, "auto", "cpu", precision)
            self.locator = Locator(bundle.locator.plan, found)
        self.shortcuts = [name for name in _SHORTCUTS if name != "organs" or self.locator]
        self.network.predict(np.zeros(bundle.plan.sliding_window.patch_size, np.float32))  # the first takes longer

    def rows(self, path: Path, reference: Path | None) -> Iterator[Row]:
        """The rows of one scan: without a shortcut first."""
        volume, scan = read_volume(path), path.name.removesuffix("_0000.nii.gz")
        labels = self._reference(reference, volume) if reference else None
        before, row = self._segment(volume, scan, _NONE, None, labels)
        yield row
        for shortcut in self.shortcuts:
            yield self._segment(volume, scan, shortcut, before, labels)[1]

    def _reference(self, path: Path, volume: Volume) -> LabelArray:
        """Raises CaseError unless it lies on the scan's grid."""
        found = read_label_map(path, len(self.plan.labels))
        if field := first_unequal_field(found.geometry, volume.geometry):
            there, expected = getattr(found.geometry, field), getattr(volume.geometry, field)
            raise CaseError(f"{path}: {field} {there}; expected its scan's {expected}")
        return found.labels

    def _segment(
        self, volume: Volume, scan: str, shortcut: str, before: LabelArray | None, reference: LabelArray | None
    ) -> tuple[LabelArray, Row]:
        crop, skip_air = _SHORTCUTS.get(shortcut, ("none", False))
        plan = replace(self.plan, shortcuts=replace(self.plan.shortcuts, crop="none", skip_air=skip_air))
        options = Options(plan.mode, plan.spacing.enforce, crop=crop)
        clock, begun = StageClock(scan), self.network.windows
        label_map, _, _ = segment(volume, self.network, plan, options, clock, locator=self.locator)
        seconds = {stage: clock.seconds.get(stage, 0.0) for stage in ("locate", "network")}
        voxel_ml = volume.geometry.voxel_volume_ml
        organs = _changes(label_map if before is None else before, label_map, plan.labels, voxel_ml)
        outside = None if reference is None else self._outside_ml(volume, plan, options, reference)
        mean_dsc = None if reference is None else _mean_dsc(label_map, reference, plan.classes)
        return label_map, Row(scan, shortcut, self.network.windows - begun, seconds, organs, outside, mean_dsc)

    def _outside_ml(self, volume: Volume, plan: Plan, options: Options, reference: LabelArray) -> dict[str, float]:
        """How much of each organ lies where the network never looks."""
        outside: npt.NDArray[Any] = axis_map_to_lps(volume.geometry).apply(reference).copy()
        box = find_region(volume, plan, options.crop, options.spacing, self.locator)
        outside[box or (slice(None),) * 3] = 0
        counts = np.bincount(outside.ravel(), minlength=plan.classes)
        voxel_ml = volume.geometry.voxel_volume_ml
        return {organ: int(counts[label]) * voxel_ml for label, organ in enumerate(plan.labels, start=1)}


def _mean_dsc(label_map: LabelArray, reference: LabelArray, classes: int) -> float | None:
    scores = [dice(label_map == label, reference == label) for label in range(1, classes) if np.any(reference == label)]
    found = [score for score in scores if score is not None]
    return sum(found) / len(found) if found else None


def _changes(
    before: LabelArray, after: LabelArray, labels: tuple[str, ...], voxel_ml: float
) -> dict[str, dict[str, float | None]]:
    first, second = (organ_volumes_ml(found, labels, voxel_ml) for found in (before, after))
    dsc = organ_agreement(before, after, labels)
    return {organ: {"before_ml": first[organ], "after_ml": second[organ], "dsc": dsc[organ]} for organ in labels}


def markdown(record: dict[str, Any]) -> str:
    """What each shortcut saves by scan, and what it changes by organ."""
    rows, shortcuts = record["rows"], record["shortcuts"]
    plain = {row["scan"]: row for row in rows if row["shortcut"] == _NONE}
    lines = [f"`{record['command']}`", "", f"Bundle {record['bundle']}, {record['precision']}.", ""]
    lines += [f"| scan | none | {' | '.join(shortcuts)} |", f"|---|---|{'---|' * len(shortcuts)}"]
    for scan, usual in plain.items():
        cells = [_saving(row, usual) for row in rows if row["scan"] == scan and row["shortcut"] != _NONE]
        lines.append(f"| {scan} | {usual['windows']}{_agreement(usual)} | {' | '.join(cells)} |")
    lines += [
        "",
        "Windows; seconds of finding the box and of the network, as a part of the network's alone; mean DSC with the "
        "reference over the organs that it shows.",
        "",
    ]
    lines += [f"| organ | {' | '.join(shortcuts)} |", f"|---|{'---|' * len(shortcuts)}"]
    for organ in record["organs"]:
        cells = [_change(organ, [row for row in rows if row["shortcut"] == shortcut]) for shortcut in shortcuts]
        lines.append(f"| {organ} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Over the scans in which either way finds {_SMALLEST_ML:g} ml of the organ: least DSC with the label map that "
        "no shortcut made and where; ml in all without and with it; ml of the reference outside of the box.",
    ]
    return "\n".join(lines) + "\n"


def _saving(row: dict[str, Any], usual: dict[str, Any]) -> str:
    part = sum(row["seconds"].values()) / sum(usual["seconds"].values())
    return f"{row['windows']}, {part:.2f}{_agreement(row)}"


def _agreement(row: dict[str, Any]) -> str:
    return "" if row["mean_dsc"] is None else f", DSC {row['mean_dsc']:.4f}"


def _change(organ: str, rows: list[dict[str, Any]]) -> str:
    found = [(row, row["organs"][organ]) for row in rows]
    large = [(row, each) for row, each in found if max(each["before_ml"], each["after_ml"]) > _SMALLEST_ML]
    outside = [row["outside_ml"][organ] for row in rows if row["outside_ml"] is not None]
    cut = f"; {sum(outside):.1f} ml outside" if outside else ""
    if not large:
        return f"not found{cut}"
    row, worst = min(large, key=lambda pair: float(pair[1]["dsc"] or 0.0))
    before, after = (sum(each[side] for _, each in large) for side in ("before_ml", "after_ml"))
    return f"{worst['dsc'] or 0.0:.3f} ({row['scan']}); {before:.0f} to {after:.0f} ml{cut}"


def main(argv: list[str] | None = None) -> int:
    """Measures and writes; returns the exit code."""
    arguments = _parser().parse_args(argv)
    command = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _measure(arguments, command), "interrupted; nothing was written")


def _measure(arguments: argparse.Namespace, command: list[str]) -> int:
    found_by_name = {name: sorted(arguments.scans.glob(f"{name}_0000.nii.gz")) for name in arguments.only or ["*"]}
    if missing := [f"{name}_0000.nii.gz" for name, paths in found_by_name.items() if not paths]:
        raise FolderError(f"{arguments.scans}: no {', '.join(missing)}; expected scans. Give --scans")
    scans = sorted({path for paths in found_by_name.values() for path in paths})
    if arguments.labels and not arguments.labels.is_dir():
        raise FolderError(f"{arguments.labels}: no such folder; expected label maps X.nii.gz")
    prepare_record(arguments.out)
    bundle = load_bundle(arguments.bundle)
    if bundle.plan.orientation != "LPS" or not bundle.plan.can_be_cropped:
        raise UsageError(
            f"{arguments.bundle}: shortcuts are for bundles whose orientation is LPS, without crop_to_nonzero and with "
            "transpose_forward [0, 1, 2]"
        )
    check = _Check(bundle, arguments.precision)
    rows: list[dict[str, Any]] = []
    record = {
        "schema_version": 1,
        "command": shlex.join(["python", "-m", "tools.shortcut_check", *command]),
        "machine": machine_facts(),
        "bundle": bundle.plan.name,
        "sha256": bundle.sha256,
        "precision": check.network.precision,
        "shortcuts": check.shortcuts,
        "organs": list(bundle.plan.labels),
        "rows": rows,
    }
    failed = False
    for path in scans:
        name = path.name.replace("_0000.nii.gz", ".nii.gz")
        reference = arguments.labels / name if arguments.labels and (arguments.labels / name).exists() else None
        try:
            found = list(check.rows(path, reference))
        except CaseError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        for row in found:
            print(f"{row.scan} {row.shortcut}: {row.windows} windows, {sum(row.seconds.values()):.1f} s", flush=True)
        rows += [asdict(row) for row in found]
    if not rows:
        return EXIT_CASE_FAILED
    write_record(arguments.out, record, markdown(record))
    print(arguments.out.with_suffix(".md"))
    return EXIT_CASE_FAILED if failed else EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.shortcut_check", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=_ROOT / "weights" / "default", metavar="DIR")
    parser.add_argument("--scans", type=Path, default=_DATA / "images", metavar="DIR", help="X_0000.nii.gz")
    parser.add_argument("--only", nargs="+", metavar="X", help="these scans (default: all)")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="X.nii.gz, where there are some")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="and FILE.md, its table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
