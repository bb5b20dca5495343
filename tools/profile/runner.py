"""Runs a command and samples it until it has ended, by itself or because it was stopped."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from app.errors import AppError
from tools.profile.recording import Ending, Reason, Sample
from tools.profile.sampler import Sampler
from tools.profile.scopes import Scope
from tools.profile.scopes.tree import TreeScope

_GRACE_S = 10.0


class CommandError(AppError):
    """The command cannot be started; the exit code is a shell's for that."""

    exit_code = 127


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Attributes:
        command: program and arguments.
        log: gets its stdout and stderr; None leaves them where the profiler's go.
        timeout_s: after this it is stopped; None never.
        scope: what to sample; None is the command's process tree.
        stop: asks it to end, given a signal; None sends the signal to its process group.
        after_each: gets every sample.
    """

    command: Sequence[str]
    log: Path | None = None
    timeout_s: float | None = None
    scope: Scope | None = None
    stop: Callable[[int], None] | None = None
    after_each: Callable[[Sample], None] = field(default=lambda sample: None)


class _Child:
    """A started command, and a thread that waits for it: its end is known at once, and costs nothing until then."""

    def __init__(self, job: Job) -> None:
        self.ended = threading.Event()
        self.start_unix_s, self.start_s = time.time(), time.monotonic()
        self.end_s = self.cpu_s = 0.0
        with job.log.open("wb") if job.log else nullcontext() as log:
            try:
                self._process = subprocess.Popen(job.command, stdout=log, stderr=log, start_new_session=True)
            except OSError as error:
                raise CommandError(f"{job.command[0]}: cannot be started ({error.strerror}); check its name") from error
        self.pid = self._process.pid
        threading.Thread(target=self._wait, name="wait-for-command", daemon=True).start()

    def _wait(self) -> None:
        _, status, used = os.wait4(self.pid, 0)
        self.end_s = time.monotonic()
        self.cpu_s = used.ru_utime + used.ru_stime
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.ended.set()

    @property
    def exit_code(self) -> int:
        """As a shell gives it."""
        code = int(self._process.returncode)
        return code if code >= 0 else 128 - code

    def signal(self, number: int) -> None:
        """Sends a signal to the command's process group."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return


class _Stopper:
    """Stops the child when the time is up or the profiler is told to end: kindly first, after 10 s by force."""

    def __init__(self, child: _Child, job: Job, told: list[int]) -> None:
        self._child, self._timeout_s, self._told = child, job.timeout_s, told
        self._stop = job.stop or child.signal
        self._asked_s: float | None = None
        self.reason: Reason = "exit"

    def look(self) -> float | None:
        """When to call it again at the latest (monotonic); a second signal to the profiler ends the patience."""
        now = time.monotonic()
        end_s = None if self._timeout_s is None else self._child.start_s + self._timeout_s
        if self._asked_s is None:
            if self._told:
                return self._ask("signal", self._told[0], now)
            if end_s is not None and now >= end_s:
                return self._ask("timeout", signal.SIGTERM, now)
            return end_s
        if now >= self._asked_s + _GRACE_S or len(self._told) > 1:
            self._child.signal(signal.SIGKILL)
            return None
        return self._asked_s + _GRACE_S

    def _ask(self, reason: Reason, number: int, now: float) -> float:
        """The end of its patience."""
        self.reason, self._asked_s = reason, now
        self._stop(number)
        return now + _GRACE_S


def run_sampled(job: Job, sampler: Sampler) -> Ending:
    """How the command ended; every sample of it is in the sampler's file by then.

    SIGINT and SIGTERM to this process stop the command, not the profiler.

    Raises:
        CommandError: it could not be started.
    """
    with _told_to_end() as told:
        cpu_before_s, skipped_before = time.process_time(), sampler.skipped
        child = _Child(job)
        sampler.scope = job.scope or TreeScope(child.pid)
        stopper = _Stopper(child, job, told)
        try:
            sampler.take_until(child.ended, "run", job.after_each, stopper.look)
        finally:
            if not child.ended.is_set():  # a fault of the profiler itself: leave nothing running
                child.signal(signal.SIGKILL)
                child.ended.wait(_GRACE_S)
        sampler.take("end")
        return Ending(
            exit_code=child.exit_code,
            reason=stopper.reason,
            start_unix_s=child.start_unix_s,
            start_monotonic_s=child.start_s,
            wall_s=child.end_s - child.start_s,
            command_cpu_s=child.cpu_s,
            sampler_cpu_s=time.process_time() - cpu_before_s,
            skipped_samples=sampler.skipped - skipped_before,
        )


@contextmanager
def _told_to_end() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that this process gets within the block, in order."""
    told: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
