"""What follows from the runs: medians, floors, ratios pair by pair. No run is made here."""

from collections.abc import Iterable
from itertools import pairwise
from statistics import median
from typing import Any

Record = dict[str, Any]
Rows = dict[str, Record]

STAGES = ("start_up", "read", "load", "locate", "preprocess", "network", "restore", "postprocess", "write", "other")
_MEASURES = ("wall_s", "cpu_s", "peak_rss_mib")
_MEDIANS = (*_MEASURES, "others_cores")


def summarise(rows: Rows) -> dict[str, Any]:
    """``rows``: medians by row; ``ratios``: every row of ours against every peer of its group and network.

    Missing is null: a row that failed has no median, and a window that was not measured gives no floor.
    """
    return {
        "rows": {name: _row_summary(record, rows) for name, record in rows.items()},
        "ratios": [
            _ratio(ours, peer, rows) for ours in rows for peer in rows if _are_opponents(rows[ours], rows[peer])
        ],
    }


def good_runs(record: Record | None) -> list[Record]:
    """The runs that ended well."""
    return [run for run in record["runs"] if run["error"] is None] if record else []


def pair_by_pair(first: Record | None, second: Record | None) -> list[tuple[Record, Record]]:
    """(run k of the first, run k of the second); runs without a partner are left out.

    So are all runs of two rows that were measured with another code, network or machine (``digest``).
    """
    if first is None or second is None or first["digest"] != second["digest"]:
        return []
    return list(zip(good_runs(first), good_runs(second), strict=False))


def middle(values: Iterable[float | None]) -> float | None:
    """The median, or None if there is nothing or something is missing."""
    there = list(values)
    return median(value for value in there if value is not None) if there and None not in there else None


def floors_s(record: Record, rows: Rows) -> list[tuple[Record, float]]:
    """(run k, its floor): windows of the run x the bare window that was measured in round k."""
    pairs = pair_by_pair(record, rows.get(record["row"]["window_name"]))
    return [(run, run["windows"] * window["window_s"]) for run, window in pairs]


def _row_summary(record: Record, rows: Rows) -> Record:
    runs = good_runs(record)
    errors = [run["error"] for run in record["runs"] if run["error"]]
    summary: Record = {"runs": len(runs), "error": errors[-1] if errors else None}
    summary |= {name: middle(run[name] for run in runs) for name in _MEDIANS}
    if record["row"]["program"] == "window":
        return {**summary, "window_s": middle(run["window_s"] for run in runs)}
    windows = runs[0]["windows"] if runs else None
    summary |= {"windows": windows}
    if record["row"]["program"] != "app":
        return summary
    floors = floors_s(record, rows)
    return {
        **summary,
        "app_peak_mib": middle(run["app_peak_mib"] for run in runs),
        "stages": {stage: middle(run["stages"][stage] for run in runs) for stage in STAGES},
        "floor_s": middle(floor for _, floor in floors),
        "wall_over_floor": middle(run["wall_s"] / floor for run, floor in floors),
        "wall_above_floor_s": middle(run["wall_s"] - floor for run, floor in floors),
        "network_s_per_window": middle(run["stages"]["network"] / run["windows"] for run in runs),
        "wall_s_per_window": middle(run["wall_s"] / run["windows"] for run in runs),
    }


def _are_opponents(ours: Record, peer: Record) -> bool:
    if ours["row"]["program"] != "app" or peer["row"]["program"] not in ("v1", "v2"):
        return False
    return all(ours["row"][key] == peer["row"][key] for key in ("group", "network", "scan"))


def _ratio(ours: str, peer: str, rows: Rows) -> Record:
    """Ours / theirs of each pair, then the median: 10 of 40 s, 12 of 40 and 20 of 50 give 0.3."""
    pairs = pair_by_pair(rows[ours], rows[peer])
    return {
        "ours": ours,
        "peer": peer,
        "pairs": len(pairs),
        "interleaved": _interleaved(pairs),
        "same_windows": all(mine["windows"] == theirs["windows"] for mine, theirs in pairs) if pairs else None,
        **{name: middle(mine[name] / theirs[name] for mine, theirs in pairs) for name in _MEASURES},
    }


def _interleaved(pairs: list[tuple[Record, Record]]) -> bool:
    """Whether both runs of each pair began before either of the next."""
    begun = [sorted((mine["started"], theirs["started"])) for mine, theirs in pairs]
    return all(one[1] < following[0] for one, following in pairwise(begun))
