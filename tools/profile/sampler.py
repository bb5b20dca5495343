"""Reads everything at fixed moments."""

import threading
import time
from collections.abc import Callable
from math import floor

from tools.profile.recording import Phase, RecordingWriter, Sample
from tools.profile.scopes import Scope, Usage
from tools.profile.scopes.gpu import Gpu
from tools.profile.scopes.host import host_cpu, host_memory_mib

_NOTHING = Usage(None, None)


def _never() -> float | None:
    return None


class Sampler:
    """Takes samples at start, start + interval, start + 2 intervals, ...: a slow reading does not shift the next.

    A moment that passed while the sampler had no CPU is skipped, not made up for: two samples in a row would count one
    state twice.

    Attributes:
        scope: what is profiled; None before it was started.
        skipped: moments that passed without a sample.
    """

    def __init__(self, writer: RecordingWriter, interval_s: float, gpu: Gpu | None) -> None:
        self._writer, self._interval_s, self._gpu = writer, interval_s, gpu
        self.scope: Scope | None = None
        self.skipped = 0

    def take(self, phase: Phase) -> Sample:
        """Takes one sample and appends it to the file."""
        monotonic_s, unix_s = time.monotonic(), time.time()
        cpu = host_cpu()
        usage = self.scope.read() if self.scope else _NOTHING
        gpu_mib = self._gpu.memory_mib() if self._gpu else None
        times = (monotonic_s, unix_s, cpu.user_s, cpu.system_s, cpu.idle_s, cpu.busy_s)
        sample = Sample(phase, *times, host_memory_mib(), gpu_mib, usage.memory_mib, usage.cpu_s)
        self._writer.sample(sample)
        return sample

    def take_until(
        self,
        stop: threading.Event,
        phase: Phase,
        after_each: Callable[[Sample], None],
        look: Callable[[], float | None] = _never,
    ) -> None:
        """Samples until ``stop`` is set, at least once; ends at once when it is.

        Args:
            stop: set by another thread, or by ``after_each``.
            phase: of all these samples.
            after_each: gets every sample.
            look: called after every sample, and again at the moment (monotonic) that it returned if no sample is due
                before; None is never.
        """
        start, moment = time.monotonic(), 0
        while True:
            after_each(self.take(phase))
            following = max(moment + 1, floor((time.monotonic() - start) / self._interval_s) + 1)
            self.skipped += following - moment - 1
            moment = following
            due_s = start + moment * self._interval_s
            while (look_s := look()) is not None and look_s < due_s:
                if _wait(stop, look_s):
                    return
            if _wait(stop, due_s):
                return

    def take_for(self, seconds: float, phase: Phase) -> None:
        """Samples for so long, at least once, and then waits for the next moment."""
        end = time.monotonic() + seconds
        enough = threading.Event()

        def look(_sample: Sample) -> None:
            if time.monotonic() + self._interval_s >= end:
                enough.set()

        self.take_until(enough, phase, look)
        time.sleep(max(0.0, end - time.monotonic()))


def _wait(stop: threading.Event, moment_s: float) -> bool:
    """Whether ``stop`` was set until then."""
    return stop.wait(max(0.0, moment_s - time.monotonic()))
