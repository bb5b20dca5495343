"""Wall time that a process ran: what it spent stopped or suspended is left out."""

import threading
import time
from typing import Self

_LOOK_EVERY_S = 0.25
_LONGEST_GAP_S = 1.0


class RunningClock:
    """Seconds of wall time inside a ``with`` block while this process ran.

    Nothing tells a process that it was stopped (SIGSTOP, Ctrl-Z, a paused machine), so a thread looks at the clock four
    times a second and ``running_s`` says how much of the time between two looks counts.
    """

    def __init__(self) -> None:
        self._sum_s = 0.0
        self._last = _now()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="running-clock")

    def __enter__(self) -> Self:
        self._last = _now()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed_s()
        self._ended.set()
        self._thread.join()

    def elapsed_s(self) -> float:
        """Seconds so far; 0 before the block, no more after it."""
        with self._lock:
            now = _now()
            if self._thread.is_alive():
                self._sum_s += running_s(now[0] - self._last[0], now[1] - self._last[1])
            self._last = now
            return self._sum_s

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            self.elapsed_s()


def running_s(wall_s: float, cpu_s: float) -> float:
    """How much of the time between two looks a process ran.

    A second is nothing unusual. Longer, it was stopped, or one calculation kept the thread from looking; then the
    process has used the CPU. 600 s with 0.2 s of CPU time count as 1 s, 3 s with 3 s as 3 s.
    """
    return min(wall_s, max(_LONGEST_GAP_S, cpu_s))


def _now() -> tuple[float, float]:
    """(wall, CPU of all threads) seconds."""
    return time.perf_counter(), time.process_time()
