"""Methods against each other on the cases that all of them have scores of: means, differences, tests."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import CaseError
from tools.evaluate.record import in_mean
from tools.evaluate.significance import BOOTSTRAP, SIGNED_RANK, bootstrap_intervals, holm, signed_rank
from tools.evaluate.values import (
    ABSOLUTE_VOLUME_ERROR,
    DSC,
    HD95,
    NSD,
    Float64Array,
    Metric,
    Record,
    mean_over_organs,
    metric_values,
    organ_means,
    scored_ids,
)

SCHEMA_VERSION = 1

COMPARED = (DSC, NSD, HD95, ABSOLUTE_VOLUME_ERROR)


def compare(records: Mapping[str, Record], paths: Mapping[str, Path], rules: str) -> Record:
    """Everything that the tables say, as JSON; the first method is the one that the others are tested against.

    An organ that only one method has a value of in a case is in that method's mean and in no pair.

    Args:
        records: what ``scores.json`` holds, by the method's name.
        paths: where that lies.
        rules: ``official`` or ``corrected``.

    Raises:
        CaseError: the records were not made by one preset, or share no case.
    """
    first, *others = records
    for name in others:
        if records[name]["preset"] != records[first]["preset"]:
            raise CaseError(
                f"{paths[name]}: scored by preset {records[name]['preset']}; expected {records[first]['preset']} as in "
                f"{paths[first]}. Score both by one --preset"
            )
    scored = {name: scored_ids(record) for name, record in records.items()}
    common = [case for case in scored[first] if all(case in ids for ids in scored.values())]
    if not common:
        raise CaseError(f"{', '.join(map(str, paths.values()))}: no case that all of them have scores of; expected one")
    everything = sorted({case["case_id"] for record in records.values() for case in record["cases"]})
    metrics = {metric.key: _compare_metric(records, metric, rules, common) for metric in COMPARED}
    remarks = [remark for name in others for remark in _unlike(records[first], records[name], first, name)]
    return {
        "schema_version": SCHEMA_VERSION,
        "methods": [{"name": name, "scores": str(paths[name])} for name in records],
        "preset": records[first]["preset"],
        "rules": rules,
        "organs": records[first]["organs"],
        "cases": common,
        "left_out": [case for case in everything if case not in common],
        "remarks": [*remarks, *(_unequal_counts(metrics[DSC.key]) if rules == "official" else ())],
        "interval": BOOTSTRAP,
        "test": SIGNED_RANK,
        "metrics": metrics,
    }


def _unlike(one: Record, other: Record, name_of_one: str, name: str) -> list[str]:
    """In what two methods were not scored alike; each says it where it lies."""
    found = []
    for key, what in (("references", "references"), ("ignore_geometry", "--ignore-geometry")):
        values = one["settings"].get(key), other["settings"].get(key)
        if values[0] != values[1]:
            found.append(f"{name} was scored with {what} {values[1]}, {name_of_one} with {values[0]}")
    return found


def _unequal_counts(found: Mapping[str, Any]) -> list[str]:
    """Organs whose official means are of unequal numbers of cases: on one slice, only who misses one has a number."""
    remarks = []
    for organ, entry in found["organs"].items():
        counts = {name: summary["cases"] for name, summary in entry["methods"].items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
            remarks.append(f"{organ} has official DSC and NSD in unequal numbers of cases ({listed})")
    return remarks


def _compare_metric(records: Mapping[str, Record], metric: Metric, rules: str, cases: list[str]) -> dict[str, Any]:
    """Every organ and the mean over organs: ``methods`` by name, ``against_first`` by name."""
    first, *others = records
    values = {name: _in_order(record, metric, rules, cases) for name, record in records.items()}
    names = [organ["name"] for organ in records[first]["organs"]]
    organs: dict[str, Any] = {name: {"methods": {}, "against_first": {}} for name in names}
    overall: dict[str, Any] = {"methods": {}, "against_first": {}}
    for method, found in values.items():
        entries, overall["methods"][method] = _summary(found, records[first], "mean")
        for entry, summary in zip(organs.values(), entries, strict=True):
            entry["methods"][method] = summary
    for method in others:
        entries, all_organs = _summary(values[method] - values[first], records[first], "difference")
        tests = [asdict(signed_rank(*columns)) for columns in zip(values[first].T, values[method].T, strict=True)]
        corrected = holm([test["p_value"] for test in tests])
        for entry, summary, test, p_value in zip(organs.values(), entries, tests, corrected, strict=True):
            entry["against_first"][method] = summary | {"test": test | {"p_value_holm": p_value}}
        test = asdict(signed_rank(*_case_means(values[first], values[method], records[first])))
        overall["against_first"][method] = all_organs | {"test": test | {"p_value_holm": None}}
    return {"organs": organs, "all_organs": overall}


def _summary(values: Float64Array, record: Record, what: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(of each organ: mean, interval, cases; of the mean over organs: the same without cases)."""
    means = organ_means(values)
    intervals, interval = bootstrap_intervals(values, in_mean(record))
    counts = np.count_nonzero(~np.isnan(values), axis=0)
    organs = [
        {what: mean, "interval": found, "cases": int(count)}
        for mean, found, count in zip(means, intervals, counts, strict=True)
    ]
    return organs, {what: mean_over_organs(means, record), "interval": interval}


def _case_means(first: Float64Array, second: Float64Array, record: Record) -> tuple[Float64Array, Float64Array]:
    """Both methods' means over organs of each case, over the organs that both have a value of."""
    both = ~np.isnan(first) & ~np.isnan(second) & in_mean(record)
    counts = np.where(both.any(axis=1), both.sum(axis=1), np.nan)
    return np.where(both, first, 0.0).sum(axis=1) / counts, np.where(both, second, 0.0).sum(axis=1) / counts


def _in_order(record: Record, metric: Metric, rules: str, cases: list[str]) -> Float64Array:
    """(cases, organs) in the order of ``cases``, whatever the record's is."""
    places = {case: row for row, case in enumerate(case for case in scored_ids(record) if case in cases)}
    return metric_values(record, metric, rules, cases)[[places[case] for case in cases]]
