"""Command line of the evaluation: arguments, logging, exit codes."""

import argparse
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import EXIT_CASE_FAILED, EXIT_OK, AppError, UsageError
from app.interruption import EXIT_INTERRUPTED
from tools.evaluate.presets import DEFAULT_PRESET, PRESETS
from tools.exit_codes import print_any_name

if TYPE_CHECKING:
    from tools.evaluate.scoring import CaseScores

_DESCRIPTION = (
    "Scores label maps against references: DSC and NSD per organ and case, as FLARE's organisers compute them; HD95 "
    "and volume error beside them. `python -m tools.evaluate compare --help`: several methods against each other."
)
_EPILOG = """\
what is compared: each reference with the prediction of the same name (X.nii.gz with X.nii.gz; a trailing _0000 does
not count; .nii, .mha, .mhd, .nrrd, .nhdr too). Both must lie on one grid: a flipped or shifted prediction is an error
that says so, not a low score. The organisers do not look; --ignore-geometry compares as they do.

what the numbers mean:
  DSC        2 |P and R| / (|P| + |R|): the share of voxels in common. 1 is perfect, 0 is nothing in common.
  NSD        the share of both surfaces' area that lies within a tolerance of the other surface (2 mm for vessels and
             adrenal glands, up to 7 mm for the duodenum).
  official   the organisers' numbers with their quirks: an organ in neither label map scores 1, the top slice of aorta,
             vena cava and esophagus is not scored, NSD is 0 below a DSC of 0.2, four digits.
  corrected  without them: an organ in neither label map has no score, all slices of the reference count.
  HD95       mm within which 95 % of one surface's area lies from the other, the larger of both directions. None unless
             both label maps have the organ: who misses organs has fewer HD95, not worse ones.
  volume     (prediction - reference) / reference. None unless the reference has the organ; tables show the mean of its
             absolute value in per cent. HD95 and volume error look at the slices that `corrected` looks at.
  (a to b)   95 % interval of a mean by bootstrap over cases; too narrow with fewer than about ten cases.
tools/evaluate/flare.py lists all differences, among them those of the presets: flare22 and flare24 score 13 organs and
differ in the NSD of organs with a DSC below 0.2 (0 in flare24, the default; below 0.1 in flare23), flare23 scores the
tumor, label 14, as well. Missing is not zero: it is an empty cell in the CSV and null in the JSON.

written to --out:
  scores.json          everything: both definitions, tolerances, notes, means, intervals; the others are made from it
  DSC_NSD_<team>.csv   the organisers' table (official): Name, 13 DSC, 13 NSD
  values.csv           one row for each organ of each case
  scores.md            tables as in a paper
  boxplots.png         the spread over cases, organ by organ (official)

examples:
  python -m tools.evaluate --predictions outputs --references labelsTs --out scores
  python -m tools.evaluate --predictions outputs --references labelsTs --out scores --jobs 4 --team myteam
  python -m tools.evaluate compare baseline=a/scores.json 3D-CPS=b/scores.json --out comparison

exit codes:
  0  all cases scored
  1  some case failed (a missing prediction is one); the others were scored
  2  wrong usage
  3  nothing found to score, or --out cannot be written
"""

logger = logging.getLogger("tools.evaluate")


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option, what in (
        ("--predictions", "folder with the label maps to score"),
        ("--references", "folder with the true label maps; each one is a case"),
        ("--out", "folder for the scores; made if it is not there"),
    ):
        parser.add_argument(option, type=Path, metavar="DIR", required=True, help=what)
    parser.add_argument("--team", metavar="NAME", default="team", help="part of the CSV's name (default: team)")
    parser.add_argument(
        "--ignore-geometry",
        action="store_true",
        help="compare the arrays as they are stored, as the organisers do; shapes must still be equal",
    )
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        default=DEFAULT_PRESET.name,
        help=f"whose organs and quirks (default: {DEFAULT_PRESET.name})",
    )
    parser.add_argument(
        "--jobs",
        "--workers",
        type=int,
        metavar="N",
        default=1,
        help="cases at a time, each in a process of its own (default: 1)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="leave boxplots.png out")
    parser.add_argument("-q", "--quiet", action="store_true", help="errors only: no table, no progress bar")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Scores the folders; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    comparing = given[:1] == ["compare"]
    arguments = None if comparing else build_parser().parse_args(given)
    terminal = arguments is not None and sys.stderr.isatty() and not arguments.quiet
    _configure_logging(arguments is not None and arguments.quiet, terminal)
    print_any_name()
    try:
        return _compare(given[1:]) if arguments is None else _run(arguments, terminal)
    except AppError as error:
        logger.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted; files of this run are whole or missing")
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace, terminal: bool) -> int:
    _check_usage(arguments)
    from app.atomic_files import write_text
    from app.cases import prepare_output_folder  # here, so that --help and usage errors cost no imports
    from tools.evaluate.box_plots import draw_box_plots
    from tools.evaluate.cases import pair_cases
    from tools.evaluate.record import build_record, json_text
    from tools.evaluate.report import csv_text, table_text, values_csv_text
    from tools.evaluate.scoring import score_all
    from tools.evaluate.tables import scores_markdown

    preset = PRESETS[arguments.preset]
    pairing = pair_cases(arguments.predictions, arguments.references)
    prepare_output_folder(arguments.out)
    for path in pairing.without_reference:
        logger.warning("%s: no reference of this name; not scored", path)
    coming = score_all(pairing.pairs, arguments.ignore_geometry, arguments.jobs, preset)
    found = list(_with_progress(coming, len(pairing.pairs), terminal))
    results = sorted(found, key=lambda result: result.pair.case_id)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    record = build_record(results, settings, pairing.without_reference, preset)
    texts = {
        "scores.json": json_text(record),
        f"DSC_NSD_{arguments.team}.csv": csv_text(record),
        "values.csv": values_csv_text(record),
        "scores.md": scores_markdown(record),
    }
    for name, text in texts.items():
        write_text(arguments.out / name, text)
    picture = arguments.out / "boxplots.png"
    picture.unlink(missing_ok=True)  # of an earlier run
    if not arguments.no_pictures:
        draw_box_plots({arguments.team: record}, preset.official.name, picture)
    if not arguments.quiet:
        print(table_text(record), end="")
    return EXIT_CASE_FAILED if any(result.error for result in results) else EXIT_OK


def _compare(argv: list[str]) -> int:
    from tools.evaluate.compare_command import main as compare

    return compare(argv)


def _check_usage(arguments: argparse.Namespace) -> None:
    if arguments.jobs < 1:
        raise UsageError(f"--jobs {arguments.jobs}: expected 1 or more")
    if not re.fullmatch(r"[\w.-]+", arguments.team):
        raise UsageError(
            f"--team {arguments.team!r}: expected letters, digits, '-', '_' and '.'; it is part of a file name"
        )


def _with_progress(results: "Iterator[CaseScores]", total: int, terminal: bool) -> "Iterator[CaseScores]":
    """The same results, each logged as it comes; a terminal gets a bar on stderr."""
    from tqdm import tqdm

    for result in tqdm(results, total=total, desc="cases", unit="case", disable=not terminal):
        _log(result)
        yield result


def _log(result: "CaseScores") -> None:
    for warning in result.warnings:
        logger.warning("%s: %s", result.pair.case_id, warning)
    if result.error:
        logger.error("%s: failed: %s", result.pair.case_id, result.error)
    for rules_name, scores in result.scores.items():
        for organ, score in scores.items():
            if rules_name == "official" and score.note:
                logger.warning("%s: %s has no official score: %s", result.pair.case_id, organ, score.note)


def _configure_logging(quiet: bool, terminal: bool) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if terminal:
        from app.progress import TerminalLogHandler

        handler = TerminalLogHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
