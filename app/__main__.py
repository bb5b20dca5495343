"""Command line: arguments, logging, exit codes."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app import __version__
from app.errors import EXIT_CASE_FAILED, EXIT_OK, EXIT_USAGE, AppError, UsageError
from app.interruption import EXIT_INTERRUPTED, interruptible
from app.log_format import OneLineFormatter
from app.machine_limits import DEFAULT_MAX_MEMORY, parse_bytes, processor_limit

if TYPE_CHECKING:
    from app.bundle import Bundle
    from app.pipeline import TwinSource
    from app.region import Locator
    from app.report import RunRecord

_DESCRIPTION = "Segments 13 abdominal organs in CT scans: one NIfTI label map per scan, on the scan's own voxel grid."
_EPILOG = """\
inputs: *.nii.gz, *.nii, *.mha, *.mhd, *.nrrd, *.nhdr, and folders with one DICOM series each.
X_0000.nii.gz gives X.nii.gz; a name without _0000 is kept; others give NAME.nii.gz.

examples:
  python -m app --input-dir scans --output-dir labels
  python -m app --input scan.nii.gz --output labels.nii.gz --mode normal --report report.json

the paper's two protocols, with a bundle B that was trained with mirroring:
  python -m app --bundle B --spacing off --mode normal --mirror --input-dir scans --output-dir labels    (validation)
  python -m app --bundle B --spacing header --mode fastest --input-dir scans --output-dir labels         (test)

exit codes:
  0  all cases segmented, or there already with --skip-existing
  1  some case failed; the others were segmented
  2  wrong usage
  3  no input found, or the output cannot be written
  4  bundle or device unusable
"""
_DEFAULT_BUNDLE = Path(__file__).resolve().parent.parent / "weights" / "default"

logger = logging.getLogger("app")


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = parser.add_argument_group("files (a pair of folders, or a pair of files)")
    files.add_argument("--input-dir", type=Path, metavar="DIR", help="folder with scans")
    files.add_argument("--output-dir", type=Path, metavar="DIR", help="folder for label maps; made if it is not there")
    files.add_argument("--input", type=Path, metavar="FILE", help="one scan, or a folder with one DICOM series")
    files.add_argument("--output", type=Path, metavar="FILE", help="its label map (.nii.gz or .nii)")
    files.add_argument("--report", type=Path, metavar="FILE.json", help="write stage times, warnings and organ volumes")
    files.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave cases alone whose label map is there; what --report said of them before is kept in it",
    )
    network = parser.add_argument_group("network")
    network.add_argument(
        "--bundle", type=Path, metavar="DIR", default=_DEFAULT_BUNDLE, help="trained network (default: weights/default)"
    )
    network.add_argument(
        "--backend",
        choices=("auto", "openvino", "onnxruntime", "torch"),
        default="auto",
        help="what runs it; auto: OpenVINO on a CPU, ONNX Runtime on CUDA",
    )
    network.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: CUDA if it is there and works, else the CPU",
    )
    network.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 where the CPU calculates in it, else fp32; on CUDA fp16 with PyTorch, fp32 with ONNX Runtime",
    )
    network.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help="CPU threads of the network (default: the processors that affinity and the container's quota allow)",
    )
    pipeline = parser.add_argument_group("pipeline (all other constants are in the bundle's plan.json)")
    pipeline.add_argument(
        "--mode",
        choices=("fastest", "normal"),
        help="fastest: arg max, then nearest neighbour; normal: arg max of interpolated logits (default: the plan's)",
    )
    pipeline.add_argument(
        "--mirror", action="store_true", help="average over mirrored passes along the plan's mirror_axes"
    )
    pipeline.add_argument(
        "--spacing",
        choices=("bundle", "off", "header", "resample"),
        default="bundle",
        help="enforced spacing. bundle: what the plan says (default); off: none; header: the paper's override by "
        "slice count; resample: true spacing, bounded grid",
    )
    pipeline.add_argument(
        "--crop",
        choices=("bundle", "none", "body", "organs"),
        default="bundle",
        help="segment the whole scan (none), the body, or the box of what the bundle's locator finds "
        "(default: bundle, what the plan says)",
    )
    pipeline.add_argument(
        "--uncertainty",
        action="store_true",
        help="run the bundle's second network too: how far both agree on each organ goes into the report, little "
        "agreement is a warning. The label map stays the same; takes twice the time",
    )
    pipeline.add_argument(
        "--max-memory",
        type=_size,
        metavar="SIZE",
        default=DEFAULT_MAX_MEMORY,
        help="memory that this process may take, such as 28g, 1500m or bytes; less if the container or the machine has "
        "less. A case that needs more gets a coarser spacing if the bundle allows it, or fails at once "
        "(default: %(default)s)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log every stage, also on a terminal")
    parser.add_argument("-q", "--quiet", action="store_true", help="log errors only, show no progress bar")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the app; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    terminal = sys.stderr.isatty() and not arguments.quiet
    _configure_logging(arguments.verbose, arguments.quiet, terminal)
    try:
        with interruptible():
            return _run(arguments, terminal)
    except ModuleNotFoundError as error:
        logger.error("%s is not installed; run `make setup` and use .venv/bin/python", error.name)
        return EXIT_USAGE
    except AppError as error:
        logger.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted before any case was begun")
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace, terminal: bool) -> int:
    _check_usage(arguments)
    from app.backends import create_predictor, expected_memory  # here, so that --help and usage errors cost no imports
    from app.bundle import load_bundle
    from app.cases import find_cases, prepare_output_folder, single_case
    from app.pipeline import Options, run
    from app.progress import SilentProgress, TerminalProgress
    from app.report import RunRecord

    record = RunRecord(options={key: value for key, value in vars(arguments).items() if value is not None})
    if arguments.report:
        _prepare_report(arguments.report, record, arguments.skip_existing)
    try:
        if arguments.input:
            cases = [single_case(arguments.input, arguments.output)]
        else:
            cases = find_cases(arguments.input_dir, arguments.output_dir)
        prepare_output_folder(cases[0].output_path.parent)
        bundle = load_bundle(arguments.bundle)
        plan = bundle.plan
        record.bundle = {"folder": str(bundle.folder), "name": plan.name, **bundle.sha256}
        options = Options(
            mode=arguments.mode or plan.mode,
            spacing=plan.spacing.enforce if arguments.spacing == "bundle" else arguments.spacing,
            mirror=arguments.mirror,
            crop=plan.shortcuts.crop if arguments.crop == "bundle" else arguments.crop,
            skip_existing=arguments.skip_existing,
            max_memory_bytes=arguments.max_memory,
        )
        if options.mirror and not plan.sliding_window.mirror_axes:
            record.warnings.append(
                "--mirror changes nothing: this network was trained without mirroring (no mirror_axes)"
            )
            logger.warning(record.warnings[-1])
        record.options.update(
            mode=options.mode, spacing=options.spacing, crop=options.crop
        )  # as they are, where the plan decided
        record.threads = arguments.threads or processor_limit()
        factory = partial(
            create_predictor, bundle, arguments.backend, arguments.device, arguments.precision, record.threads
        )
        make_locator = _locator_factory(bundle, options.crop, arguments, record.threads)
        network_memory = expected_memory(bundle, arguments.backend, arguments.device, arguments.precision)
        progress = TerminalProgress(len(cases)) if terminal else SilentProgress()
        twin = _twin_source(bundle, arguments, record.threads) if arguments.uncertainty else None
        run(cases, plan, factory, options, progress, record, network_memory, make_locator, twin)
        record.exit_code = EXIT_CASE_FAILED if record.count("failed") else EXIT_OK
        logger.info(
            "%d segmented, %d skipped, %d failed in %.1f s",
            record.count("segmented"),
            record.count("skipped"),
            record.count("failed"),
            record.seconds,
        )
    except AppError as error:
        record.error, record.exit_code = str(error), error.exit_code
        logger.error("%s", error)
        if record.count("not_begun"):
            logger.error("stopped: %s; --skip-existing goes on from here", record.outcome())
    except KeyboardInterrupt:
        record.error, record.exit_code = "interrupted", EXIT_INTERRUPTED
        logger.error("interrupted: %s; --skip-existing goes on from here", record.outcome())
    finally:
        if arguments.report:
            record.write(arguments.report)
    return record.exit_code


def _prepare_report(path: Path, record: "RunRecord", carry_on: bool) -> None:
    """Shows mistakes before hours of work; with ``carry_on`` the record continues the one that is there."""
    from app.cases import check_output_name, prepare_output_folder

    check_output_name("--report", path)
    prepare_output_folder(path.parent)
    if path.is_dir():
        raise UsageError(f"--report {path}: is a folder; expected the name of a file")
    if carry_on:
        record.carry_on(path)


def _locator_factory(
    bundle: "Bundle", crop: str, arguments: argparse.Namespace, threads: int
) -> "Callable[[], Locator] | None":
    """What loads the bundle's locator, if it is needed."""
    if crop != "organs":
        return None
    locator = bundle.locator
    if locator is None:
        raise UsageError(f"--crop organs: {bundle.folder} has no locator; choose --crop body or none")

    def load() -> "Locator":
        from app.backends import create_predictor
        from app.region import Locator

        predictor, _ = create_predictor(locator, arguments.backend, arguments.device, arguments.precision, threads)
        return Locator(locator.plan, predictor)

    return load


def _twin_source(bundle: "Bundle", arguments: argparse.Namespace, threads: int) -> "TwinSource":
    """How the bundle's second network is loaded."""
    from app.backends import create_predictor, expected_memory
    from app.pipeline import TwinSource

    if bundle.twin is None:
        raise UsageError(
            f"--uncertainty: {bundle.folder} has no twin; expected a bundle with two networks, as `python -m "
            "tools.train export --twin` writes it"
        )
    how = (arguments.backend, arguments.device, arguments.precision)
    return TwinSource(partial(create_predictor, bundle.twin, *how, threads), expected_memory(bundle, *how, networks=2))


def _size(text: str) -> int:
    """Bytes of ``--max-memory``."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    """A number of threads."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def _check_usage(arguments: argparse.Namespace) -> None:
    """Raises UsageError unless there is one complete pair of input and output."""
    folders = (arguments.input_dir, arguments.output_dir)
    files = (arguments.input, arguments.output)
    given = [all(pair) for pair in (folders, files)]
    if sum(given) != 1 or any(any(pair) and not all(pair) for pair in (folders, files)):
        raise UsageError("expected --input-dir with --output-dir, or --input with --output; see --help")


def _configure_logging(verbose: bool, quiet: bool, terminal: bool) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if terminal:
        from app.progress import TerminalLogHandler

        handler = TerminalLogHandler()
    handler.setFormatter(OneLineFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger.handlers = [handler]
    if quiet:
        logger.setLevel(logging.ERROR)
    elif verbose:
        logger.setLevel(logging.DEBUG)
    else:
        logger.setLevel(logging.WARNING if terminal else logging.INFO)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # measured: OpenVINO's own clean-up takes 0.1 s after all files are closed
