"""Progress bars over cases and windows on a terminal; nothing elsewhere."""

import logging
from typing import Protocol

from app.log_format import escaped


class Progress(Protocol):
    """What the pipeline tells about its progress."""

    def start_case(self, case_id: str) -> None:
        """A case begins."""

    def expect_windows(self, count: int) -> None:
        """The current case takes this many windows."""

    def finish_window(self) -> None:
        """One of them is done."""

    def finish_case(self) -> None:
        """The current case is done, well or not."""

    def close(self) -> None:
        """The run is over."""


class SilentProgress:
    """Shows nothing: for logs, pipes and tests."""

    def start_case(self, case_id: str) -> None:
        """Shows nothing."""

    def expect_windows(self, count: int) -> None:
        """Shows nothing."""

    def finish_window(self) -> None:
        """Shows nothing."""

    def finish_case(self) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Shows nothing."""


class TerminalProgress:
    """Two bars on stderr: cases, and the windows of the current one."""

    def __init__(self, cases: int) -> None:
        from tqdm import tqdm

        self._cases = tqdm(total=cases, desc="cases", unit="case", position=0)
        self._windows = tqdm(total=0, unit="window", position=1, leave=False)
        self._case_id = ""

    def start_case(self, case_id: str) -> None:
        """Names the case on the lower bar."""
        self._windows.reset(total=0)
        self._case_id = escaped(case_id)
        self._windows.set_description(f"{self._case_id} (reading)")

    def expect_windows(self, count: int) -> None:
        """Gives the lower bar its length."""
        self._windows.reset(total=count)
        self._windows.set_description(self._case_id)

    def finish_window(self) -> None:
        """Moves the lower bar."""
        self._windows.update()

    def finish_case(self) -> None:
        """Moves the upper bar."""
        self._cases.update()

    def close(self) -> None:
        """Removes the lower bar and leaves the upper one."""
        self._windows.close()
        self._cases.close()


class TerminalLogHandler(logging.Handler):
    """Writes log lines above the bars instead of through them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line to stderr."""
        import sys

        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)
