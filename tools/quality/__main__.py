"""Command line: ``python -m tools.quality robustness.json --out DIR``."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.cases import prepare_output_folder
from app.errors import EXIT_OK, UsageError
from tools.exit_codes import exit_code_of
from tools.quality.association import BAD_BELOW_DSC, as_json, pairs_of, summarise
from tools.quality.report import draw_scatter, markdown
from tools.robustness.table import read_record

_EPILOG = """\
Make the record with: python -m tools.robustness --uncertainty --bundle B --scans ... --labels ... --out DIR

written to --out: quality.json (every pair, and what follows), then quality.md and quality.png from it.
An organ that neither network finds has no agreement, and no warning reaches it; such organs are counted apart.
"""


def main(argv: list[str] | None = None) -> int:
    """Writes the three files; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.quality",
        description="Does the agreement of a bundle's two networks foretell the DSC against the reference?",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("record", type=Path, metavar="robustness.json", help="measured with --uncertainty")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="ID",
        help="of these scans only, those that the networks have not learnt from, say",
    )
    arguments = parser.parse_args(argv)
    command = f"python -m tools.quality {shlex.join(sys.argv[1:] if argv is None else argv)}"
    return exit_code_of(
        lambda: _run(arguments.record, arguments.out, command, arguments.cases),
        "interrupted; files of this run are whole or missing",
    )


def analyse(record: dict[str, Any], command: str) -> dict[str, Any]:
    """What ``quality.json`` holds, from a record of ``tools.robustness``."""
    pairs, warn_below = pairs_of(record["rows"]), record["warn_below_agreement"]
    organs = list(dict.fromkeys(organ for row in record["rows"] if not row["skipped"] for organ in row["organs"]))
    return {
        "schema_version": 1,
        "command": command,
        "measured_with": record["command"],
        "bundle": record["bundle"]["name"],
        "about_labels": record["about_labels"],
        "bad_below_dsc": BAD_BELOW_DSC,
        "warn_below_agreement": warn_below,
        "all": summarise(pairs, warn_below),
        "organs": {organ: summarise([p for p in pairs if p.organ == organ], warn_below) for organ in organs},
        "pairs": as_json(pairs),
    }


def _run(path: Path, out: Path, command: str, case_ids: list[str] | None) -> int:
    record = read_record(path)
    if not isinstance(record, dict) or not record.get("uncertainty"):
        raise UsageError(f"{path}: no agreement in it; expected a record of `tools.robustness --uncertainty`")
    if case_ids:
        known = {row["case_id"] for row in record["rows"]}
        if strange := sorted(set(case_ids) - known):
            raise UsageError(f"--cases {' '.join(strange)}: not in {path}; expected some of {', '.join(sorted(known))}")
        record = {**record, "rows": [row for row in record["rows"] if row["case_id"] in case_ids]}
    prepare_output_folder(out)
    found = analyse(record, command)
    write_text(out / "quality.json", json.dumps(found, indent=1) + "\n")
    write_text(out / "quality.md", markdown(found))
    draw_scatter(found, out / "quality.png")
    print(out / "quality.md")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
