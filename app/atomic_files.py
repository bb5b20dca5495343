"""Files that appear whole or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from app.errors import FolderError


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content appears under ``path`` when the block ends well, and never otherwise.

    Raises:
        FolderError: the folder cannot be written or the disk is full.
    """
    partial = _partial(path)
    try:
        try:
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
            _sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FolderError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another output folder"
        ) from error


def remove_partial(path: Path) -> None:
    """Removes what a killed run left of ``path``.

    Raises:
        FolderError: the folder cannot be written.
    """
    try:
        _partial(path).unlink(missing_ok=True)
    except OSError as error:
        raise FolderError(f"{path.parent}: cannot be written ({error.strerror or error})") from error


def _partial(path: Path) -> Path:
    """The dot-file beside ``path``; its name is short however long that of ``path`` is."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{digest}.partial")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
