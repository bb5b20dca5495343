"""Command line: ``python -m tools.hostile``."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

from app.cases import prepare_output_folder
from app.errors import EXIT_CASE_FAILED, EXIT_OK, FolderError
from app.interruption import interruptible
from app.machine_limits import processor_limit
from tools.exit_codes import exit_code_of
from tools.hostile import endurance
from tools.hostile.determinism import RUNS, check_determinism
from tools.hostile.faults import FAULTS, try_faults
from tools.hostile.fuzz import fuzz, new_record
from tools.hostile.machine import ROOT, circumstances
from tools.hostile.processes import Done, check_end
from tools.hostile.records import TABLE_FILE, Record, failures, read_record, write_record
from tools.profile.container import inspect_image

INPUTS = 200_000
_EPILOG = """\
fuzz         mutated files through finding cases, reading, preprocessing and writing; goes on where it was stopped
faults       kill -9, SIGTERM, full disks, folders and inputs that change, too little memory, faulty networks
endurance    hundreds of cases in one process
determinism  equal input, equal bytes
all          these four

The record is OUT/hostile.json; OUT/hostile.md is made of it.
Exit code 1: something was not as expected; 130: interrupted (Ctrl-C, SIGTERM).
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.hostile",
        description="Tries to break the app, and records what happened.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=(*_SECTIONS, "all"))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "hostile", metavar="DIR", help="goes on there")
    count = _whole_number_from(1)
    parser.add_argument(
        "--inputs", type=count, default=INPUTS, metavar="N", help="of the fuzzer (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=count, default=processor_limit(), metavar="N", help="its processes (default: %(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="forget what the fuzzer tried before")
    parser.add_argument(
        "--only", choices=tuple(FAULTS), nargs="+", default=tuple(FAULTS), metavar="FAULT", help=", ".join(FAULTS)
    )
    parser.add_argument(
        "--share", type=_share, default=1.0, metavar="S", help="try what is tried often S times as often (default: 1)"
    )
    parser.add_argument(
        "--cases",
        type=_whole_number_from(endurance.FEWEST_CASES),
        default=endurance.CASES,
        metavar="N",
        help="of endurance (default: %(default)s)",
    )
    parser.add_argument(
        "--runs", type=count, default=RUNS, metavar="N", help="of determinism's scan (default: %(default)s)"
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "weights" / "default", metavar="DIR", help="its network")
    parser.add_argument("--scan", type=Path, metavar="FILE", help="its scan (default: a phantom)")
    parser.add_argument("--image", default="", metavar="NAME", help="container image; without, none is run")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Tries what was asked for; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return exit_code_of(
        lambda: _try(arguments),
        "interrupted; the record has what was tried, and the fuzzer goes on from there",
    )


def _try(arguments: argparse.Namespace) -> int:
    with interruptible():
        record = read_record(arguments.out)
        _check_usage(arguments)
        for name in _SECTIONS if arguments.what == "all" else (arguments.what,):
            _SECTIONS[name](arguments, record)
    print((arguments.out / TABLE_FILE).read_text())
    found = failures(record)
    for failure in found:
        print(failure, file=sys.stderr)
    return EXIT_CASE_FAILED if found else EXIT_OK


def _check_usage(arguments: argparse.Namespace) -> None:
    """Shows mistakes before hours of work."""
    prepare_output_folder(arguments.out)
    if arguments.scan and not arguments.scan.is_file():
        raise FolderError(f"--scan {arguments.scan}: no such file; expected a scan as .nii.gz")
    if arguments.image:
        inspect_image(arguments.image, "{{.Id}}")


def _fuzz(arguments: argparse.Namespace, record: Record) -> None:
    def save(outcome: Record) -> None:
        record["fuzz"] = {**circumstances(), "outcome": outcome}
        write_record(arguments.out, record)
        print(f"{outcome['next']} inputs, {len(outcome['findings'])} findings, {outcome['seconds']:.0f} s", flush=True)

    before = new_record() if arguments.again or "fuzz" not in record else record["fuzz"]["outcome"]
    fuzz(before, arguments.inputs, save, arguments.workers)


def _faults(arguments: argparse.Namespace, record: Record) -> None:
    def save(name: str, outcome: dict[str, Any]) -> None:
        record.setdefault("faults", {})[name] = {**circumstances(), "outcome": outcome}
        write_record(arguments.out, record)
        print(f"{name}: {outcome['skipped'] or outcome['failures'] or 'as expected'}", flush=True)

    try_faults(arguments.only, arguments.share, arguments.image, save)


def _endurance(arguments: argparse.Namespace, record: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a process of its own, which holds nothing of what was done before
        found = Path(folder) / "endurance.json"
        command = [sys.executable, "-m", "tools.hostile.endurance", str(arguments.cases), str(found)]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
        check_end(Done(done.returncode, done.stderr, 0), "endurance")
        record["endurance"] = {**circumstances(), "outcome": json.loads(found.read_text())}
    write_record(arguments.out, record)


def _determinism(arguments: argparse.Namespace, record: Record) -> None:
    found = check_determinism(arguments.runs, arguments.bundle.resolve(), arguments.scan, arguments.image)
    record["determinism"] = {**circumstances(), "outcome": found}
    write_record(arguments.out, record)


def _whole_number_from(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from {least}")
        return int(text)

    return read


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


_SECTIONS = {"fuzz": _fuzz, "faults": _faults, "endurance": _endurance, "determinism": _determinism}

if __name__ == "__main__":
    sys.exit(main())
