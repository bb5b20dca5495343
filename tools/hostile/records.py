"""The record of all that was tried: one JSON file, one section a sub-command, and the table made of it."""

import json
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.errors import FolderError
from tools.hostile.table import markdown

SCHEMA_VERSION = 1
RECORD_FILE, TABLE_FILE = "hostile.json", "hostile.md"

Record = dict[str, Any]


def read_record(folder: Path) -> Record:
    """What was tried so far; an empty record if there is none.

    Raises:
        FolderError: the file is not such a record.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return {"schema_version": SCHEMA_VERSION}
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {record['schema_version']}, expected {SCHEMA_VERSION}")
    except (ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path}: not the record of tools.hostile ({error}); remove it to begin anew") from error
    return record


def write_record(folder: Path, record: Record) -> None:
    """Writes the record, and the table that follows from it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((RECORD_FILE, json.dumps(record, indent=1) + "\n"), (TABLE_FILE, markdown(record))):
        write_text(folder / name, text)


def failures(record: Record) -> list[str]:
    """Everything in a record that was not as expected."""
    found = [f"fuzz, seed {each['seed']}: {each['end']}, {each['message']}" for each in _fuzz(record)["findings"]]
    for name, section in record.get("faults", {}).items():
        found += [f"{name}: {failure}" for failure in section["outcome"]["failures"]]
    for name in ("endurance", "determinism"):
        found += [f"{name}: {failure}" for failure in record.get(name, {}).get("outcome", {}).get("failures", [])]
    return found


def _fuzz(record: Record) -> Record:
    outcome: Record = record.get("fuzz", {}).get("outcome", {"findings": []})
    return outcome
