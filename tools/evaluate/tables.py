"""Tables like the paper's Tables 3 to 6, in Markdown: a row for each organ, then the mean over organs."""

from collections.abc import Sequence
from typing import Any

from tools.evaluate.record import with_failed_as_zero
from tools.evaluate.significance import ALPHA
from tools.evaluate.values import (
    ABSOLUTE_VOLUME_ERROR,
    DSC,
    HD95,
    METRICS,
    NSD,
    Interval,
    Metric,
    Record,
    scored_ids,
)

_SHOWN = (DSC, NSD, HD95, ABSOLUTE_VOLUME_ERROR)
_BY_KEY = {metric.key: metric for metric in METRICS}


def scores_markdown(record: Record) -> str:
    """One method: mean and 95 % interval of each metric, with the number of cases that have it."""
    cases = [case["status"] for case in record["cases"]]
    parts = [f"# Scores ({record['preset']}), {cases.count('scored')} of {len(cases)} cases scored", ""]
    for rules in ("official", "corrected"):
        rows = [_scores_row(record, rules, organ["name"], organ["column"]) for organ in record["organs"]]
        rows.append(_scores_row(record, rules, None, "mean"))
        parts += [f"DSC and NSD: {rules}.", "", *_markdown(["", *(metric.title for metric in _SHOWN)], rows), ""]
    if "failed" in cases:
        means_with_zeros = with_failed_as_zero(record)
        dsc, nsd = (metric.shown(means_with_zeros[metric.key]) for metric in (DSC, NSD))
        parts += [f"With every failed case counted as 0, as in the challenge: official DSC {dsc}, NSD {nsd}.", ""]
    return "\n".join([*parts, _remark(record["interval"])])


def comparison_markdown(comparison: Record) -> str:
    """Several methods side by side as in Tables 3 to 5, the best mean in bold; then the tests."""
    names = [method["name"] for method in comparison["methods"]]
    title = f"# {len(comparison['cases'])} cases, {comparison['preset']}, {comparison['rules']} scores"
    parts = [title, ""]
    heads = [f"{metric.title} {name}" for metric in (DSC, NSD) for name in names]
    parts += [*_markdown(["", *heads], _comparison_rows(comparison, (DSC, NSD), names)), ""]
    heads = [f"{metric.title} {name}" for metric in (HD95, ABSOLUTE_VOLUME_ERROR) for name in names]
    parts += [*_markdown(["", *heads], _comparison_rows(comparison, (HD95, ABSOLUTE_VOLUME_ERROR), names)), ""]
    for name in names[1:]:
        parts += [f"## {name} against {names[0]}", "", *_tests(comparison, name), ""]
    if comparison["left_out"]:
        parts += ["Left out, since not every method has scores: " + ", ".join(comparison["left_out"]) + ".", ""]
    if comparison["remarks"]:
        parts += ["Not scored alike: " + "; ".join(comparison["remarks"]) + ".", ""]
    test = f"p: {comparison['test']['method']}; then with {comparison['test']['several_organs']}."
    return "\n".join([*parts, _remark(comparison["interval"]), test + "\n"])


def _scores_row(record: Record, rules: str, organ: str | None, label: str) -> list[str]:
    cells, scored = [label], len(scored_ids(record))
    for metric in _SHOWN:
        source = rules if metric.by_rules else "measures"
        mean, interval = (_entry(record[part][source], organ) for part in ("mean", "interval"))
        count = mean.get("cases" if metric.by_rules else f"{metric.key}_cases")
        cells.append(_cell(metric, mean[metric.key], interval[metric.key]) + _count(count, scored))
    return cells


def _comparison_rows(comparison: Record, metrics: Sequence[Metric], names: Sequence[str]) -> list[list[str]]:
    rows = []
    for label, organ in (*((o["column"], o["name"]) for o in comparison["organs"]), ("mean", None)):
        cells = [label]
        for metric in metrics:
            found = _entry(comparison["metrics"][metric.key], organ)["methods"]
            gaps = {n: abs(found[n]["mean"] - metric.best) for n in names if found[n]["mean"] is not None}
            best = min(gaps.values(), default=None) if len(set(gaps.values())) > 1 else None
            for name in names:
                text = _cell(metric, found[name]["mean"], found[name]["interval"])
                text += _count(found[name].get("cases"), len(comparison["cases"]))
                cells.append(f"**{text}**" if name in gaps and gaps[name] == best else text)
        rows.append(cells)
    return rows


def _tests(comparison: Record, name: str) -> list[str]:
    """One table for each metric: difference of the means, its interval, p."""
    lines: list[str] = []
    for key, found in comparison["metrics"].items():
        metric = _BY_KEY[key]
        rows = []
        for label, organ in (*((o["column"], o["name"]) for o in comparison["organs"]), ("mean", None)):
            entry = _entry(found, organ)["against_first"][name]
            rows.append([label, _cell(metric, entry["difference"], entry["interval"]), *_test_cells(entry["test"])])
        head = ["", f"{metric.title}, difference", "pairs", "unequal", "p", f"p (Holm), below {ALPHA:g}?"]
        lines += [*_markdown(head, rows), ""]
    return lines[:-1]


def _test_cells(test: dict[str, Any]) -> list[str]:
    """Pairs, unequal pairs, p as it is, p corrected: or why there is none."""
    counts = [str(test["pairs"]), str(test["unequal_pairs"])]
    if test["note"]:
        return [*counts, "-" if test["p_value"] is None else f"{test['p_value']:.3g}", test["note"]]
    corrected = test["p_value_holm"]
    if corrected is None:
        return [*counts, f"{test['p_value']:.3g}", "-"]
    return [*counts, f"{test['p_value']:.3g}", f"{corrected:.3g}, {'yes' if corrected < ALPHA else 'no'}"]


def _entry(source: dict[str, Any], organ: str | None) -> dict[str, Any]:
    found: dict[str, Any] = source["all_organs"] if organ is None else source["organs"][organ]
    return found


def _cell(metric: Metric, mean: float | None, interval: Interval | None) -> str:
    """``0.8810 (0.8402 to 0.9117)``."""
    if interval is None:
        return metric.shown(mean)
    return f"{metric.shown(mean)} ({metric.shown(interval[0])} to {metric.shown(interval[1])})"


def _count(cases: int | None, all_cases: int) -> str:
    """``, n = 3`` where not all cases have a value."""
    return "" if cases in {None, all_cases} else f", n = {cases}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [table_line(cells) for cells in lines]


def table_line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown, ``| 0.9 | 0.8 |``; a bar within a cell, as in a method's name, ends no cell."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _remark(interval: dict[str, Any]) -> str:
    return (
        f"In brackets: {100 * interval['level']:g} % interval of the mean ({interval['method']}; "
        f"{interval['resamples']} resamples, seed {interval['seed']}); too narrow with fewer than about ten cases. "
        "n: cases that have a value, where not all do. -: no case has; missing is not zero.\n"
    )
