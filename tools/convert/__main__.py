"""Command line: ``python -m tools.convert onnx|verify BUNDLE``."""

import argparse
import sys
from pathlib import Path

from app.bundle import load_bundle
from app.errors import AppError

_EPILOG = """\
examples:
  python -m tools.convert onnx weights/mine          write network.onnx anew from network.safetensors
  python -m tools.convert verify weights/default --scan scan.nii.gz

verify exits with 1 if a runtime differs from torch beyond the limits that it prints.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert",
        description="Converts the networks of bundles and proves that all runtimes agree on them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("onnx", help="safetensors -> ONNX (one file, opset 17, fixed shape)")
    export.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify = commands.add_parser("verify", help="compare ONNX Runtime and OpenVINO with torch on patches")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.add_argument("--scan", type=Path, action="append", default=[], help="also compare on this scan (repeatable)")
    verify.add_argument("--random", type=int, default=2, metavar="N", help="random patches (default: 2)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return _convert(arguments.bundle) if arguments.command == "onnx" else _verify(arguments)
    except AppError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _convert(folder: Path) -> int:
    from tools.convert.bundles import rebuild_onnx

    rebuild_onnx(folder)
    print(f"{folder / 'network.onnx'} written")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from tools.convert import verify

    bundle = load_bundle(arguments.bundle)
    patches = verify.random_patches(bundle.plan, arguments.random)
    for scan in arguments.scan:
        patches[scan.name] = verify.real_patch(bundle.plan, scan)
    results = verify.compare_runtimes(bundle, patches)
    print(f"{'patch':<28} {'runtime':<12} {'difference':>11} {'agreement':>10}")
    for result in results:
        mark = "" if result.passed else "  beyond the limits"
        print(
            f"{result.patch:<28} {result.backend:<12} {result.relative_difference:>11.2e} "
            f"{result.agreement:>10.6f}{mark}"
        )
    print(
        f"limits: difference {verify.LARGEST_RELATIVE_DIFFERENCE:g} of the largest logit, "
        f"agreement {verify.SMALLEST_AGREEMENT:g} of the voxels"
    )
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
