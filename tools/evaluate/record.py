"""The record of an evaluation, ``scores.json``: everything that tables and pictures are made from."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import FolderError
from tools.evaluate.flare import Score, rules_as_json
from tools.evaluate.presets import DEFAULT_PRESET, Preset
from tools.evaluate.scoring import CaseScores
from tools.evaluate.significance import BOOTSTRAP, bootstrap_intervals
from tools.evaluate.values import (
    HD95,
    METRICS,
    VOLUME_ERROR,
    Float64Array,
    Metric,
    Record,
    mean_over_organs,
    metric_values,
    organ_means,
)

SCHEMA_VERSION = 2

RULES = ("official", "corrected")
SOURCES = (*RULES, "measures")

_NAMED_AT_MOST = 5
_FRAME: dict[str, Any] = {  # what a record has, whatever its organs; a list holds what its entries have
    "settings": {},
    "preset": None,
    "organs": [dict.fromkeys(("label", "name", "column", "tolerance_mm", "in_mean"))],
    "cases": [dict.fromkeys(("case_id", "status", "error"))],
    "mean": {},
    "interval": dict.fromkeys(("level", "method", "resamples", "seed")),
}


def build_record(
    results: Sequence[CaseScores],
    settings: dict[str, Any],
    without_reference: Iterable[Path] = (),
    preset: Preset = DEFAULT_PRESET,
) -> Record:
    """Everything: settings, rules, tolerances, scores of each case, means, intervals. Missing is None, never 0.

    Args:
        results: the cases.
        settings: what the command line asked for.
        without_reference: predictions that were passed over.
        preset: what they were scored by.
    """
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "settings": settings,
        "preset": preset.name,
        "organs": [asdict(organ) for organ in preset.official.organs],
        "rules": {rules.name: rules_as_json(rules) for rules in preset.both},
        "cases": [_case_record(result, preset) for result in results],
    }
    return record | {
        "mean": {source: _means(record, source) for source in SOURCES},
        "interval": BOOTSTRAP | {source: _intervals(record, source) for source in SOURCES},
        "predictions_without_reference": [str(path) for path in without_reference],
    }


def json_text(record: Record) -> str:
    """The record as it is written."""
    return json.dumps(record, indent=2, allow_nan=False) + "\n"


def read_record(path: Path) -> Record:
    """The record that ``json_text`` wrote.

    Raises:
        FolderError: the file cannot be read or is not such a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FolderError(
            f"{path}: cannot be read ({error.strerror or error}); expected a scores.json of tools.evaluate"
        ) from error
    except ValueError as error:
        raise FolderError(f"{path}: no JSON ({error}); expected a scores.json of tools.evaluate") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise FolderError(
            f"{path}: schema_version {version}; expected scores.json of tools.evaluate with {SCHEMA_VERSION}. "
            "Score the predictions again"
        )
    if lacking := [*_lacking(record, _FRAME)] or [*_lacking_numbers(record)]:
        more = f" and {len(lacking) - _NAMED_AT_MOST} more" if len(lacking) > _NAMED_AT_MOST else ""
        raise FolderError(
            f"{path}: no {', '.join(lacking[:_NAMED_AT_MOST])}{more}; expected a whole scores.json of tools.evaluate. "
            "Score the predictions again"
        )
    return dict(record)


def _lacking_numbers(record: Record) -> Iterator[str]:
    """Where a record lacks what follows from its organs and from which of its cases are scored."""
    names = [organ["name"] for organ in record["organs"]]
    keys = {s: [metric.key for metric in METRICS if metric.by_rules == (s in RULES)] for s in SOURCES}
    means = {
        s: {"organs": dict.fromkeys(names, dict.fromkeys(keys[s])), "all_organs": dict.fromkeys(keys[s])}
        for s in SOURCES
    }
    yield from _lacking(record, {"mean": means, "interval": means})
    scores = {rules: {"organs": means[rules]["organs"], "mean": means[rules]["all_organs"]} for rules in RULES}
    measures = {"organs": dict.fromkeys(names, dict.fromkeys((HD95.key, VOLUME_ERROR.key)))}
    for index, case in enumerate(record["cases"]):
        if case["status"] == "scored":
            yield from _lacking(case, {**scores, "measures": measures}, f"cases[{index}]")


def _lacking(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """Where a value lacks what a shape has.

    {"cases": [{"error": None}]} lacks ``cases[0].status`` of the shape {"cases": [{"status": None, "error": None}]}.
    """
    if shape is not None and not isinstance(value, type(shape)):
        yield f"{where} that is {'a list' if isinstance(shape, list) else 'an object'}"
    elif isinstance(shape, list):
        for index, entry in enumerate(value):
            yield from _lacking(entry, shape[0], f"{where}[{index}]")
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            path = f"{where}.{key}" if where else key
            yield from _lacking(value[key], inner, path) if key in value else [path]


def in_mean(record: Record) -> npt.NDArray[np.bool_]:
    """bool (organs): which of them the mean over organs has."""
    return np.array([organ["in_mean"] for organ in record["organs"]], dtype=np.bool_)


def _means(record: Record, source: str) -> dict[str, Any]:
    """Means of each organ over the cases that have a value, with their number; and the means of those means.

    DSC 0.9, 0.7 and missing for one organ, 0.5 three times for another: 0.8 of 2 cases, 0.5 of 3 cases, together 0.65.
    """
    organs: dict[str, dict[str, Any]] = {organ["name"]: {} for organ in record["organs"]}
    overall = {}
    for metric, values in _values(record, source):
        means = organ_means(values)
        overall[metric.key] = mean_over_organs(means, record)
        for entry, mean, column in zip(organs.values(), means, values.T, strict=True):
            count = "cases" if metric.by_rules else f"{metric.key}_cases"  # DSC and NSD are missing together
            entry |= {metric.key: mean, count: int(np.count_nonzero(~np.isnan(column)))}
    return {"organs": organs, "all_organs": overall}


def with_failed_as_zero(record: Record) -> dict[str, float | None]:
    """Official DSC and NSD over all organs if each failed case counts as 0, as in the challenge; by the metric's key.

    One case of 0.9 and one that failed: 0.45.
    """
    zeros = np.zeros((sum(case["status"] == "failed" for case in record["cases"]), len(record["organs"])))
    return {
        metric.key: mean_over_organs(organ_means(np.concatenate([values, zeros])), record)
        for metric, values in _values(record, "official")
    }


def _intervals(record: Record, source: str) -> dict[str, Any]:
    """Of the same means."""
    organs: dict[str, dict[str, Any]] = {organ["name"]: {} for organ in record["organs"]}
    overall = {}
    for metric, values in _values(record, source):
        found, overall[metric.key] = bootstrap_intervals(values, in_mean(record))
        for entry, interval in zip(organs.values(), found, strict=True):
            entry[metric.key] = interval
    return {"organs": organs, "all_organs": overall}


def _values(record: Record, source: str) -> Iterator[tuple[Metric, Float64Array]]:
    case_ids = {case["case_id"] for case in record["cases"]}
    for metric in METRICS:
        if metric.by_rules == (source in RULES):
            yield metric, metric_values(record, metric, source, case_ids)


def _case_record(result: CaseScores, preset: Preset) -> dict[str, Any]:
    record: dict[str, Any] = {
        "case_id": result.pair.case_id,
        "name": result.pair.name,
        "prediction": str(result.pair.prediction),
        "reference": str(result.pair.reference),
        "status": "failed" if result.error else "scored",
        "error": result.error,
        "warnings": list(result.warnings),
    }
    for rules in preset.both:
        scores = result.scores.get(rules.name)
        record[rules.name] = scores and {
            "organs": {name: asdict(score) for name, score in scores.items()},
            "mean": _mean_of([scores[organ.name] for organ in rules.organs if organ.in_mean]),
        }
    organs = {name: asdict(measures) for name, measures in result.measures.items()}
    record["measures"] = {"organs": organs} if organs else None
    return record


def _mean_of(scores: Sequence[Score]) -> dict[str, float | None]:
    """Means of what is there."""
    found = {"dsc": [score.dsc for score in scores], "nsd": [score.nsd for score in scores]}
    there = {key: [value for value in values if value is not None] for key, values in found.items()}
    return {key: sum(values) / len(values) if values else None for key, values in there.items()}
