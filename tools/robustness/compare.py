"""Command line of ``python -m tools.robustness compare``: several bundles' records side by side."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.cases import prepare_output_folder
from app.errors import EXIT_OK, UsageError
from tools.degrade.kinds import KINDS, ORIGINAL
from tools.evaluate.compare_command import named_files
from tools.evaluate.tables import table_line
from tools.robustness.measure import ORGANS, SMALLEST_SCORED_ML
from tools.robustness.table import Pairs, mean, read_record, scored_pairs

CLEARLY_WORSE = 0.02

_ROUNDING = 1e-9  # 0.900 - 0.880 is a little more than 0.02 in binary
_ROW_KEYS, _ORGAN_KEYS = ("case_id", "kind", "skipped"), ("dsc", "nsd", "reference_ml")

Record = dict[str, Any]

_EPILOG = f"""\
The first record is the baseline: an organ of a scan is worse where its DSC is lower by more than {CLEARLY_WORSE:g}.
All have to be of the same scans and references, down to the SHA-256 where two records have it.

exit codes: 0 compared, 2 records that cannot be read or compared, 3 --out cannot be written, 130 interrupted

example:
  python -m tools.robustness compare supervised=a/robustness.json CPS=b/robustness.json --out comparison.md
"""


def main(argv: Sequence[str]) -> int:
    """Compares; returns the exit code.

    Raises:
        AppError: what cannot be compared, read or written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.robustness compare",
        description="Compares bundles by their robustness.json, organ by organ.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", nargs="+", metavar="NAME=robustness.json", help="two or more")
    parser.add_argument("--kind", choices=KINDS, default=ORIGINAL, help="which scans (default: as they are)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    arguments = parser.parse_args(argv)
    files = named_files(arguments.records, "robustness.json")
    records = {name: _read(path) for name, path in files.items()}
    command = f"python -m tools.robustness compare {shlex.join(argv)}"
    text = comparison(records, arguments.kind, command)
    prepare_output_folder(arguments.out.parent)
    write_text(arguments.out, text)
    print(text, end="")
    return EXIT_OK


def comparison(records: dict[str, Record], kind: str, command: str) -> str:
    """The table: means, what is worse than the first, DSC by organ and scan.

    Raises:
        UsageError: the records are of different scans or references.
    """
    _check_alike(records, kind)
    dsc, nsd = ({name: scored_pairs(record["rows"], kind, metric) for name, record in records.items()}
                for metric in ("dsc", "nsd"))  # fmt: skip
    first = next(iter(dsc.values()))
    if not first:
        raise UsageError(f"{next(iter(records))}: no organ of {SMALLEST_SCORED_ML:g} ml in the references of {kind}")
    about = next(iter(records.values()))["about_labels"]
    lines = [
        f"`{command}`",
        "",
        f"{KINDS[kind].text[:1].upper()}{KINDS[kind].text[1:]}; {len(first)} organs of which the reference shows "
        f"{SMALLEST_SCORED_ML:g} ml or more; reference: {about}.",
        "",
        f"| {table_line([*records])}",
        "|---" * (len(records) + 1) + "|",
        _row("mean DSC", [f"{mean(pairs.values()):.3f}" for pairs in dsc.values()]),
        _row("mean NSD", [f"{mean(pairs.values()):.3f}" for pairs in nsd.values()]),
        _row(f"organs whose DSC is lower by more than {CLEARLY_WORSE:g}", [_worse(first, p) for p in dsc.values()]),
    ]
    for case in sorted({case for case, _ in first}):
        shown = [organ for organ in ORGANS if (case, organ) in first]
        lines.append(_row(f"**{case}**", [f"{mean(p[case, o] for o in shown):.3f}" for p in dsc.values()]))
        lines += [_row(organ, [f"{pairs[case, organ]:.3f}" for pairs in dsc.values()]) for organ in shown]
    return "\n".join(lines) + "\n"


def _check_alike(records: dict[str, Record], kind: str) -> None:
    """Raises UsageError unless all are of the same scans, made worse alike, and of the same references."""
    seen = {}
    for name, record in records.items():
        rows = [row for row in record["rows"] if row["kind"] == kind and not row["skipped"]]
        if not rows:
            raise UsageError(f"{name}: no scan of the kind {kind} in it; measure it with --kinds {kind}")
        shown = {row["case_id"]: {o: values["reference_ml"] for o, values in row["organs"].items()} for row in rows}
        seen[name] = (record["about_labels"], record["seed"], shown)
    baseline, expected = next(iter(seen.items()))
    if different := [name for name, found in seen.items() if found != expected]:
        raise UsageError(f"{', '.join(different)}: other scans, references or seed than {baseline}; expected the same")
    contents = {name: record.get("contents", {}) for name, record in records.items()}  # older records have none
    for case_id in expected[2]:
        digests = {name: known[case_id] for name, known in contents.items() if case_id in known}
        if len(set(digests.values())) > 1:
            raise UsageError(f"{', '.join(digests)}: other voxels of {case_id}; expected one SHA-256 in contents")


def _worse(first: Pairs, pairs: Pairs) -> str:
    if pairs is first:
        return "-"
    return str(sum(first[key] - value > CLEARLY_WORSE + _ROUNDING for key, value in pairs.items()))


def _row(name: str, cells: Sequence[str]) -> str:
    return table_line([name, *cells])


def _read(path: Path) -> Record:
    record = read_record(path)
    if not isinstance(record, dict) or not {"rows", "seed", "about_labels"} <= record.keys():
        raise UsageError(f"{path}: expected a record of tools.robustness")
    for index, row in enumerate(record["rows"]):
        if not _is_row(row):
            raise UsageError(
                f"{path}: rows[{index}]: expected {', '.join(_ROW_KEYS)} and, unless it is skipped, organs with "
                f"{', '.join(_ORGAN_KEYS)} each"
            )
    return record


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or any(key not in row for key in _ROW_KEYS):
        return False
    organs = row.get("organs")
    return bool(row["skipped"]) or (
        isinstance(organs, dict)
        and all(isinstance(values, dict) and all(key in values for key in _ORGAN_KEYS) for values in organs.values())
    )
