"""The log of a training: one JSON object a line, for an epoch or a validation."""

import json
from pathlib import Path
from typing import Any

from app.atomic_files import write_text
from app.errors import AppError, FolderError

LOG_FILE = "log.jsonl"


def append_line(folder: Path, line: dict[str, Any]) -> None:
    """Writes one more line.

    Raises:
        FolderError: the folder cannot be written or the disk is full.
    """
    path = folder / LOG_FILE
    try:
        with path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
    except OSError as error:
        raise FolderError(
            f"{path}: cannot be written ({error.strerror or error}); free space, then go on with `tools.train resume`"
        ) from error


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log. A torn last one, as a loss of power leaves it, is left out.

    Raises:
        AppError: there is no log, or a line before the last is damaged.
    """
    path = folder / LOG_FILE
    try:
        texts = path.read_text(errors="replace").rstrip("\n").split("\n")
    except OSError as error:
        reason = error.strerror or error
        raise AppError(
            f"{path}: cannot be read ({reason}); expected the log of `tools.train fit`, begun after its first epoch"
        ) from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number == len(texts):
                break
            raise AppError(
                f"{path}: line {number} is damaged ({error}); expected the log of `tools.train fit`. Remove the line"
            ) from error
    return lines


def drop_later_lines(folder: Path, step: int) -> None:
    """Removes the lines of iterations after ``step``: the training does them again.

    Raises:
        AppError: the log is damaged before its last line.
        FolderError: the folder cannot be written.
    """
    if not (folder / LOG_FILE).exists():
        return
    kept = [json.dumps(line) + "\n" for line in read_lines(folder) if line["step"] <= step]
    write_text(folder / LOG_FILE, "".join(kept))
