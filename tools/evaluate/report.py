"""What is made from a record: the organisers' CSV, a CSV with all values, a table for the terminal."""

import csv
import io
from typing import Any

from tools.evaluate.record import RULES, with_failed_as_zero
from tools.evaluate.values import ABSOLUTE_VOLUME_ERROR, DSC, HD95, NSD, Record


def csv_text(record: Record) -> str:
    """The organisers' table: ``Name``, a DSC and then an NSD for each organ, one row a case, by ``official``.

    Values look as pandas writes them (``1.0``, ``0.9431``). A value that is missing is an empty cell, and a case that
    failed is a row of them: the organisers' script would have stopped.
    """
    columns = [organ["column"] for organ in record["organs"]]
    rows = [["Name", *(f"{column}_{metric}" for metric in ("DSC", "NSD") for column in columns)]]
    for case in record["cases"]:
        organs = case["official"] and case["official"]["organs"]
        found = [organs[organ["name"]][key] if organs else None for key in ("dsc", "nsd") for organ in record["organs"]]
        rows.append([case["name"], *map(_cell, found)])
    return _csv(rows)


def values_csv_text(record: Record) -> str:
    """All values, one row for each organ of each scored case: for spreadsheets and pandas."""
    keys = [*(f"{rules}_{metric.key}" for rules in RULES for metric in (DSC, NSD)), "hd95_mm", "volume_error"]
    volumes = ["prediction_ml", "reference_ml"]
    rows = [["case_id", "organ", *keys, *volumes]]
    for case in record["cases"]:
        for name in (organ["name"] for organ in record["organs"]) if case["status"] == "scored" else ():
            scores = [case[rules]["organs"][name][metric.key] for rules in RULES for metric in (DSC, NSD)]
            measures = case["measures"]["organs"][name]
            rest = [measures[key] for key in ("hd95_mm", "volume_error", *volumes)]
            rows.append([case["case_id"], name, *map(_cell, (*scores, *rest))])
    return _csv(rows)


def table_text(record: Record) -> str:
    """The means by organ, for the terminal."""
    means = record["mean"]
    lines = [
        f"{'':20} {'':>8}  {'official':^22}  {'corrected':^22}",
        f"{'organ':20} {'mm':>8}  {'DSC':>7} {'NSD':>7} {'cases':>6}  {'DSC':>7} {'NSD':>7} {'cases':>6}"
        f"  {'HD95 mm':>8} {'vol. %':>7}",
    ]
    for organ in record["organs"]:
        cells = (_table_cells(means[rules]["organs"][organ["name"]]) for rules in RULES)
        more = _measure_cells(means["measures"]["organs"][organ["name"]])
        lines.append(f"{organ['name']:20} {organ['tolerance_mm']:8g}  {'  '.join(cells)}  {more}")
    cells = (_table_cells(means[rules]["all_organs"]) for rules in RULES)
    more = _measure_cells(means["measures"]["all_organs"])
    lines.append(f"{'all organs':20} {'':8}  {'  '.join(cells)}  {more}")
    failed = sum(case["status"] == "failed" for case in record["cases"])
    lines.append(f"{len(record['cases']) - failed} of {len(record['cases'])} cases scored")
    if failed:
        means_with_zeros = with_failed_as_zero(record)
        dsc, nsd = (metric.shown(means_with_zeros[metric.key]) for metric in (DSC, NSD))
        lines.append(
            f"{failed} failed and in no mean; counted as 0, as in the challenge: official DSC {dsc}, NSD {nsd}"
        )
    return "\n".join(lines) + "\n"


def _table_cells(entry: dict[str, Any]) -> str:
    return " ".join(f"{metric.shown(entry[metric.key]):>7}" for metric in (DSC, NSD)) + f" {entry.get('cases', ''):>6}"


def _measure_cells(entry: dict[str, Any]) -> str:
    hd95, volume = (metric.shown(entry[metric.key]) for metric in (HD95, ABSOLUTE_VOLUME_ERROR))
    return f"{hd95:>8} {volume:>7}"


def _csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))
