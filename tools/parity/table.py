"""The records of finished rows: the JSON file that they are added to, and the Markdown table made from it."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.errors import FolderError
from tools.machine import processor_name

SCHEMA_VERSION = 2

_HEADER = (
    "| nnU-Net | network | scan | our backend | voxels equal | different | float32 sums: theirs, ours right | "
    "worst organ over 1 ml: DSC | organs | seconds: theirs, ours | peak MiB: theirs, ours | result |\n"
    "|---|---|---|---|---:|---:|---:|---|---:|---:|---:|---|\n"
)


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Records by row name; none if the file is not there.

    Raises:
        FolderError: the file is not what ``write_records`` writes.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {content['schema_version']}, expected {SCHEMA_VERSION}")
        return {record["name"]: record for record in content["rows"]}
    except (ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path}: not the results of make parity ({error}); remove it to begin anew") from error


def write_records(path: Path, records: dict[str, dict[str, Any]]) -> None:
    """Writes all records, at once or not at all."""
    content = {"schema_version": SCHEMA_VERSION, "rows": list(records.values())}
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def machine(threads: int | None) -> dict[str, Any]:
    """Where, when and with how many threads a row was run: seconds mean nothing without it."""
    return {
        "host": platform.node(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The table, and under it where it was measured."""
    lines = [_HEADER, *(_line(record) for record in records)]
    counted = [record for record in records if record["not_counted"] is None]
    failed = sum(bool(record["failures"]) for record in counted)
    lines.append(f"\n{len(counted)} of {len(records)} rows count, {failed} of them fail.\n")
    for place in dict.fromkeys(_place(record) for record in records):
        lines.append(f"Seconds (wall clock, cold process) and memory: {place}.\n")
    return "".join(lines)


def _line(record: dict[str, Any]) -> str:
    row, worst, sides = record["row"], record["worst_organ"], record["float32_sums"]
    mirror = ", mirrored" if row["mirror"] else ""
    mode = f"{row['mode']}, " if row["peer"] == "v1" else ""
    cells = (
        f"{row['peer']}: {mode}step {row['step']:g}{mirror}",
        row["network"],
        row["scan"],
        row["backend"],
        f"{100 * record['agreement']:.4f} %",
        str(record["different_voxels"]),
        f"{sides['peer']}, {sides['ours']}" if sides else "",
        f"{worst['organ']}: {worst['dsc']:.4f}" if worst else "none",
        str(record["organs_found"]),
        f"{record['peer']['wall_s']:.0f}, {record['ours']['wall_s']:.0f}",
        f"{record['peer']['peak_rss_mib']:.0f}, {record['ours']['peak_rss_mib']:.0f}",
        _result(record),
    )
    return f"| {' | '.join(cells)} |\n"


def _result(record: dict[str, Any]) -> str:
    if record["not_counted"]:
        return f"does not count: {record['not_counted']}"
    return "fails: " + "; ".join(record["failures"]) if record["failures"] else "passes"


def _place(record: dict[str, Any]) -> str:
    where = record["machine"]
    threads = "" if where["threads"] is None else f", {where['threads']} thread(s) a side"
    return f"{where['processor']}, {where['cores']} cores ({where['host']}){threads}"
