"""Command line of ``python -m tools.evaluate compare``: several methods' scores, side by side and tested."""

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.cases import prepare_output_folder
from app.errors import EXIT_OK, UsageError
from tools.evaluate.box_plots import draw_box_plots
from tools.evaluate.comparison import compare
from tools.evaluate.record import RULES, read_record
from tools.evaluate.tables import comparison_markdown
from tools.evaluate.values import Record

_EPILOG = """\
The first method is the baseline that the others are tested against. All means are over the cases that every method has
scores of. Written to --out: comparison.json, and made from it comparison.md (tables as in a paper), comparison.csv, and
boxplots.png.

By `official` an organ in neither label map scores 1. Every method has a value in every case but for an aorta, vena cava
or esophagus that the reference has on a single slice: 0 where a method misses it (flare22: no value), no value where it
finds it. Where methods have values in unequal numbers of cases, a remark says so. By `corrected` an organ in neither
label map has no value: one that the reference lacks and only one method finds is in that method's mean (as 0) and in no
pair.

example:
  python -m tools.evaluate compare baseline=a/scores.json 3D-CPS=b/scores.json --out comparison
"""

_MEAN_COLUMNS = ("metric", "organ", "method", "cases", "mean", "mean_low", "mean_high")
_DIFFERENCE_COLUMNS = (
    *("difference", "difference_low", "difference_high"),
    *("pairs", "unequal_pairs", "p_value", "p_value_holm"),
)


def main(argv: list[str]) -> int:
    """Compares; returns the exit code.

    Raises:
        AppError: what cannot be compared, read or written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate compare",
        description="Compares methods by their scores.json: means with intervals, differences, Wilcoxon's test.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scores", nargs="+", metavar="NAME=scores.json", help="a method and its scores; two or more")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="made if it is not there")
    parser.add_argument("--rules", choices=RULES, default=RULES[0], help=f"which DSC and NSD (default: {RULES[0]})")
    parser.add_argument("--no-pictures", action="store_true", help="leave boxplots.png out")
    parser.add_argument("-q", "--quiet", action="store_true", help="no table")
    arguments = parser.parse_args(argv)
    paths = named_files(arguments.scores, "scores.json")
    records = {name: read_record(path) for name, path in paths.items()}
    comparison = compare(records, paths, arguments.rules)
    prepare_output_folder(arguments.out)
    markdown = comparison_markdown(comparison)
    texts = {
        "comparison.json": json.dumps(comparison, indent=2, allow_nan=False) + "\n",
        "comparison.md": markdown,
        "comparison.csv": _csv_text(comparison),
    }
    for name, text in texts.items():
        write_text(arguments.out / name, text)
    picture = arguments.out / "boxplots.png"
    picture.unlink(missing_ok=True)  # of an earlier run
    if not arguments.no_pictures:
        draw_box_plots(records, arguments.rules, picture, comparison["cases"])
    if not arguments.quiet:
        print(markdown, end="")
    return EXIT_OK


def named_files(entries: Sequence[str], kind: str) -> dict[str, Path]:
    """Files by name, from ``NAME=FILE``; ``kind`` is how the file is usually called.

    Raises:
        UsageError: fewer than two, or names that are not their own.
    """
    pairs = [(name, Path(path)) for name, sign, path in (entry.partition("=") for entry in entries) if name and sign]
    found = dict(pairs)
    if len(found) != len(entries) or len(found) < 2:
        raise UsageError(f"{' '.join(entries)}: expected two or more NAME={kind}, each with a name of its own")
    return found


def _csv_text(comparison: Record) -> str:
    """One row for each metric, organ and method; what is missing is an empty cell."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*_MEAN_COLUMNS, *_DIFFERENCE_COLUMNS])
    for metric, found in comparison["metrics"].items():
        for organ, entry in (*found["organs"].items(), ("mean", found["all_organs"])):
            for method, summary in entry["methods"].items():
                means = [summary.get("cases"), summary["mean"], *(summary["interval"] or ("", ""))]
                difference = _difference_cells(entry["against_first"].get(method))
                rows.writerow([metric, organ, method, *means, *difference])
    return text.getvalue()


def _difference_cells(entry: dict[str, Any] | None) -> list[Any]:
    if entry is None:
        return [""] * len(_DIFFERENCE_COLUMNS)
    test = entry["test"]
    numbers = [test[key] for key in _DIFFERENCE_COLUMNS[3:]]
    return [entry["difference"], *(entry["interval"] or ("", "")), *numbers]
