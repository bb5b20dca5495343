"""What earlier runs reported about label maps that a run with ``--skip-existing`` leaves alone.

The report is written anew, so the records of cases that were skipped would be lost with the old file. They move into
``earlier_runs`` of the new one: 3 of 5 cases reported as segmented and 2 as failed; the next run skips the 3 and
segments the 2, its report has the 2, and the 3 under the run that made them.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

EarlierRun = dict[str, Any]


def read_earlier_runs(path: Path, schema_version: int) -> list[EarlierRun]:
    """The run that wrote the report, and before it those that it carries; none if there is no report.

    What is no report, or one of another version, is kept under another name and that is logged.

    Raises:
        OSError: it cannot be read or renamed.
    """
    if not path.exists():
        return []
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["schema_version"] != schema_version:
            raise ValueError(f"schema_version {report['schema_version']}, expected {schema_version}")
        earlier = report.pop("earlier_runs")
        cases = [case for run in (*earlier, report) for case in run["cases"]]
        if not all(isinstance(case["output"], str) and isinstance(case["status"], str) for case in cases):
            raise ValueError("a case without output or status")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        kept = path.with_name(f"{path.name}.before")
        path.replace(kept)
        logger.warning("%s: not a report that can be carried on (%s); kept as %s", path, error, kept.name)
        return []
    return [*earlier, report]


def without_redone(runs: Iterable[EarlierRun], redone: set[str]) -> list[EarlierRun]:
    """The runs, each with those of its cases whose output is not in ``redone``; runs without any are dropped."""
    kept = []
    for run in runs:
        cases = [case for case in run["cases"] if case["output"] not in redone and case["status"] == "segmented"]
        if cases:
            kept.append({**run, "cases": cases})
    return kept
