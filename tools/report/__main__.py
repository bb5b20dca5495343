"""Command line: ``python -m tools.report --out report.html --scans DIR --predictions DIR ...``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from app.cases import prepare_output_folder
from app.errors import EXIT_CASE_FAILED, EXIT_OK, CaseError
from tools.exit_codes import exit_code_of

_EPILOG = """\
example:
  python -m tools.profile --out measured --image team:latest --inputs scans --stages
  python -m tools.evaluate --predictions measured/team/outputs --references labelsTs --out scores
  python -m tools.report --out report.html --scans scans --predictions measured/team/outputs --references labelsTs \\
      --scores scores/scores.json --profile measured

The page works from disk, without a network. Each case adds its slices: 8 bits a voxel at 2 mm or coarser, at most
15 MB. What was not given is left out, and the page says so.

exit codes: 0 the page is complete; 1 a case could not be read or has no prediction, the page says which; 2 wrong use;
3 a folder or file of measurements cannot be read, or --out not be written; 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.report",
        description="One self-contained HTML page about a run: limits, curves, stages, scores, slices of each case.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page")
    parser.add_argument("--scans", type=Path, required=True, metavar="DIR", help="X_0000.nii.gz or X.nii.gz")
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="label maps, X.nii.gz")
    parser.add_argument("--references", type=Path, metavar="DIR", help="true label maps, X.nii.gz")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="scores.json of tools.evaluate")
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="what tools.profile wrote for a command or an image"
    )
    parser.add_argument("--app-report", type=Path, metavar="FILE", help="what the app wrote for --report")
    parser.add_argument("--view", nargs="+", default=[], metavar="X", help="cases with slices (default: all)")
    parser.add_argument("--title", default="Segmentation report", help="headline (default: Segmentation report)")
    parser.add_argument(
        "--credit", default="", metavar="TEXT", help="where the scans are from, for the foot of the page"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    return exit_code_of(lambda: _run(arguments), "interrupted; nothing was written")


def _run(arguments: argparse.Namespace) -> int:
    from tools.evaluate.record import read_record  # here, so that --help and usage errors cost no imports
    from tools.report.cases import CaseView, choose_shown, find_cases, view_case
    from tools.report.content import build_page
    from tools.report.measured import read_measured
    from tools.report.page import write_page
    from tools.report.scores import organs_of

    prepare_output_folder(arguments.out.resolve().parent)
    cases = find_cases(arguments.scans, arguments.predictions, arguments.references)
    shown = choose_shown(cases, arguments.view)
    record = read_record(arguments.scores) if arguments.scores else None
    profile = arguments.profile and arguments.profile.resolve()  # "." has no name to call a run by
    measured = read_measured(profile, arguments.app_report)
    labels = tuple(organ["name"] for organ in organs_of(record))
    views: dict[str, CaseView | str] = {}
    failed = 0
    for done, files in enumerate(cases, start=1):
        progress = f"[{done}/{len(cases)}] {files.case_id}"
        if files.case_id not in shown:
            views[files.case_id] = "not among --view"
            continue
        try:
            views[files.case_id] = view = view_case(files, labels)
            print(f"{progress}: {view.packed.size_bytes / 1e6:.1f} MB of slices", flush=True)
            if "prediction" not in view.roles:
                failed += 1
                print(f"{progress}: no prediction; slices show the reference alone", file=sys.stderr, flush=True)
        except CaseError as error:
            views[files.case_id] = str(error)
            failed += 1
            print(f"{progress}: {error}", file=sys.stderr, flush=True)
    page = build_page(arguments.title, arguments.credit, views, measured, record, arguments.predictions)
    write_page(page, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")
    return EXIT_CASE_FAILED if failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
