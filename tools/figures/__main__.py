"""Command line of the figures: ``python -m tools.figures planes SCAN LABELS OUT.png``."""

import argparse
import sys
from pathlib import Path

from app.errors import AppError
from app.volume_io import NIFTI_SUFFIXES
from tools.figures.planes import write_planes


def main(argv: list[str] | None = None) -> int:
    """Draws what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.figures", description="Draws pictures from data on disk.")
    figures = parser.add_subparsers(required=True, metavar="FIGURE")
    planes = figures.add_parser("planes", help="three planes through a scan with its organs in colour")
    planes.add_argument("scan", type=Path, metavar="SCAN", help="whatever the app reads")
    planes.add_argument("labels", type=Path, metavar="LABELS", help="its label map, as the app writes it")
    planes.add_argument("out", type=Path, metavar="OUT.png")
    planes.add_argument("--title", help="headline (default: the label map's name)")
    planes.add_argument("--palette", action="store_true", help="256 colours, for a smaller file")
    arguments = parser.parse_args(argv)
    title = arguments.title or _stem(arguments.labels)
    try:
        write_planes(arguments.scan, arguments.labels, arguments.out, title, palette=arguments.palette)
    except AppError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _stem(path: Path) -> str:
    for suffix in NIFTI_SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


if __name__ == "__main__":
    sys.exit(main())
