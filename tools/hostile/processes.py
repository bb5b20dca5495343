"""``python -m app`` as a child process that can be stopped at chosen moments, and does not go on for ever."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.exit_codes import error_kind
from tools.hostile.machine import ROOT

LONGEST_S = 120.0  # then it hangs
_POLL_S = 0.0005
_LAST_LINES = 20  # of a log: a traceback is worth reading


@dataclass(frozen=True)
class Done:
    """How a run ended.

    Attributes:
        exit_code: negative for a signal.
        stderr: all of the log.
        seconds: since it was started, or since it was last let go on.
    """

    exit_code: int
    stderr: str
    seconds: float

    @property
    def crashed(self) -> bool:
        """Whether Python or a signal ended it and not the app."""
        return self.exit_code < 0 or "Traceback" in self.stderr or self.exit_code not in (0, 1, 2, 3, 4, 130)


def start(
    *arguments: object, before: Callable[[], None] | None = None
) -> "AbstractContextManager[subprocess.Popen[str]]":
    """Starts ``python -m app``; see ``start_command``."""
    return start_command([sys.executable, "-m", "app", *map(str, arguments)], before)


@contextmanager
def start_command(command: list[str], before: Callable[[], None] | None = None) -> "Iterator[subprocess.Popen[str]]":
    """Starts a command; ``before`` is called in the child, which is killed if it outlives the block."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=before,  # noqa: PLW1509 - sets a limit, and this process has no threads that hold locks
    ) as child:
        try:
            yield child
        finally:
            child.kill()  # nothing to one that was waited for


def finish(child: "subprocess.Popen[str]") -> Done:
    """Waits for it; one that hangs is killed, which counts as a crash."""
    since = time.monotonic()
    try:
        _, stderr = child.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        child.kill()
        _, stderr = child.communicate()
        return hung(stderr, time.monotonic() - since)
    return Done(child.returncode, stderr, time.monotonic() - since)


def hung(stderr: str, seconds: float) -> Done:
    """How a run ended that was killed since it did not end; the last line of its log says so."""
    return Done(-signal.SIGKILL, f"{stderr}\nhung: killed after {seconds:.0f} s", seconds)


def run_app(*arguments: object, before: Callable[[], None] | None = None) -> Done:
    """Runs it to its end."""
    with start(*arguments, before=before) as child:
        return finish(child)


def check_end(done: Done, what: str) -> None:
    """Raises an error of the kind that a run ended with, if it did, and with what it said last.

    Raises:
        AppError: the exit code is not 0.
    """
    if done.exit_code:
        said = "\n".join(done.stderr.strip().splitlines()[-_LAST_LINES:])
        raise error_kind(done.exit_code)(f"{what} ended with exit code {done.exit_code}, expected 0. It said:\n{said}")


@contextmanager
def frozen_when(child: "subprocess.Popen[str]", is_so: Callable[[], bool]) -> Iterator[bool]:
    """Stops the child as soon as ``is_so``, for the length of the block; gives whether that came about."""
    until = time.monotonic() + LONGEST_S
    while child.poll() is None and time.monotonic() < until:
        if is_so():
            child.send_signal(signal.SIGSTOP)
            try:
                yield True
            finally:
                child.send_signal(signal.SIGCONT)
            return
        time.sleep(_POLL_S)
    yield False


def read_position(child: "subprocess.Popen[str]", path: Path) -> int:
    """How far the child has read the file; 0 if it does not hold it open."""
    folder = Path(f"/proc/{child.pid}")
    try:
        for entry in (folder / "fd").iterdir():
            if entry.readlink() == path:
                return int((folder / "fdinfo" / entry.name).read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):  # closed, or ended, meanwhile
        pass
    return 0
