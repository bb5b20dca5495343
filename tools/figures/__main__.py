"""Command line of the figures: ``python -m tools.figures planes SCAN LABELS OUT.png``, ``... methods OUT.png ...``."""

import argparse
import sys
from pathlib import Path

from app.errors import EXIT_OK, UsageError
from app.volume_io import NIFTI_SUFFIXES
from tools.exit_codes import exit_code_of
from tools.figures.methods import read_case_rows, write_methods
from tools.figures.planes import write_planes

_METHODS_EXAMPLE = """\
example:
  python -m tools.figures methods figure5.png --scans imagesTs --references labelsTs \\
      --method "nnU-Net=baseline" --method "3D-CPS=outputs" --cases case_0002 case_0021 --slice case_0021=57
"""


def main(argv: list[str] | None = None) -> int:
    """Draws what is asked for; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return exit_code_of(lambda: _draw(arguments), "interrupted; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.figures", description="Draws pictures from data on disk.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    planes = figures.add_parser("planes", help="three planes through a scan with its organs in colour")
    planes.add_argument("scan", type=Path, metavar="SCAN", help="whatever the app reads")
    planes.add_argument("labels", type=Path, metavar="LABELS", help="its label map, as the app writes it")
    methods = figures.add_parser(
        "methods",
        help="scan, reference and methods side by side, a row for each case, with the mean DSC",
        epilog=_METHODS_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for figure in (planes, methods):
        figure.add_argument("out", type=Path, metavar="OUT.png")
        figure.add_argument("--palette", action="store_true", help="256 colours, for a smaller file")
    planes.add_argument("--title", help="headline (default: the label map's name)")
    methods.add_argument("--title", default="Methods side by side", help="headline")
    methods.add_argument("--scans", type=Path, required=True, metavar="DIR", help="X_0000.nii.gz or X.nii.gz")
    methods.add_argument("--references", type=Path, required=True, metavar="DIR", help="X.nii.gz")
    methods.add_argument("--method", action="append", required=True, metavar="NAME=DIR", help="X.nii.gz; repeatable")
    methods.add_argument("--cases", nargs="+", default=[], metavar="X", help="in this order (default: all references)")
    methods.add_argument(
        "--slice", action="append", default=[], metavar="X=N", help="lowest is 1 (default: the one with most organs)"
    )
    return parser


def _draw(arguments: argparse.Namespace) -> int:
    if arguments.figure == "planes":
        title = arguments.title or _stem(arguments.labels)
        write_planes(arguments.scan, arguments.labels, arguments.out, title, palette=arguments.palette)
    else:
        _draw_methods(arguments)
    return EXIT_OK


def _draw_methods(arguments: argparse.Namespace) -> None:
    methods = {name: Path(folder) for name, folder in _pairs("--method", arguments.method, "NAME=DIR").items()}
    numbers = _pairs("--slice", arguments.slice, "X=N")
    for case_id, number in numbers.items():
        if not number.isdecimal():
            raise UsageError(f"--slice {case_id}={number}: expected a whole number, the lowest slice is 1")
    slices = {case_id: int(number) for case_id, number in numbers.items()}
    rows = read_case_rows(arguments.scans, arguments.references, methods, arguments.cases, slices)
    write_methods(rows, arguments.out, arguments.title, arguments.palette)


def _pairs(option: str, entries: list[str], expected: str) -> dict[str, str]:
    found = {}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if not (name and sign and value) or name in found:
            raise UsageError(f"{option} {entry}: expected {expected}, each name once")
        found[name] = value
    return found


def _stem(path: Path) -> str:
    for suffix in NIFTI_SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


if __name__ == "__main__":
    sys.exit(main())
