"""Where a check writes: its record into FILE.json, the table made of that into FILE.md beside it."""

import json
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.cases import prepare_output_folder
from app.errors import UsageError


def prepare_record(out: Path) -> None:
    """Shows mistakes before minutes of work.

    Raises:
        UsageError: the name is that of the table.
        FolderError: the folder cannot be made or written.
    """
    if out.suffix == ".md":
        raise UsageError(f"--out {out}: expected FILE.json; its table goes into FILE.md")
    prepare_output_folder(out.parent)


def write_record(out: Path, record: dict[str, Any], table: str) -> None:
    """Writes both, each whole or not at all."""
    write_text(out, json.dumps(record, indent=1) + "\n")
    write_text(out.with_suffix(".md"), table)
