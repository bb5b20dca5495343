"""What protects a run of a training: nobody else is at its folder, and a signal lets it end in good order."""

import errno
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from app.cases import prepare_output_folder
from app.errors import AppError, FolderError

logger = logging.getLogger(__name__)

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


@contextmanager
def catch_signals(terminate: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT ask for an orderly end while the block runs."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        logger.warning("asked to stop; finishing this iteration and writing a checkpoint")
        terminate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
