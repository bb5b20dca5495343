"""Command line: ``python -m tools.submit``."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.errors import EXIT_CASE_FAILED, EXIT_OK
from tools.exit_codes import exit_code_of
from tools.profile.arguments import device_index, seconds
from tools.profile.container import Container, team_of
from tools.profile.harness import Harness, find_scans
from tools.profile.measuring import Sampling, prepare_empty_folder
from tools.profile.official import DEFAULT_PROTOCOL, PROTOCOLS
from tools.profile.scopes.gpu import find_gpu
from tools.submit.archive import write_archive
from tools.submit.image_checks import (
    Image,
    check_bashisms,
    check_configuration,
    check_probe,
    probe_image,
    read_image,
)
from tools.submit.page import page_text, verdict
from tools.submit.record import submission_record, with_archive
from tools.submit.rules import Check
from tools.submit.trials import (
    HARDENED_RULES,
    MEASURED_RULES,
    Trials,
    check_measured,
    choose_scans,
    complaints,
)

RECORD_FILE, PAGE_FILE = "submission.json", "submission.md"

_EPILOG = """\
1. looks at the image: tag, platform, ENTRYPOINT, WORKDIR, CUDA_VISIBLE_DEVICES, bash, predict.sh and its syntax
2. runs FLARE's command on two scans, one container start each, and measures as the organisers do (tools.profile)
3. looks at what is left in inputs and outputs, and at the label maps: the scan's grid, labels, uint8
4. runs the smaller scan hardened: no network, 64 MB of /dev/shm, user 1000:1000, read-only root but /tmp, no
   capabilities. If that fails, once more with each of the five alone
5. if all is well: writes the archive

written to --out:
  submission.json, submission.md     all checks (found, expected, what to do), what an organiser would measure
  TEAM.tar.gz, TEAM.tar.gz.sha256    for the organisers; TEAM is the image's name
  runs/flare, runs/hardened...       as tools.profile writes them: curves, logs, label maps

examples:
  python -m tools.submit --image team:latest --inputs scans --out submission
  python -m tools.submit --image team:latest --inputs scans --out submission2 --protocol laptop --all

exit codes: 0 all checks passed; 1 a check failed (no archive, unless --force); 2 wrong use; 3 a folder cannot be read
or written; 4 no Docker, no such image, no such GPU; 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.submit",
        description="Checks any team's image against FLARE's contract, measures it and writes the archive to send in.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image", required=True, metavar="NAME", help="with its tag, such as team:latest")
    parser.add_argument("--inputs", required=True, type=Path, metavar="DIR", help="folder with *.nii.gz")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results; new or empty")
    parser.add_argument("--all", action="store_true", help="run all scans (default: the first and the largest)")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default=DEFAULT_PROTOCOL, help="(default: %(default)s)")
    parser.add_argument(
        "--gpu-index", type=device_index, metavar="N", help="as in nvidia-smi (default: 0 if there is one)"
    )
    parser.add_argument("--timeout", type=seconds, default=3600.0, metavar="S", help="for a case (default: 3600)")
    parser.add_argument("--baseline", type=seconds, default=1.0, metavar="S", help="before each start (default: 1)")
    parser.add_argument("--force", action="store_true", help="write the archive although a check failed")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Checks and measures an image; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # an archive half written is removed
    return exit_code_of(
        lambda: _submit(arguments),
        "interrupted; the runs so far are kept, and an archive only if its .sha256 is beside it",
    )


def _submit(arguments: argparse.Namespace) -> int:
    scans = find_scans(arguments.inputs)
    scans = scans if arguments.all else choose_scans(scans)
    image = read_image(_with_tag(arguments.image))
    trials = _trials(arguments, image)
    prepare_empty_folder(arguments.out)
    checks, run = _check(image, trials, scans)
    record = submission_record(image, trials.container, arguments.protocol, trials.sampling, checks, run)
    _write(record, arguments.out)
    if record["passed"] or arguments.force:
        archive = write_archive(image, arguments.out / f"{trials.container.team}.tar.gz")
        _write(record := with_archive(record, archive), arguments.out)
    _show(record, arguments.out)
    return EXIT_OK if record["passed"] else EXIT_CASE_FAILED


def _trials(arguments: argparse.Namespace, image: Image) -> Trials:
    protocol = PROTOCOLS[arguments.protocol]
    gpu, no_gpu = find_gpu(arguments.gpu_index) if protocol.gpu else (None, f"protocol {arguments.protocol} has no GPU")
    return Trials(
        container=Container(image.name, team_of(image.name), protocol, {}),
        sampling=Sampling(interval_s=0.1, baseline_s=arguments.baseline, gpu=gpu, no_gpu=no_gpu),
        timeout_s=arguments.timeout,
        folder=arguments.out.resolve() / "runs",
        live=sys.stderr.isatty(),
    )


def _check(image: Image, trials: Trials, scans: Sequence[Path]) -> tuple[list[Check], Harness | None]:
    """(one check for each rule, the measured run); what builds on something that failed is not checked."""
    probe = probe_image(image.name)
    looks = check_probe(image, probe)
    checks = [*check_configuration(image, probe), *looks]
    if any(check.status != "passed" for check in looks):
        why = "the image cannot run FLARE's command"
        rest = [Check(rule, "not checked", why) for rule in (*MEASURED_RULES, *HARDENED_RULES)]
        return [*checks, check_bashisms(probe, []), *rest], None
    run = trials.measure(scans)
    measured = check_measured(run, scans, trials.container.protocol.largest_label)
    checks += [check_bashisms(probe, complaints(run)), *measured]
    if all(result.status == "ok" for result in run.results):
        return checks + trials.harden(min(scans, key=lambda scan: scan.stat().st_size)), run
    return checks + [Check(rule, "not checked", "FLARE's command already fails") for rule in HARDENED_RULES], run


def _with_tag(image: str) -> str:
    """``team`` is ``team:latest`` to Docker, but for saving all tags of it."""
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


def _write(record: dict[str, Any], out: Path) -> None:
    """The record, and the page that is made from it."""
    write_text(out / RECORD_FILE, json.dumps(record, indent=2))
    write_text(out / PAGE_FILE, page_text(record))


def _show(record: dict[str, Any], out: Path) -> None:
    for check in record["checks"]:
        if check["status"] == "failed":
            print(f"failed: {check['title']}: {check['found']}; expected {check['expected']}")
            print(f"    to do: {check['advice']}")
    archive = record["archive"]
    sent = f"{out / archive['name']}, SHA-256 {archive['sha256']}" if archive else "no archive"
    print(f"{verdict(record)}; {sent}; {out / PAGE_FILE}")


if __name__ == "__main__":
    sys.exit(main())
