"""Command line: ``python -m tools.profile``."""

import argparse
import logging
import re
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from app.errors import EXIT_CASE_FAILED, EXIT_OK, AppError, UsageError
from app.interruption import EXIT_INTERRUPTED
from tools.exit_codes import exit_code_of
from tools.profile.arguments import device_index, seconds
from tools.profile.container import Container, team_of
from tools.profile.explanation import EPILOG
from tools.profile.harness import Harness, find_scans, run_cases
from tools.profile.measuring import (
    PICTURE_FILE,
    PROFILE_FILE,
    REPORT_FILE,
    Sampling,
    describe,
    prepare_empty_folder,
    record,
    write_profile,
)
from tools.profile.official import DEFAULT_PROTOCOL, PROTOCOLS
from tools.profile.results import describe_all
from tools.profile.runner import Job
from tools.profile.scopes.gpu import find_gpu

logger = logging.getLogger(__name__)

_EXIT_TIMED_OUT = 124
_STUCK_S = 3600.0  # what the organisers count for a stuck container
_LIMITS = ("-m", "--memory-swap", "--cpus", "--shm-size")
_FOR_IMAGES = ("--inputs", "--team", "--protocol", "--stages", *_LIMITS)
_FOR_RUNS = ("--out", "--quiet", "--interval", "--baseline", "--timeout", "--gpu-index", "--report")


def build_parser() -> argparse.ArgumentParser:
    """The command line without what follows ``--``; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.profile",
        usage="%(prog)s --out DIR [options] -- COMMAND...\n"
        "       %(prog)s --out DIR [options] --image NAME --inputs DIR\n"
        "       %(prog)s --again DIR",
        description="Memory and CPU curves of a command or of FLARE's container runs, with the organisers' figures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the results; new or empty (of an image: DIR/TEAM)")
    parser.add_argument(
        "--again", type=Path, metavar="DIR", help="measure nothing; figures anew from its samples.jsonl"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary of a command, no live line for an image")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--interval", type=seconds, default=0.1, metavar="S", help="between samples (default: 0.1, the organisers')"
    )
    sampling.add_argument(
        "--baseline", type=seconds, default=1.0, metavar="S", help="how long before each start (default: 1)"
    )
    sampling.add_argument(
        "--timeout", type=seconds, metavar="S", help="stop it then (default: never; 3600 for each case of an image)"
    )
    sampling.add_argument(
        "--gpu-index",
        type=device_index,
        metavar="N",
        help="as in nvidia-smi (default: 0 if there is one, else no GPU curve)",
    )
    sampling.add_argument("--report", type=Path, metavar="FILE", help="the report of this app that the command writes")
    image = parser.add_argument_group("image")
    image.add_argument("--image", metavar="NAME", help="with its tag")
    image.add_argument("--inputs", type=Path, metavar="DIR", help="folder with *.nii.gz; each is a case")
    image.add_argument("--team", metavar="NAME", help="of container and files (default: from the image's name)")
    image.add_argument("--protocol", choices=tuple(PROTOCOLS), default=DEFAULT_PROTOCOL, help="(default: %(default)s)")
    image.add_argument("--stages", action="store_true", help="an image of this app: ask it for its report")
    image.add_argument("-m", "--memory", dest="m", metavar="SIZE", help="memory limit, such as 8g")
    image.add_argument("--memory-swap", metavar="SIZE", help="memory and swap; equal to -m: no swap")
    image.add_argument("--cpus", metavar="N", help="CPU limit, such as 2 or 1.5")
    image.add_argument("--shm-size", metavar="SIZE", help="of /dev/shm")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measures; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    own, command = (words[: (cut := words.index("--"))], words[cut + 1 :]) if "--" in words else (words, [])
    parser = build_parser()
    arguments = parser.parse_args(own)
    nothing = argparse.Namespace(**dict.fromkeys(vars(arguments)))  # argparse puts no default in place of a value
    given = {name for name, value in vars(parser.parse_args(own, nothing)).items() if value is not None}
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # between runs; within one the runner takes it
    return exit_code_of(lambda: _profile(arguments, given, command), "interrupted; what was measured so far is kept")


def _profile(arguments: argparse.Namespace, given: set[str], command: list[str]) -> int:
    """Measures, or does it again; ``given`` are the names of the arguments on the command line."""
    _check_usage(arguments, given, command)
    if arguments.again:
        return _show_again(arguments.again)
    return _profile_image(arguments) if arguments.image else _profile_command(arguments, command)


def _profile_command(arguments: argparse.Namespace, command: list[str]) -> int:
    """The command's exit code."""
    out, report = arguments.out.resolve(), arguments.report
    prepare_empty_folder(out)
    sampling = _sampling(arguments, gpu=True)
    before = _stamp(report)
    ending = record(Job(command, timeout_s=arguments.timeout), sampling, out)
    try:
        if report and _stamp(report) not in (None, before):
            with suppress(shutil.SameFileError):  # it was written to its place at once
                shutil.copyfile(report, out / REPORT_FILE)
        _, profile = write_profile(out)
        if not arguments.quiet:
            print(f"{describe(profile)}; {out / PROFILE_FILE}, {out / PICTURE_FILE}", file=sys.stderr)
            if report and profile["no_stages"]:
                print(f"no stages: {profile['no_stages']} (--report {report})", file=sys.stderr)
    except (AppError, OSError) as error:  # the command's exit code is what counts
        print(f"error: no figures ({error}); the samples are there, make them with --again {out}", file=sys.stderr)
    except Exception:
        logger.exception("no figures, by a fault of the profiler; the samples are there: --again %s", out)
    return _EXIT_TIMED_OUT if ending.reason == "timeout" else ending.exit_code


def _profile_image(arguments: argparse.Namespace) -> int:
    protocol = PROTOCOLS[arguments.protocol]
    scans = find_scans(arguments.inputs)
    limits = {option: value for option in _LIMITS if (value := getattr(arguments, _name(option))) is not None}
    team = arguments.team or team_of(arguments.image)
    container = Container(arguments.image, team, protocol, limits, arguments.stages)
    timeout_s = _STUCK_S if arguments.timeout is None else arguments.timeout
    live = sys.stderr.isatty() and not arguments.quiet
    harness = Harness(container, _sampling(arguments, protocol.gpu), arguments.out, timeout_s, live)
    complete = run_cases(harness, scans)
    print(f"{describe_all(harness.results)}; {harness.folder / f'{team}_Efficiency.csv'}")
    if not complete:
        return EXIT_INTERRUPTED
    return EXIT_OK if all(result.status == "ok" for result in harness.results) else EXIT_CASE_FAILED


def _show_again(folder: Path) -> int:
    _, profile = write_profile(folder)
    print(describe(profile))
    return EXIT_OK


def _sampling(arguments: argparse.Namespace, gpu: bool) -> Sampling:
    found, reason = find_gpu(arguments.gpu_index) if gpu else (None, f"protocol {arguments.protocol} has no GPU")
    return Sampling(arguments.interval, arguments.baseline, found, reason)


def _check_usage(arguments: argparse.Namespace, given: set[str], command: list[str]) -> None:
    if sum(map(bool, (command, arguments.image, arguments.again))) != 1:
        raise UsageError("expected one of: -- COMMAND..., --image NAME with --inputs DIR, --again DIR; see --help")
    _check_effects(arguments, given, command)
    if not arguments.again and arguments.out is None:
        raise UsageError("--out DIR is missing; expected a new or empty folder for the results")
    if bool(arguments.image) != bool(arguments.inputs):
        raise UsageError("expected --image NAME and --inputs DIR together")
    if arguments.interval == 0:
        raise UsageError("--interval 0: expected more than 0 s")
    if arguments.team and not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", arguments.team):
        raise UsageError(
            f"--team {arguments.team!r}: expected lower-case letters and digits, as Docker names containers"
        )


def _check_effects(arguments: argparse.Namespace, given: set[str], command: list[str]) -> None:
    """Raises UsageError for an option that would be ignored: somebody believes that it has an effect."""
    idle: tuple[str, ...]
    if arguments.again:
        idle, what, use = (*_FOR_RUNS, *_FOR_IMAGES), "--again", "measuring a command or an image"
    elif command:
        idle, what, use = _FOR_IMAGES, "a command", "--image NAME with --inputs DIR"
    else:
        idle, what, use = ("--report",), "an image", "-- COMMAND...; --stages asks an image of this app for its report"
    if option := next((option for option in idle if _name(option) in given), None):
        raise UsageError(f"{option}: has no effect on {what}; it is for {use}")
    if arguments.image and "gpu_index" in given and not PROTOCOLS[arguments.protocol].gpu:
        raise UsageError(f"--gpu-index: has no effect with --protocol {arguments.protocol}, which has no GPU")


def _name(option: str) -> str:
    """``memory_swap`` of ``--memory-swap``, as argparse names it."""
    return option.lstrip("-").replace("-", "_")


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """Tells a file that was written anew from the one that was there before; None if there is none."""
    if path is None or not path.exists():
        return None
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns


if __name__ == "__main__":
    sys.exit(main())
