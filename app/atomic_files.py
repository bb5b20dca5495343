"""Files that appear whole or not at all, also when the process is killed or two runs write the same one."""

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from app.errors import CaseError, FolderError

_NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)  # by some network file systems
_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")
_MOMENT_S = 0.05


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content appears under ``path`` when the block ends well, and never otherwise.

    Raises:
        CaseError: another run is writing this file.
        FolderError: the folder cannot be written or the disk is full.
    """
    partial = _partial(path)
    try:
        with _open_locked(partial, path) as stream:
            try:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                partial.replace(path)
            except BaseException:
                with suppress(OSError):  # it tells nothing that the error in flight does not
                    partial.unlink()
                raise
        _sync_folder(path.parent)
    except OSError as error:
        raise FolderError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another output folder"
        ) from error


def watch_rename(path: Path) -> Callable[[], bool]:
    """A function that tells whether ``path`` has become another file since, which it does in ``atomic_file``'s rename.

    What ``atomic_file`` raises does not tell: a signal may come, or the folder's flush fail, just after the rename.
    """
    before = _identity(path)
    return lambda: _identity(path) not in (None, before)


def write_text(path: Path, text: str) -> None:
    """The text under ``path``, in UTF-8, whole or not at all; errors as of ``atomic_file``.

    A byte of a file name that is not UTF-8 becomes ``\\udce9``, as in Python's JSON.
    """
    with atomic_file(path) as stream:
        stream.write(text.encode(errors="backslashreplace"))


def remove_partials(folder: Path) -> None:
    """Removes what killed runs left in a folder, whatever they were writing, but not what another run is writing.

    What cannot be removed stays, as a file of another user's: it is in nobody's way. So does all of it where there are
    no locks, since nobody can tell there who is writing.
    """
    with suppress(OSError):
        for partial in [entry for entry in folder.iterdir() if _PARTIAL.fullmatch(entry.name)]:
            with suppress(OSError):
                _remove_if_abandoned(partial)


def _remove_if_abandoned(partial: Path) -> None:
    if partial.is_symlink():  # nothing that this app makes
        partial.unlink()
    elif partial.is_file():
        with partial.open("r+b") as left_behind:  # for writing: NFS locks no others
            fcntl.flock(left_behind, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(partial, left_behind.fileno()):
                partial.unlink()


def _open_locked(partial: Path, path: Path) -> IO[bytes]:
    """The empty partial file, locked for as long as it is open; a killed process holds no lock."""
    while True:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if not _lock(descriptor) and not _lock_in_a_moment(descriptor):
                raise CaseError(f"{path}: another run is writing it; expected to be alone. Wait for it, or end it")
            if _is_still(partial, descriptor):
                os.ftruncate(descriptor, 0)
                return os.fdopen(descriptor, "wb")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # between opening and locking, another run gave this file its final name


def _lock(descriptor: int) -> bool:
    """Whether no other process holds it; where there are no locks, nobody does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    return True


def _lock_in_a_moment(descriptor: int) -> bool:
    """For a file that was just made: a run that begins locks it while it looks at what killed runs left."""
    time.sleep(_MOMENT_S)
    return _lock(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode; None if there is no such file. A partial file has them beside those of the file it replaces."""
    try:
        state = path.lstat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _partial(path: Path) -> Path:
    """The dot-file beside ``path``; its name is short however long that of ``path`` is."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".{digest}.partial")


def _sync_folder(folder: Path) -> None:
    """Flushes the folder's entries where that can be asked for: not on SMB shares, nor where one may not list them."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)
