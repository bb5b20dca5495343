"""Command line: logging, exit codes, what the options come to."""

import argparse
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from app.arguments import build_parser, check_usage
from app.errors import EXIT_CASE_FAILED, EXIT_OK, EXIT_USAGE, AppError, FolderError, UsageError
from app.interruption import EXIT_INTERRUPTED, interruptible
from app.log_format import OneLineFormatter
from app.machine_limits import processor_limit

if TYPE_CHECKING:
    from app.bundle import Bundle
    from app.cases import Case
    from app.options import Options
    from app.report import RunRecord
    from app.sources import NetworkSources

logger = logging.getLogger("app")


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
        logger.error("interrupted; every label map that is there is whole")
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace, terminal: bool) -> int:
    check_usage(arguments)
    if "numpy" not in sys.modules:  # whose BLAS reads it once, and by itself knows affinity, but no group's quota
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(processor_limit()))
    from app.bundle import load_bundle  # here, so that --help and usage errors cost no imports
    from app.cases import prepare_output_folder
    from app.progress import SilentProgress, TerminalProgress
    from app.report import RunRecord
    from app.runs import run

    record = RunRecord(options={key: value for key, value in vars(arguments).items() if value is not None})
    cases, no_input = _find_cases(arguments)
    if arguments.report:
        _prepare_report(arguments, cases, record)
    try:
        if no_input:
            raise no_input
        prepare_output_folder(cases[0].output_path.parent)
        bundle = load_bundle(arguments.bundle)
        record.bundle = {"folder": str(bundle.folder), "name": bundle.plan.name, **bundle.sha256}
        record.threads = arguments.threads or processor_limit()
        options = _options(arguments, bundle, record)
        sources = _sources(arguments, bundle, options, record.threads)
        progress = TerminalProgress(len(cases)) if terminal else SilentProgress()
        run(cases, sources, options, progress, record)
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
            _write_report(arguments.report, record)
    return record.exit_code


def _find_cases(arguments: argparse.Namespace) -> tuple[list["Case"], FolderError | None]:
    """The cases, or why there are none, which the report is to tell.

    A UsageError is raised: until the cases are known, the report may be what it must not replace.
    """
    from app.cases import Case, find_cases, single_case

    try:
        if arguments.input:
            return [single_case(arguments.input, arguments.output)], None
        return find_cases(arguments.input_dir, arguments.output_dir), None
    except FolderError as error:
        case = [Case(arguments.output.name, arguments.input, arguments.output)] if arguments.input else []
        return case, error


def _prepare_report(arguments: argparse.Namespace, cases: list["Case"], record: "RunRecord") -> None:
    """Shows mistakes before hours of work; with ``--skip-existing`` the record continues the one that is there."""
    from app.cases import check_output_name, check_report_place, prepare_output_folder

    path = arguments.report
    check_output_name("--report", path)
    check_report_place(path, cases)
    if path.suffix.lower() != ".json":  # it may be the voxels of a scan whose header is a file of its own
        raise UsageError(f"--report {path}: expected a name that ends in .json")
    prepare_output_folder(path.parent)
    if path.is_dir():
        raise UsageError(f"--report {path}: is a folder; expected the name of a file")
    if arguments.skip_existing:
        record.carry_on(path)


def _write_report(path: Path, record: "RunRecord") -> None:
    """Writes it; if that fails, the run ends with the code of that, unless it ended early for another reason."""
    try:
        record.write(path)
    except FolderError as error:
        logger.error("%s", error)
        if record.error is None:
            record.exit_code = error.exit_code


def _options(arguments: argparse.Namespace, bundle: "Bundle", record: "RunRecord") -> "Options":
    """What the command line says, and the plan where that leaves it open; both go into the record."""
    from app.options import Options

    plan = bundle.plan
    options = Options(
        mode=arguments.mode or plan.mode,
        spacing=plan.spacing.enforce if arguments.spacing == "bundle" else arguments.spacing,
        mirror=arguments.mirror,
        crop=plan.shortcuts.crop if arguments.crop == "bundle" else arguments.crop,
        skip_existing=arguments.skip_existing,
        max_memory_bytes=arguments.max_memory,
    )
    record.options.update(mode=options.mode, spacing=options.spacing, crop=options.crop)
    if options.mirror and not plan.sliding_window.mirror_axes:
        record.warnings.append("--mirror changes nothing: this network was trained without mirroring (no mirror_axes)")
        logger.warning(record.warnings[-1])
    return options


def _sources(arguments: argparse.Namespace, bundle: "Bundle", options: "Options", threads: int) -> "NetworkSources":
    """The networks of the bundle that this run needs."""
    from app.backends import network_source
    from app.sources import NetworkSources

    if options.crop != "none" and not bundle.plan.can_be_cropped:
        raise UsageError(
            f"--crop {options.crop}: {bundle.folder} crops to what is not 0 HU, or has an order of axes of its own, as "
            "nnU-Net's networks do; choose --crop none"
        )
    if options.crop == "organs" and bundle.locator is None:
        raise UsageError(f"--crop organs: {bundle.folder} has no locator; choose --crop body or none")
    if arguments.uncertainty and bundle.twin is None:
        raise UsageError(
            f"--uncertainty: {bundle.folder} has no twin; expected a bundle with two networks, as `python -m "
            "tools.train export --twin` writes it"
        )
    wanted = (
        bundle,
        bundle.locator if options.crop == "organs" else None,
        bundle.twin if arguments.uncertainty else None,
    )
    how = (arguments.backend, arguments.device, arguments.precision, threads)
    segmenter, locator, twin = (network_source(part, *how) if part else None for part in wanted)
    assert segmenter is not None
    return NetworkSources(segmenter, locator, twin)


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


def _open_closed_streams() -> None:
    """Opens what the process was started without (``>&-``) on the null device.

    Else the next file that is opened, a label map, has the number of stderr, and what native code prints goes into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # each takes the lowest that is free
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", errors="backslashreplace", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", errors="backslashreplace", closefd=False)


if __name__ == "__main__":
    _open_closed_streams()
    code = main()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody listens any more, which is not the run's failure
            stream.flush()
    os._exit(code)  # measured: OpenVINO's own clean-up takes 0.1 s after all files are closed
