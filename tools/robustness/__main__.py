"""Command line: ``python -m tools.robustness --bundle B --scans ... --labels ... --out DIR``, and ``compare``."""

import argparse
import json
import platform
import shlex
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from app.atomic_files import write_text
from app.bundle import Bundle, load_bundle
from app.cases import Case, find_cases, prepare_output_folder
from app.errors import EXIT_CASE_FAILED, EXIT_OK, CaseError, FolderError, UsageError
from app.machine_limits import processor_limit
from tools.ct import Ct, read_ct
from tools.degrade.arguments import add_seed
from tools.degrade.kinds import KINDS
from tools.exit_codes import exit_code_of
from tools.robustness import compare
from tools.robustness.measure import ORGANS, Networks, Row, load_networks, measure
from tools.robustness.table import markdown, read_record

SCHEMA_VERSION = 1
RECORD_FILE, TABLE_FILE = "robustness.json", "robustness.md"

_EPILOG = """\
Give scans that the network has not learnt from; nothing here can know which those are.

written to --out: robustness.json after every row, then robustness.md. The next run with the same bundle, network, seed
and files goes on with what is there; --again forgets it. `python -m tools.quality` reads the same record; several
records side by side: `python -m tools.robustness compare --help`.

exit codes: 0 all measured, 1 a scan or label map is unusable (the others are measured), 2 wrong usage, 3 a scan or
label map is not there or --out cannot be written, 4 bundle unusable, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.robustness",
        description="Segments and scores held-out scans as they are and made worse (python -m tools.degrade --help "
        "says in which ways), and tells what that costs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--scans", type=Path, nargs="+", required=True, metavar="SCAN", help="files, or one folder: those with labels"
    )
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="X.nii.gz for X_0000.nii.gz")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--again", action="store_true", help="begin anew: forget the rows that are in --out")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help="default: all")
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="run the bundle's twin too; tools.quality needs that (twice the time)",
    )
    parser.add_argument(
        "--about-labels",
        metavar="TEXT",
        default="not said who drew it",
        help="who made the label maps, for the table: agreement with another network is no accuracy",
    )
    parser.add_argument("--backend", choices=("auto", "openvino", "onnxruntime", "torch"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--threads", type=int, metavar="N", help="of the network (default: all)")
    add_seed(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures what is not measured yet; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["compare"]:
        return exit_code_of(lambda: compare.main(words[1:]), "interrupted; nothing was written")
    arguments = build_parser().parse_args(words)
    return exit_code_of(
        lambda: _run(arguments, words), "interrupted; the next run goes on with the rows that are there"
    )


def _run(arguments: argparse.Namespace, argv: list[str]) -> int:
    prepare_output_folder(arguments.out)
    cases = _cases(arguments.scans, arguments.labels)
    bundle = load_bundle(arguments.bundle)
    networks = load_networks(
        bundle, arguments.uncertainty, arguments.backend, arguments.precision, arguments.threads or processor_limit()
    )
    record = _begin(arguments, bundle, networks, f"python -m tools.robustness {shlex.join(argv)}")
    failed = False

    def keep(row: Row) -> None:
        record["rows"].append(row)
        write_text(arguments.out / RECORD_FILE, json.dumps(record, indent=1) + "\n")
        print(f"{row['case_id']} {row['kind']}: {_outcome(row)}", file=sys.stderr)

    there = {(row["case_id"], row["kind"]) for row in record["rows"]}
    for case in cases:
        kinds = [kind for kind in KINDS if kind in arguments.kinds and (case.case_id, kind) not in there]
        try:
            if case.refusal:
                raise CaseError(case.refusal)
            ct = read_ct(case.input_path, case.output_path, ORGANS)
            digest, known = _digest(ct), record["contents"].get(case.case_id)
            if known not in (None, digest) and any(case.case_id == case_id for case_id, _ in there):
                raise CaseError(f"{case.input_path}: it or its label map is not what earlier rows are of; use --again")
            record["contents"][case.case_id] = digest
            for kind in kinds:
                keep(measure(networks, case.case_id, ct, kind, arguments.seed))
        except CaseError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    write_text(arguments.out / TABLE_FILE, markdown(record))
    print(arguments.out / TABLE_FILE)
    return EXIT_CASE_FAILED if failed else EXIT_OK


def _cases(given: list[Path], labels: Path) -> list[Case]:
    """The scans with their label maps as outputs; of a folder those that have one.

    Raises:
        FolderError: a scan is not there or has no label map.
        UsageError: scans and label maps share a folder, or a name is there twice.
    """
    cases: list[Case] = []
    for path in given:
        folder = path if path.is_dir() else path.parent
        if folder.resolve() == labels.resolve():
            raise UsageError(f"--labels {labels}: the folder of the scans; expected one that holds label maps only")
        found = find_cases(folder, labels)
        wanted = [case for case in found if case.input_path == path or (path.is_dir() and case.output_path.exists())]
        if not wanted:
            raise FolderError(f"--scans {path}: no such scan, or none with a label map in {labels}")
        cases += wanted
    seen: dict[str, Case] = {}
    for case in cases:
        if case.case_id in seen:
            twice = f"{seen[case.case_id].input_path} and {case.input_path}"
            raise UsageError(f"--scans: {twice} are both called {case.case_id}; expected each name once")
        seen[case.case_id] = case
        if not case.output_path.exists():
            raise FolderError(
                f"--labels {labels}: no {case.output_path.name}; expected the label map of {case.input_path}"
            )
    return cases


def _digest(ct: Ct) -> str:
    """SHA-256 of a scan with its label map, however they are stored."""
    digest = sha256(repr(ct.geometry).encode())
    for array in (ct.voxels_hu, ct.label_map):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _begin(arguments: argparse.Namespace, bundle: Bundle, networks: Networks, command: str) -> dict[str, Any]:
    """The record that is there, if it is of the same measurement, else a new one."""
    used = networks.predictor
    same = {
        "schema_version": SCHEMA_VERSION,
        "bundle": {"name": bundle.plan.name, **bundle.sha256},
        "seed": arguments.seed,
        "uncertainty": arguments.uncertainty,
        "about_labels": arguments.about_labels,
        "network": {"backend": used.backend, "device": used.device, "precision": used.precision},
    }
    path = arguments.out / RECORD_FILE
    contents: dict[str, str] = {}
    rows: list[Row] = []
    if arguments.again:
        for earlier in (path, arguments.out / TABLE_FILE):
            earlier.unlink(missing_ok=True)
    if path.exists():
        before = read_record(path)
        different = [key for key, value in same.items() if not isinstance(before, dict) or before.get(key) != value]
        if different:
            raise UsageError(f"{path}: another {', '.join(different)}; choose another --out, or --again to begin anew")
        contents, rows = before.get("contents", {}), before["rows"]
    where = {"machine": platform.node(), "warn_below_agreement": bundle.plan.warn_below_agreement}
    return {**same, "command": command, **where, "contents": contents, "rows": rows}


def _outcome(row: Row) -> str:
    if row["skipped"]:
        return f"not made: {row['skipped']}"
    scores = [values["dsc"] for values in row["organs"].values() if values["dsc"] is not None]
    mean = f"DSC {sum(scores) / len(scores):.3f} of {len(scores)} organs" if scores else "no organ to score"
    return f"{mean}, {row['seconds']:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
