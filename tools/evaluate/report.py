"""What is left behind: the organisers' CSV, a JSON with both definitions, and a table for the terminal."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.evaluate.flare import CORRECTED, FLARE_ORGANS, OFFICIAL, Score, rules_as_json
from tools.evaluate.scoring import CaseScores

SCHEMA_VERSION = 1

_RULES = (OFFICIAL, CORRECTED)


def csv_text(results: Sequence[CaseScores]) -> str:
    """The organisers' table: ``Name``, 13 DSC, 13 NSD, one row a case, by ``official``.

    Values look as pandas writes them (``1.0``, ``0.9431``). A value that is missing is an empty cell, and a case that
    failed is a row of them: the organisers' script would have stopped.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [organ.column for organ in FLARE_ORGANS]
    writer.writerow(["Name", *(f"{column}_DSC" for column in columns), *(f"{column}_NSD" for column in columns)])
    for result in results:
        scores = _official_scores(result)
        writer.writerow([result.pair.name, *(_cell(score.dsc) for score in scores), *(_cell(s.nsd) for s in scores)])
    return text.getvalue()


def json_text(results: Sequence[CaseScores], settings: dict[str, Any], without_reference: Iterable[Path] = ()) -> str:
    """Everything: settings, rules, tolerances, scores of each case, means. Missing is null, never 0.

    Args:
        results: the cases.
        settings: what the command line asked for.
        without_reference: predictions that were passed over.
    """
    record = {
        "schema_version": SCHEMA_VERSION,
        "settings": settings,
        "organs": [asdict(organ) for organ in FLARE_ORGANS],
        "rules": {rules.name: rules_as_json(rules) for rules in _RULES},
        "cases": [_case_record(result) for result in results],
        "mean": {rules.name: mean_scores(results, rules.name) for rules in _RULES},
        "predictions_without_reference": [str(path) for path in without_reference],
    }
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def mean_scores(results: Sequence[CaseScores], rules_name: str) -> dict[str, Any]:
    """Means over the cases that have a score, by organ, each with its number of cases; and the mean over organs.

    ``all organs`` is the mean of the organs' means, as FLARE's leaderboards have it. DSC 0.9, 0.7 and missing for one
    organ, 0.5 three times for another: 0.8 of 2 cases, 0.5 of 3 cases, all organs 0.65.
    """
    by_organ = {
        organ.name: _mean_of([result.scores[rules_name][organ.name] for result in results if result.scores])
        for organ in FLARE_ORGANS
    }
    return {
        "organs": by_organ,
        "all_organs": {
            "dsc": _mean(entry["dsc"] for entry in by_organ.values()),
            "nsd": _mean(entry["nsd"] for entry in by_organ.values()),
        },
    }


def table_text(results: Sequence[CaseScores]) -> str:
    """The means by organ, for the terminal."""
    means = {rules.name: mean_scores(results, rules.name) for rules in _RULES}
    lines = [
        f"{'':20} {'':>8}  {'official':^22}  {'corrected':^22}",
        f"{'organ':20} {'mm':>8}  {'DSC':>7} {'NSD':>7} {'cases':>6}  {'DSC':>7} {'NSD':>7} {'cases':>6}",
    ]
    for organ in FLARE_ORGANS:
        cells = (_table_cells(means[rules.name]["organs"][organ.name]) for rules in _RULES)
        lines.append(f"{organ.name:20} {organ.tolerance_mm:8g}  {'  '.join(cells)}")
    cells = (_table_cells(means[rules.name]["all_organs"]) for rules in _RULES)
    lines.append(f"{'all organs':20} {'':8}  {'  '.join(cells)}".rstrip())
    failed = sum(result.error is not None for result in results)
    lines.append(f"{len(results) - failed} of {len(results)} cases scored" + _failed_text(failed))
    return "\n".join(lines) + "\n"


def _failed_text(failed: int) -> str:
    return f"; {failed} failed and are in no mean (the challenge gives a missing case 0)" if failed else ""


def _table_cells(entry: dict[str, Any]) -> str:
    values = ("-" if entry[metric] is None else f"{entry[metric]:.4f}" for metric in ("dsc", "nsd"))
    return " ".join(f"{value:>7}" for value in values) + f" {entry.get('cases', ''):>6}"


def _case_record(result: CaseScores) -> dict[str, Any]:
    record: dict[str, Any] = {
        "case_id": result.pair.case_id,
        "prediction": str(result.pair.prediction),
        "reference": str(result.pair.reference),
        "status": "failed" if result.error else "scored",
        "error": result.error,
        "warnings": list(result.warnings),
    }
    for rules in _RULES:
        scores = result.scores.get(rules.name)
        record[rules.name] = scores and {
            "organs": {name: asdict(score) for name, score in scores.items()},
            "mean": {key: value for key, value in _mean_of(scores.values()).items() if key != "cases"},
        }
    return record


def _official_scores(result: CaseScores) -> list[Score]:
    scores = result.scores.get(OFFICIAL.name)
    return [scores[organ.name] if scores else Score(None, None) for organ in FLARE_ORGANS]


def _mean_of(scores: Iterable[Score]) -> dict[str, Any]:
    """Means of what is there; DSC and NSD are missing together."""
    there = [score for score in scores if score.dsc is not None]
    return {
        "dsc": _mean(score.dsc for score in there),
        "nsd": _mean(score.nsd for score in there),
        "cases": len(there),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _cell(value: float | None) -> str:
    return "" if value is None else repr(float(value))
