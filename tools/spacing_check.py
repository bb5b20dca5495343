"""What a grid costs before any network does: label maps brought to it and back, as training and the app do.

A network that learns its grid's label map without an error gets these scores, so they bound what a spacing can reach,
of thin and small organs most of all. The voxels of the grid, beside them, are what a finer one costs in time.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from app.bundle import load_bundle
from app.errors import EXIT_CASE_FAILED, EXIT_OK, CaseError, FolderError, UsageError
from app.plan import Plan
from app.preprocessing import grid_of_box, interpolation_orders, network_axes
from app.restoration import restore
from app.running_sums import Slab
from app.volume import LabelArray, Vector
from app.volume_io import read_volume
from tools.check_records import prepare_record, write_record
from tools.evaluate.flare import CORRECTED, score_case
from tools.exit_codes import exit_code_of
from tools.robustness.measure import ORGANS, SMALLEST_SCORED_ML
from tools.robustness.table import mean
from tools.train.checks import label_ids
from tools.train.labels import resample_label_map

_ROOT = Path(__file__).resolve().parent.parent
_DATA = _ROOT.parent / "shared" / "data" / "abdomen_ct" / "labels"

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measures and writes; returns the exit code."""
    arguments = _parser().parse_args(argv)
    command = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _check(arguments, command), "interrupted; nothing was written")


def _check(arguments: argparse.Namespace, command: list[str]) -> int:
    paths = sorted(arguments.labels.glob("*.nii.gz"))
    if not paths:
        raise FolderError(f"{arguments.labels}: no label maps; expected X.nii.gz. Give --labels")
    prepare_record(arguments.out)
    plan = load_bundle(arguments.bundle).plan
    if plan.labels != ORGANS:
        raise UsageError(f"{arguments.bundle}: finds {', '.join(plan.labels)}; expected FLARE22's 13 organs")
    rows: list[Row] = []
    complete = True
    for path in paths:
        try:
            for row in _rows(path, plan, arguments.spacings):
                print(f"{row['case_id']}, {row['spacing_zyx_mm']} mm: {row['voxels']} voxels", flush=True)
                rows.append(row)
        except CaseError as error:
            print(f"error: {error}", file=sys.stderr)
            complete = False
    if not rows:  # a record that is there stays
        return EXIT_CASE_FAILED
    record = {
        "schema_version": 1,
        "command": shlex.join(["python", "-m", "tools.spacing_check", *command]),
        "organs": list(plan.labels),
        "rows": rows,
    }
    write_record(arguments.out, record, markdown(record))
    print(arguments.out.with_suffix(".md"))
    return EXIT_OK if complete else EXIT_CASE_FAILED


def _rows(path: Path, plan: Plan, spacings: list[Vector]) -> Iterator[Row]:
    """One row a spacing. The label map's own geometry is the scan's.

    Raises:
        CaseError: it cannot be read, or holds what is no label of the plan.
    """
    volume = read_volume(path)
    axis_map = network_axes(volume.geometry, plan)
    oriented = axis_map.apply_to_geometry(volume.geometry)
    reference: LabelArray = np.ascontiguousarray(axis_map.apply(label_ids(volume)))
    if reference.max() >= plan.classes:
        raise CaseError(f"{path}: label {reference.max()}; expected at most {plan.classes - 1}")
    for spacing in spacings:
        at_spacing = replace(plan, spacing=replace(plan.spacing, target_zyx_mm=spacing))
        grid = grid_of_box(oriented.shape_zyx, oriented, at_spacing, "off")
        orders = interpolation_orders(grid, plan.interpolation, 1)
        learnt = resample_label_map(reference, grid.shape_zyx, orders)
        found = restore(_one_hot(learnt, plan.classes), grid.shape_zyx, oriented.shape_zyx, orders, "normal").label_map
        scores = score_case(found, reference, oriented.spacing_zyx_mm, CORRECTED)
        shown_ml = np.bincount(reference.ravel(), minlength=plan.classes)[1:] * oriented.voxel_volume_ml
        yield {
            "case_id": path.name.removesuffix(".nii.gz"),
            "spacing_zyx_mm": list(spacing),
            "voxels": int(np.prod(grid.shape_zyx)),
            "organs": {
                organ: {"dsc": scores[organ].dsc, "nsd": scores[organ].nsd, "reference_ml": float(ml)}
                for organ, ml in zip(plan.labels, shown_ml, strict=True)
            },
        }


def _one_hot(label_map: LabelArray, classes: int) -> Iterator[Slab]:
    """Logits of a network that is sure and right, plane by plane."""
    for start in range(len(label_map)):
        plane = label_map[start : start + 1]
        yield Slab(0, start, np.stack([plane == label for label in range(classes)]).astype(np.float32))


def markdown(record: dict[str, Any]) -> str:
    """Mean DSC and NSD by organ and spacing, over label maps that show 1 ml of it; below, what the grids cost."""
    rows = record["rows"]
    spacings = list(dict.fromkeys(tuple(row["spacing_zyx_mm"]) for row in rows))
    by_spacing = [[row for row in rows if tuple(row["spacing_zyx_mm"]) == spacing] for spacing in spacings]
    names = [f"{'x'.join(f'{length:g}' for length in spacing)} mm" for spacing in spacings]
    lines = [f"`{record['command']}`", "", "DSC, NSD (label maps) after a way to the grid (z, y, x) and back.", ""]
    lines += [f"| organ | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for organ in record["organs"]:
        lines.append(f"| {organ} | {' | '.join(_scores(found, [organ]) for found in by_spacing)} |")
    lines.append(f"| mean | {' | '.join(_scores(found, record['organs']) for found in by_spacing)} |")
    voxels = [sum(row["voxels"] for row in found) for found in by_spacing]
    lines.append(f"| voxels | {' | '.join(f'{count / voxels[0]:.2f}' for count in voxels)} |")
    return "\n".join(lines) + "\n"


def _scores(rows: list[Row], organs: list[str]) -> str:
    found = [row["organs"][organ] for row in rows for organ in organs]
    shown = [scores for scores in found if scores["reference_ml"] >= SMALLEST_SCORED_ML and scores["dsc"] is not None]
    if not shown:
        return "-"
    dsc, nsd = (mean(scores[metric] for scores in shown) for metric in ("dsc", "nsd"))
    return f"{dsc:.3f}, {nsd:.3f} ({len(shown)})"


def _spacing(text: str) -> Vector:
    try:
        z, y, x = (float(part) for part in text.split("x"))
    except ValueError:
        z = y = x = 0.0
    if min(z, y, x) < 0.5:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ZxYxX in mm, each 0.5 at least, such as 2.5x2x2")
    return (z, y, x)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.spacing_check", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=_ROOT / "weights" / "default", metavar="DIR", help="its plan")
    parser.add_argument("--labels", type=Path, default=_DATA, metavar="DIR", help="X.nii.gz")
    parser.add_argument("--spacings", nargs="+", type=_spacing, required=True, metavar="ZxYxX", help="mm; first: usual")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="and FILE.md, its table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
