"""The scans of a run: each is read in its turn, or ahead of it while the network works on the one before."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from app.cases import Case
from app.errors import CaseError
from app.plausibility import Overview, look_at
from app.volume import Volume
from app.volume_io import content_state, read_volume, without_voxels


@dataclass
class Scan:
    """What was read of a case.

    Attributes:
        volume: the scan; without its voxels once they are handed over.
        overview: of it, for the plausibility of its label map.
    """

    volume: Volume
    overview: Overview

    def hand_over(self) -> Volume:
        """The volume, to whose voxels nothing here refers any more: whoever gets it can let them go."""
        volume, self.volume = self.volume, without_voxels(self.volume)
        return volume


class Reader:
    """Reads at most one scan ahead, in a thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._ahead: tuple[Case, Future[Scan | None]] | None = None

    def begin(self, case: Case) -> None:
        """Starts to read a case ahead; the caller knows that there is memory for it."""
        self._ahead = case, self._pool.submit(_read_if_possible, case.input_path)

    def held_bytes(self, case: Case) -> int:
        """Voxels of this case that are in memory, read ahead; waits for what is being read, drops any other case."""
        if self._ahead is None:
            return 0
        ahead, future = self._ahead
        scan = future.result()
        if scan is None or ahead is not case:
            self._ahead = None
            return 0
        return scan.volume.voxels.nbytes

    def read(self, case: Case) -> Scan:
        """The scan of a case; the reader keeps no reference to it.

        Raises:
            CaseError: it cannot be read, or was written to meanwhile.
        """
        ahead, self._ahead = self._ahead, None
        if ahead and ahead[0] is case:
            scan = ahead[1].result()
            if scan is not None:
                return scan
        return _read(case.input_path)

    def close(self) -> None:
        """Ends the thread without waiting for what it reads: nobody will ask for it."""
        self._ahead = None
        self._pool.shutdown(wait=False, cancel_futures=True)


def _read(path: Path) -> Scan:
    before = content_state(path)
    volume = read_volume(path)
    if content_state(path) != before:
        raise CaseError(f"{path}: changed while it was read; expected a scan that nobody writes. Give it again")
    return Scan(volume, look_at(volume))


def _read_if_possible(path: Path) -> Scan | None:
    """None where that fails: the case will be read again in its turn, with all the memory, and say why."""
    try:
        return _read(path)
    except (CaseError, MemoryError):
        return None
