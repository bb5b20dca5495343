"""The scans of a run: each is read in its turn, or ahead of it while the network works on the one before."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from app.cases import Case
from app.errors import CaseError
from app.memory_terms import ScanHeader
from app.plausibility import Overview, look_at
from app.volume import Volume
from app.volume_io import NIFTI_SUFFIXES, content_state, read_header, read_volume, without_voxels


@dataclass(frozen=True)
class Description:
    """A scan that was looked at and not yet read.

    Attributes:
        case: whose it is.
        state: of its files, taken before anything was read of them.
        header: None if it does not tell what the scan will take.
    """

    case: Case
    state: tuple[tuple[str, int, int], ...]
    header: ScanHeader | None


@dataclass
class Scan:
    """What was read of a case.

    Attributes:
        description: what it was read from.
        volume: the scan; without its voxels once they are handed over.
        overview: of it, for the plausibility of its label map.
    """

    description: Description
    volume: Volume
    overview: Overview

    @property
    def held_bytes(self) -> int:
        """Of its voxels and their overview."""
        return self.volume.voxels.nbytes + self.overview.hu_zyx.nbytes

    def hand_over(self) -> Volume:
        """The volume, to whose voxels nothing here refers any more: whoever gets it can let them go."""
        volume, self.volume = self.volume, without_voxels(self.volume)
        return volume


def describe(case: Case) -> Description:
    """What can be told of a scan before it is read.

    Raises:
        CaseError: it is not there, or its header shows that it is no scan.
    """
    state = content_state(case.input_path)
    return Description(case, state, read_header(case.input_path))


def read(description: Description) -> Scan:
    """The scan that was described.

    Raises:
        CaseError: it cannot be read, or was written to since.
    """
    path = description.case.input_path
    volume = read_volume(path)
    if content_state(path) != description.state:
        raise CaseError(f"{path}: changed while it was read; expected a scan that nobody writes. Give it again")
    return Scan(description, volume, look_at(volume))


def can_be_read_ahead(case: Case) -> bool:
    """Whether this project's own code reads it: what foreign code does to this process must not hit another case."""
    return case.input_path.name.lower().endswith(NIFTI_SUFFIXES)


class Reader:
    """Reads at most one scan ahead, in a thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._ahead: tuple[Case, Future[Scan | None]] | None = None

    def begin(self, description: Description) -> None:
        """Starts to read a scan ahead; the caller knows that there is memory for it.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._ahead = description.case, self._pool.submit(_read_if_possible, description)

    def take(self, case: Case) -> Scan | None:
        """The scan of a case if it was read ahead, which is waited for; no reference to it is kept.

        None if it was not, if that failed, or if the file is another since: it is then to be read in its turn.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        scan = ahead[1].result()
        if scan is None or ahead[0] is not case or content_state(case.input_path) != scan.description.state:
            return None
        return scan

    def drop(self) -> bool:
        """Lets go of what was read ahead, and waits for what is being read; whether there was something."""
        ahead, self._ahead = self._ahead, None
        if ahead and not ahead[1].cancel():
            ahead[1].result()
        return ahead is not None

    def close(self) -> None:
        """Ends the thread; does not wait for a scan that is being read, but the interpreter's own end does."""
        self._ahead = None
        self._pool.shutdown(wait=False, cancel_futures=True)


def _read_if_possible(description: Description) -> Scan | None:
    """None where that fails: the case will be read again in its turn, with all the memory, and say why."""
    try:
        return read(description)
    except (CaseError, MemoryError):
        return None
