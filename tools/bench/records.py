"""The results file: written after every run, so that a bench that was stopped goes on where it was."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.errors import FolderError
from tools.bench.rows import Row
from tools.bench.summary import summarise
from tools.bench.targets import evaluate_targets

SCHEMA_VERSION = 1
WHERE_FROM = ("machine", "commit", "command")  # of a row's last run

Record = dict[str, Any]


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file; an empty one if it is not there.

    Raises:
        FolderError: the file is not what ``write_results`` writes.
    """
    if not path.is_file():
        return {"schema_version": SCHEMA_VERSION, "rows": {}, "scans": {}}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {content['schema_version']}, expected {SCHEMA_VERSION}")
        if not all(isinstance(record["runs"], list) for record in content["rows"].values()):
            raise ValueError("a row without runs")
        for record in content["rows"].values():
            record.setdefault("command", ["(not", "kept)"])  # earlier files have that of the last call only
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{path}: not the results of make bench ({error}); remove it to begin anew") from error
    return content


def with_conclusions(results: dict[str, Any]) -> dict[str, Any]:
    """The results with everything that follows from the runs: summary and targets."""
    summary = summarise(results["rows"])
    return {**results, "summary": summary, "targets": evaluate_targets(results["rows"], summary)}


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Writes the results with their conclusions, at once or not at all."""
    write_text(path, json.dumps(with_conclusions(results), indent=1, allow_nan=False) + "\n")


def keep_group(rows: list[Row], records: dict[str, Record], digest: str, again: bool) -> dict[str, Record]:
    """A record for each row of a group: those from before where every run of the group is of this ``digest``.

    Runs of another code, network or machine cannot be compared pair by pair with new ones, so then the group begins
    anew. Failed runs are dropped: they are tried again.
    """
    old = [records[row.name] for row in rows if row.name in records]
    stale = again or any(record["digest"] != digest for record in old)
    kept = {}
    for row in rows:
        before = {} if stale else records.get(row.name, {})
        kept[row.name] = {
            **{fact: before[fact] for fact in WHERE_FROM if fact in before},
            "row": {**asdict(row), "contestant": row.contestant, "window_name": row.window_name},
            "digest": digest,
            "runs": [run for run in before.get("runs", []) if run["error"] is None],
        }
    return kept


def rounds_wanted(records: dict[str, Record], repeats: int, slow_repeats: int, slow_s: float) -> int:
    """How often each row of a group runs: ``repeats``, or ``slow_repeats`` once a run has taken over ``slow_s``."""
    slowest = max((run["wall_s"] or 0.0 for record in records.values() for run in record["runs"]), default=0.0)
    return min(repeats, slow_repeats) if slowest > slow_s else repeats
