"""The record of the rows, and the table that people read: what each way of making scans worse costs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from app.errors import UsageError
from tools.degrade.kinds import CHEST, KINDS, ORIGINAL
from tools.robustness.measure import ORGANS, SMALLEST_SCORED_ML, Row

LARGEST_INVENTED_ML = 1.0  # less is a speck

Pairs = dict[tuple[str, str], float]
"""Values by (case, organ)."""


def read_record(path: Path) -> Any:
    """The JSON of a record; whether it is one that the caller can use is for it to see.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no UTF-8 and no JSON are ValueErrors
        raise UsageError(f"{path}: cannot be read ({error}); expected a record of tools.robustness") from error


def markdown(record: dict[str, Any]) -> str:
    """The tables: costs, DSC and NSD by organ, what was invented in the chest, what could not be made."""
    rows = record["rows"]
    cases = sorted({row["case_id"] for row in rows})
    lines = [
        f"`{record['command']}`",
        "",
        f"Bundle {record['bundle']['name']}; scans {', '.join(cases)}; reference: {record['about_labels']}.",
        f"An organ counts in a scan of which the reference shows {SMALLEST_SCORED_ML:g} ml of it or more. A change is "
        "against the same organs of the same scans as they are. NSD is at FLARE's tolerance of each organ.",
        "",
        *_costs(rows),
        "",
        *_by_organ(rows, "dsc"),
        "",
        *_by_organ(rows, "nsd"),
        "",
        *_chest(rows),
    ]
    skipped = [f"* {row['case_id']}, {row['kind']}: {row['skipped']}" for row in rows if row["skipped"]]
    return "\n".join([*lines, *(["", "Not made:", "", *skipped] if skipped else [])]) + "\n"


def scored_pairs(rows: Iterable[Row], kind: str, metric: str) -> Pairs:
    """A score of every organ of every scan of a kind that has it."""
    return {
        (row["case_id"], organ): values[metric]
        for row in rows
        if row["kind"] == kind and not row["skipped"]
        for organ, values in row["organs"].items()
        if values[metric] is not None
    }


def _costs(rows: list[Row]) -> list[str]:
    lines = [
        "| made worse by | scans | organs | DSC | change | NSD | change |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in _kinds(rows):
        dsc = scored_pairs(rows, kind, "dsc")
        cells = [_mean_and_change(rows, kind, metric) for metric in ("dsc", "nsd")]
        scans = len({case for case, _ in dsc})
        lines.append(f"| {KINDS[kind].text} (`{kind}`) | {scans} | {len(dsc)} | {' | '.join(cells)} |")
    return lines


def _mean_and_change(rows: list[Row], kind: str, metric: str) -> str:
    """Two cells: the mean, and the mean difference of what has a score in both."""
    found, before = scored_pairs(rows, kind, metric), scored_pairs(rows, ORIGINAL, metric)
    differences = [value - before[key] for key, value in found.items() if key in before]
    average = f"{mean(found.values()):.3f}" if found else "-"
    change = f"{mean(differences):+.3f}" if differences and kind != ORIGINAL else "-"
    return f"{average} | {change}"


def _by_organ(rows: list[Row], metric: str) -> list[str]:
    kinds = _kinds(rows)
    lines = [f"| {metric.upper()} (scans) | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for organ in ORGANS:
        cells = []
        for kind in kinds:
            values = [value for (_, name), value in scored_pairs(rows, kind, metric).items() if name == organ]
            cells.append(f"{mean(values):.3f} ({len(values)})" if values else "-")
        lines.append(f"| {organ} | {' | '.join(cells)} |")
    return lines


def _chest(rows: list[Row]) -> list[str]:
    """Which organs were found where there are none."""
    lines = [f"Invented in the chest (more than {LARGEST_INVENTED_ML:g} ml of an organ that it cannot hold):", ""]
    measured = [row for row in rows if row["kind"] == CHEST and not row["skipped"]]
    for row in measured:
        found = {organ: ml for organ, ml in row["invented_ml"].items() if ml > LARGEST_INVENTED_ML}
        text = ", ".join(f"{organ} {ml:.1f} ml" for organ, ml in found.items()) or "nothing"
        lines.append(f"* {row['case_id']}: {text}")
    return lines if measured else [*lines, "No scan shows enough of the chest."]


def _kinds(rows: list[Row]) -> list[str]:
    return [kind for kind in KINDS if any(row["kind"] == kind and not row["skipped"] for row in rows)]


def mean(values: Iterable[float]) -> float:
    """Arithmetic; of one value at least."""
    found = list(values)
    return sum(found) / len(found)
