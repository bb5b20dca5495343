"""Command line: ``python -m tools.parity``."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from app.errors import EXIT_CASE_FAILED, EXIT_OK, AppError, FolderError, UsageError
from app.interruption import interruptible
from tools.exit_codes import exit_code_of
from tools.parity.rows import Row, all_rows, select_rows
from tools.parity.runs import Workshop
from tools.parity.table import machine, markdown, read_records, write_records

_ROOT = Path(__file__).resolve().parents[2]
_DATA = _ROOT.parent / "shared" / "data" / "abdomen_ct" / "images"

_EPILOG = """\
what is compared: weights/default is given to nnU-Net as a model of its own (written by nnU-Net, from our weights under
its names), imported back with `python -m tools.convert`, and both sides segment the same files, each in a process of
its own. Seeded random networks show shapes that the default network does not have; their rows do not count, nor do
rows in which nnU-Net finds fewer than 6 organs of over 1 ml: agreement on air proves nothing.

limits: 99.99 % of the voxels for PyTorch against v1's fastest mode, 99.9 % for all else; DSC 0.998 for each organ of
over 1 ml.

groups of rows: v1-fastest, v1-normal, v1-mirror, v2, v2-mirror, shapes, full-size (with --full-size)

written to --work: venv-v1 and venv-v2 (made once), models, bundles, scans, label maps, logs, parity.json and
parity.md. A row is added to parity.json when it has finished; the next run leaves it alone unless --again is given
or plan or weights of weights/default have changed.

examples:
  python -m tools.parity                                   all rows: about an hour on two cores
  python -m tools.parity --rows v1-fastest --scans ct_006  one scan, both backends
  python -m tools.parity --quick --again                   two rows, once more
  python -m tools.parity --table                           only write parity.md from what is there

exit codes: 0 no counting row fails, 1 one does or could not be run, 2 wrong usage, 3 no scans, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.parity",
        description="Runs real nnU-Net v1 and v2 and this app on the same networks and scans, side by side.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=_DATA, metavar="DIR", help="folder with ct_001_0000.nii.gz etc.")
    parser.add_argument("--work", type=Path, default=_ROOT / "build" / "parity", metavar="DIR", help="where all goes")
    parser.add_argument("--rows", type=_names, default=[], metavar="A,B", help="only these groups of rows")
    parser.add_argument("--scans", type=_names, default=[], metavar="A,B", help="only these scans")
    parser.add_argument("--quick", action="store_true", help="one scan with v1's fastest mode, and one with v2")
    parser.add_argument("--full-size", action="store_true", help="add the paper's network size (slow)")
    parser.add_argument("--again", action="store_true", help="run rows that are there anew")
    parser.add_argument("--again-peer", action="store_true", help="with --again: nnU-Net's side too")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for both sides (default: as they choose)")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table")
    parser.add_argument("--pip-options", default="", metavar="TEXT", help="for the peers' environments")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the rows; returns the exit code."""
    arguments = build_parser().parse_args(argv)

    def run() -> int:
        with interruptible():
            return _run(arguments)

    return exit_code_of(run, "interrupted; finished rows are kept")


def _run(arguments: argparse.Namespace) -> int:
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    order = all_rows(full_size=True)
    rows = _wanted(arguments)
    results = work / "parity.json"
    workshop = Workshop(
        work, arguments.data.resolve(), work, arguments.pip_options, arguments.threads, again=arguments.again_peer
    )
    records = read_records(results)
    if arguments.table:
        todo = []
        if not records:
            raise FolderError(f"{results}: no rows in it; expected those of an earlier run, which --table only shows")
    else:
        ours = workshop.network_sha256
        records = {name: record for name, record in records.items() if record.get("network_sha256") == ours}
        todo = [row for row in rows if arguments.again or row.name not in records]
    if todo and not arguments.data.is_dir():
        raise FolderError(f"{arguments.data}: no such folder; expected CT scans ct_001_0000.nii.gz etc. Give --data")
    not_run = 0
    for number, row in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {row.name}", flush=True)
        record = _attempt(workshop, row)
        if record is None:
            not_run += 1
            continue
        records[row.name] = record
        write_records(results, {r.name: records[r.name] for r in order if r.name in records})
    shown = [records[row.name] for row in order if row.name in records]
    text = markdown(shown)
    (work / "parity.md").write_text(text, encoding="utf-8")
    print(text, end="")
    failed = any(record["failures"] and record["not_counted"] is None for record in shown)
    return EXIT_CASE_FAILED if failed or not_run else EXIT_OK


def _attempt(workshop: Workshop, row: Row) -> dict[str, Any] | None:
    """The record of a row, or None if a side could not be run: the others go on."""
    start = time.perf_counter()
    try:
        record = {**workshop.run(row), "machine": machine(workshop.threads)}
    except AppError as error:
        print(f"  could not be run: {error}", file=sys.stderr, flush=True)
        return None
    result = record["not_counted"] or "; ".join(record["failures"]) or "passes"
    print(f"  {100 * record['agreement']:.4f} % equal, {result} ({time.perf_counter() - start:.0f} s)", flush=True)
    return record


def _wanted(arguments: argparse.Namespace) -> list[Row]:
    if arguments.quick:
        return [
            Row("v1-fastest", "v1", "default", "ct_006", "torch", mode="fastest", step=0.7),
            Row("v2", "v2", "default", "ct_006", "openvino"),
        ]
    try:
        return select_rows(all_rows(arguments.full_size), arguments.rows, arguments.scans)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(main())
