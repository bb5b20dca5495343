"""What half precision changes in label maps: every scan as the app segments it in bf16, against fp32.

A CPU without instructions for bf16 can do this, too, where OpenVINO imitates them (AVX-512): the label maps count here,
not the time. It holds if every organ of which either label map shows more than 1 ml has a DSC of 0.995.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.bundle import Bundle, load_bundle
from app.cases import find_cases
from app.errors import EXIT_CASE_FAILED, EXIT_OK
from tools.check_records import prepare_record, write_record
from tools.exit_codes import error_kind, exit_code_of
from tools.machine import has_bf16, machine_facts
from tools.parity.compare import compare_label_maps
from tools.parity.rows import SMALLEST_VOLUME_ML

_ROOT = Path(__file__).resolve().parent.parent
_DATA = _ROOT.parent / "shared" / "data" / "abdomen_ct" / "images"
_LEAST_DSC = 0.995


def main(argv: list[str] | None = None) -> int:
    """Segments, compares and writes; returns the exit code."""
    arguments = _parser().parse_args(argv)
    command = sys.argv[1:] if argv is None else argv
    return exit_code_of(lambda: _check(arguments, command), "interrupted; nothing was written")


def _check(arguments: argparse.Namespace, command: list[str]) -> int:
    prepare_record(arguments.out)
    bundle = load_bundle(arguments.bundle)
    with TemporaryDirectory() as work:
        fp32, bf16 = Path(work) / "fp32", Path(work) / "bf16"
        complete = [_segment(arguments, folder.name, folder) for folder in (fp32, bf16)]
        both = sorted({path.name for path in fp32.glob("*.nii.gz")} & {path.name for path in bf16.glob("*.nii.gz")})
        rows = [_compare(fp32 / name, bf16 / name, bundle) for name in both]
        cases = [case.case_id for case in find_cases(arguments.scans, fp32)]
    record = {
        "schema_version": 1,
        "command": shlex.join(["python", "-m", "tools.precision_check", *command]),
        "machine": machine_facts(),
        "bundle": bundle.plan.name,
        "sha256": bundle.sha256,
        "imitated": not has_bf16(),
        "organs": list(bundle.plan.labels),
        "rows": rows,
        "failed": sorted(set(cases) - {row["scan"] for row in rows}),
    }
    table = markdown(record)
    write_record(arguments.out, record, table)
    print(table)
    worst = [row["worst"]["dsc"] for row in rows if row["worst"]]
    holds = all(complete) and bool(worst) and min(worst) >= _LEAST_DSC
    return EXIT_OK if holds else EXIT_CASE_FAILED


def _segment(arguments: argparse.Namespace, precision: str, folder: Path) -> bool:
    """Whether the app segmented all scans in this precision.

    Raises:
        AppError: the run failed as a whole; its exit code is the app's.
    """
    command = [sys.executable, "-m", "app", "--bundle", str(arguments.bundle.resolve())]
    command += ["--input-dir", str(arguments.scans.resolve()), "--output-dir", str(folder)]
    command += ["--backend", "openvino", "--device", "cpu", "--precision", precision]
    code = subprocess.run(command, cwd=_ROOT, check=False).returncode
    if code not in (EXIT_OK, EXIT_CASE_FAILED):
        raise error_kind(code)(f"{arguments.scans}: the app ended with {code} in {precision}; its message is above")
    return code == EXIT_OK


def _compare(fp32: Path, bf16: Path, bundle: Bundle) -> dict[str, Any]:
    found = compare_label_maps(fp32, bf16, bundle.plan.labels)
    organs = {
        organ: {"fp32_ml": found.peer_ml[organ], "bf16_ml": found.our_ml[organ], "dsc": score}
        for organ, score in found.dsc.items()
    }
    worst = found.worst_organ()
    return {
        "scan": fp32.name.removesuffix(".nii.gz"),
        "voxels": found.voxels,
        "different_voxels": found.different,
        "organs": organs,
        "worst": {"organ": worst[0], "dsc": worst[1]} if worst else None,
    }


def markdown(record: dict[str, Any]) -> str:
    """By scan the worst organ, by organ the worst scan."""
    rows = record["rows"]
    lines = [f"`{record['command']}`", "", f"Bundle {record['bundle']}; {_machine(record)}.", ""]
    lines += ["| scan | voxels that differ | organs over 1 ml | worst organ | its DSC |", "|---|---:|---:|---|---:|"]
    for row in rows:
        large = sum(map(_is_large, row["organs"].values()))
        organ, score = (row["worst"]["organ"], f"{row['worst']['dsc']:.4f}") if row["worst"] else ("-", "-")
        share = row["different_voxels"] / row["voxels"]
        lines.append(f"| {row['scan']} | {row['different_voxels']} ({share:.3%}) | {large} | {organ} | {score} |")
    lines += ["", "| organ | scans with over 1 ml | least DSC | in |", "|---|---:|---:|---|"]
    for organ in record["organs"]:
        found = [(row["organs"][organ]["dsc"], row["scan"]) for row in rows if _is_large(row["organs"][organ])]
        least = "{:.4f} | {}".format(*min(found)) if found else "- | -"
        lines.append(f"| {organ} | {len(found)} | {least} |")
    scores = [each["dsc"] for row in rows for each in row["organs"].values() if _is_large(each)]
    below = sum(score < _LEAST_DSC for score in scores)
    lines += ["", f"Below {_LEAST_DSC}: {below} of {len(scores)} organs of over 1 ml in either label map."]
    if failed := record.get("failed"):
        lines += ["", f"Not segmented in both precisions, and so not compared: {', '.join(failed)}."]
    return "\n".join(lines) + "\n"


def _is_large(organ: dict[str, float]) -> bool:
    return max(organ["fp32_ml"], organ["bf16_ml"]) > SMALLEST_VOLUME_ML


def _machine(record: dict[str, Any]) -> str:
    how = "imitated by OpenVINO on a CPU without it" if record["imitated"] else "calculated by the CPU"
    return f"bf16 {how} ({record['machine']['cpu']})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.precision_check", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=_ROOT / "weights" / "default", metavar="DIR")
    parser.add_argument("--scans", type=Path, default=_DATA, metavar="DIR", help="X_0000.nii.gz")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="and FILE.md, its table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
