"""Command line: ``python -m tools.bench``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from app.cases import prepare_output_folder
from app.errors import EXIT_CASE_FAILED, EXIT_OK, AppError, FolderError
from app.interruption import interruptible
from tools.bench.explanation import EPILOG
from tools.bench.plots import draw_plots
from tools.bench.records import WHERE_FROM, keep_group, read_results, rounds_wanted, with_conclusions, write_results
from tools.bench.rows import Row, all_rows, quick_rows, select_rows
from tools.bench.runs import Workshop
from tools.bench.table import markdown
from tools.exit_codes import exit_code_of
from tools.machine import ROOT, commit, has_bf16, machine_facts

RESULTS_FILE, TABLE_FILE = "bench.json", "bench.md"
_DATA = ROOT.parent / "shared" / "data" / "abdomen_ct" / "images"
_REPEATS = 5
_SLOW_S, _SLOW_REPEATS = 120.0, 3


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench",
        description="Measures time and memory of this app beside nnU-Net v1 and v2, and beside its own floor.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--rows", type=_names, default=[], metavar="A,B", help="only these, see below; heavy ones too")
    what.add_argument("--list", action="store_true", help="show the rows and run nothing")
    what.add_argument("--quick", action="store_true", help="ct_006, once, without nnU-Net: a minute")
    what.add_argument(
        "--repeats", type=_positive, metavar="N", help="runs a row (default: 5; 3 where a run takes minutes)"
    )
    what.add_argument("--again", action="store_true", help="forget earlier runs of these rows")
    what.add_argument("--from", type=Path, dest="source", metavar="JSON", help="run nothing; table and pictures of it")
    where = parser.add_argument_group("where")
    where.add_argument("--data", type=Path, default=_DATA, metavar="DIR", help="folder with ct_001_0000.nii.gz etc.")
    where.add_argument("--work", type=Path, default=ROOT / "build" / "bench", metavar="DIR", help="where all goes")
    where.add_argument(
        "--bundle", type=Path, default=ROOT / "weights" / "default", metavar="DIR", help="the network called default"
    )
    where.add_argument(
        "--environments", type=Path, default=ROOT / "build" / "parity", metavar="DIR", help="of nnU-Net (make parity's)"
    )
    where.add_argument("--pip-options", default="", metavar="TEXT", help="for nnU-Net's environments")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the rows; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    command = sys.argv[1:] if argv is None else argv
    return exit_code_of(
        lambda: _run(arguments, command), "interrupted; finished runs are kept, the same command goes on"
    )


def _run(arguments: argparse.Namespace, command: list[str]) -> int:
    if arguments.list:
        return _list_rows()
    if arguments.source:
        return _show(_read_existing(arguments.source), arguments.source.resolve().parent)
    with interruptible():
        return _bench(arguments, command)


def _bench(arguments: argparse.Namespace, command: list[str]) -> int:
    work = arguments.work.resolve() / ("quick" if arguments.quick else "")
    prepare_output_folder(work)
    bench = _Bench(arguments, work / RESULTS_FILE, command)
    rows = quick_rows(has_bf16()) if arguments.quick else select_rows(all_rows(has_bf16()), arguments.rows)
    for group in dict.fromkeys((row.group, row.network) for row in rows):
        bench.prepare([row for row in rows if (row.group, row.network) == group])
    for group in dict.fromkeys((row.group, row.network) for row in rows):
        bench.run_group([row for row in rows if (row.group, row.network) == group])
    return _show(read_results(work / RESULTS_FILE), work)


class _Bench:
    """The runs of one call, each written as soon as it has ended."""

    def __init__(self, arguments: argparse.Namespace, path: Path, command: list[str]) -> None:
        self._path = path
        self._again = arguments.again
        self._repeats: int = arguments.repeats or (1 if arguments.quick else _REPEATS)
        self._slow_repeats: int = arguments.repeats or _SLOW_REPEATS
        self._workshop = Workshop(
            path.parent,
            arguments.data.resolve(),
            arguments.bundle.resolve(),
            arguments.environments.resolve(),
            arguments.pip_options,
        )
        self._results = read_results(path)
        self._facts = {
            "machine": machine_facts(),
            "commit": commit(),
            "command": ["python", "-m", "tools.bench", *command],
        }

    def prepare(self, rows: list[Row]) -> None:
        """Makes what the runs need, so that a mistake shows before hours of them; drops runs that cannot be kept."""
        for scan in dict.fromkeys(row.scan for row in rows if row.scan):
            print(f"scan {scan}", flush=True)
            self._results["scans"][scan] = self._workshop.scan_facts(scan)
        kept = keep_group(rows, self._results["rows"], self._workshop.digest(rows[0]), self._again)
        self._results["rows"] |= kept

    def run_group(self, rows: list[Row]) -> None:
        """Round after round: each row once, in order; a row that fails is left out from then on.

        Raises:
            AppError: what is measured is no longer what it was when the group began.
        """
        records = {row.name: self._results["rows"][row.name] for row in rows}
        done, failed = 0, set()
        while done < rounds_wanted(records, self._repeats, self._slow_repeats, _SLOW_S):
            for row in rows:
                runs = records[row.name]["runs"]
                if len(runs) > done or row.name in failed:
                    continue
                if self._workshop.digest(row) != records[row.name]["digest"]:
                    raise AppError(
                        f"{ROOT}: code or bundle changed during the bench; finished runs are kept. Start again"
                    )
                run = self._workshop.run(row)
                runs.append(run)
                records[row.name] |= self._facts
                if run["error"]:
                    failed.add(row.name)
                self._save()
                print(f"{row.name} [{done + 1}] {_outcome(run)}", flush=True)
            done += 1

    def _save(self) -> None:
        order = [row.name for row in all_rows(bf16=True)]
        rows = self._results["rows"]
        self._results["rows"] = {name: rows[name] for name in order if name in rows}
        write_results(self._path, self._results)


def _outcome(run: dict[str, Any]) -> str:
    if run["error"]:
        return f"failed: {run['error']}"
    return f"{run['wall_s']:.2f} s, {run['cpu_s']:.2f} CPU s, {run['peak_rss_mib']:.0f} MiB"


def _show(results: dict[str, Any], folder: Path) -> int:
    """Writes table and pictures, prints the table; 1 if a row failed."""
    results = with_conclusions(results)
    text = markdown(results)
    (folder / TABLE_FILE).write_text(text, encoding="utf-8")
    pictures = draw_plots(results, folder)
    print(text)
    print(", ".join(str(path) for path in (folder / TABLE_FILE, *pictures)))
    failed = any(found["error"] for found in results["summary"]["rows"].values())
    return EXIT_CASE_FAILED if failed else EXIT_OK


def _read_existing(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FolderError(f"{path}: not there; expected the {RESULTS_FILE} of an earlier run")
    results = read_results(path)
    for name, record in results["rows"].items():
        missing = set(WHERE_FROM) - set(record)
        if record["runs"] and missing:
            raise FolderError(f"{path}: {name} has no {', '.join(sorted(missing))}; expected what make bench writes")
    return results


def _list_rows() -> int:
    for row in all_rows(has_bf16()):
        print(f"{row.name}{'   (heavy: only if named)' if row.heavy else ''}")
    return EXIT_OK


def _names(text: str) -> list[str]:
    return [name.rstrip("/") for name in text.split(",") if name]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
