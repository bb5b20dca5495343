"""Ending early: Ctrl-C and SIGTERM alike stop the run at once, once, and in order."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLEAN_UP_S = 5.0  # clean-up takes a tenth of a second


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first SIGINT or SIGTERM is a KeyboardInterrupt, and later ones are ignored for five seconds.

    As process 1 of a container Python would not see SIGTERM at all. A second signal, which impatient users and
    supervisors send, must not cut short the clean-up that the first one began. One that comes long after it means that
    the first was lost, as an exception in a destructor is, and counts again. A signal that the process was started
    without (``nohup``, a job in a script's background) stays ignored. Only the main thread can ask for signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    interrupt = _Interrupt()
    for number in caught:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number] or signal.SIG_DFL)


class _Interrupt:
    """Raises KeyboardInterrupt, but not while an earlier one is being dealt with."""

    def __init__(self) -> None:
        self._quiet_until_s = 0.0

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + _CLEAN_UP_S
            raise KeyboardInterrupt
