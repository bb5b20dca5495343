"""What protects a run of a training: nobody else is at its folder."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.cases import prepare_output_folder
from app.errors import AppError, FolderError

LOCK_FILE = "run.lock"
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)  # by some network file systems


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Makes the folder of a training where there is none, and keeps other runs out of it while the block runs.

    The kernel lets go of the lock when the process ends, however it ends: nothing of it is in the way of the next run.

    Raises:
        AppError: another run is at this folder.
        FolderError: the folder cannot be written.
    """
    prepare_output_folder(folder)
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FolderError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Where there are no locks, nobody is kept out."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AppError(
            f"{folder}: another `tools.train` is training in it; expected to be alone. Wait for it, or end it"
        ) from error
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise FolderError(f"{folder / LOCK_FILE}: cannot be locked ({error.strerror or error})") from error
