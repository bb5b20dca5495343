"""Results prepared ahead of time in worker processes, handed out in order.

Processes, not threads: the augmentation library draws from process-wide generators. Results travel through pipes, so
nothing lies in /dev/shm, which a container may limit to 64 MB.
"""

import atexit
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import Empty, Queue
from typing import Any, Generic, TypeVar

from app.errors import AppError

Result = TypeVar("Result")
Make = Callable[[int], Result]

_AHEAD = 2  # results that wait in this process; each worker holds one more


class Background(Generic[Result]):
    """Iterator over ``make(first)``, ``make(first + 1)``, ...; an error in a worker is raised where its turn comes.

    The workers are spawned (no copies of threads or of CUDA), calculate number ``n`` on worker ``n % workers``, do not
    see Ctrl-C, ignore SIGTERM, which a scheduler sends to all processes of a job, and end with this process, however
    it ends.

    Args:
        start: called once in each worker; gives ``make``. Has to be picklable, and so have the results.
        first: number of the first result.
        workers: processes, at least one.
    """

    def __init__(self, start: Callable[[], Make[Result]], first: int, workers: int) -> None:
        context = get_context("spawn")
        self.waited_s = 0.0
        self._ready: Queue[tuple[bool, Any]] = Queue(_AHEAD)
        self._closing = threading.Event()
        self._connections: list[Connection] = []
        self._processes = []
        for index in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(start, first + index, workers, sender), daemon=True, name=f"prepare-{index}"
            )
            process.start()
            sender.close()  # so that the receiver sees the end when the worker ends
            self._connections.append(receiver)
            self._processes.append(process)
        self._thread = threading.Thread(target=self._collect, daemon=True, name="collect")
        self._thread.start()
        atexit.register(self.close)  # else multiprocessing would send SIGTERM at the exit and wait for ever

    def __iter__(self) -> "Background[Result]":
        return self

    def __next__(self) -> Result:
        if self._closing.is_set():
            raise ValueError("closed")
        start = time.perf_counter()
        succeeded, result = self._ready.get()
        self.waited_s += time.perf_counter() - start
        if not succeeded:
            self.close()
            raise result
        value: Result = result
        return value

    def close(self) -> None:
        """Ends the workers; may be called again."""
        if self._closing.is_set():
            return
        self._closing.set()
        atexit.unregister(self.close)
        for process in self._processes:
            process.kill()
        while self._thread.is_alive():  # it may stand before a full queue
            with suppress(Empty):
                self._ready.get_nowait()
            self._thread.join(timeout=0.01)
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join()
            process.close()
            connection.close()

    def _collect(self) -> None:
        """Takes the results from the workers in turn until there is an error or the end."""
        turn = 0
        succeeded = True
        while succeeded and not self._closing.is_set():
            try:
                succeeded, result = self._connections[turn].recv()
            except (EOFError, OSError):
                succeeded, result = False, self._describe_end(turn)
            except Exception as error:  # noqa: BLE001 - raised again by next, which waits for this thread
                succeeded, result = False, error
            self._ready.put((succeeded, result))
            turn = (turn + 1) % len(self._connections)

    def _describe_end(self, turn: int) -> AppError:
        process = self._processes[turn]
        if not self._closing.is_set():
            process.join(timeout=5)
        return AppError(
            f"a process that prepares batches ended (exit code {process.exitcode}); expected it to last as long as "
            "the training. -9 is often a lack of memory: use fewer --workers"
        )


def _work(start: Callable[[], Make[Any]], number: int, step: int, sender: Connection) -> None:
    """A worker: sends (True, result) after (True, result), or (False, error) and ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setpgid(0, 0)  # Ctrl-C in a terminal goes to the foreground group: this process's parent decides what it means
    with suppress(BrokenPipeError):  # the parent has gone
        try:
            make = start()
            while True:
                sender.send((True, make(number)))
                number += step
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - raised again in the parent
            sender.send((False, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, or one with the same text if it cannot travel."""
    note = "in a worker:\n" + "".join(traceback.format_exception(error)).rstrip()
    try:
        portable = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:  # noqa: BLE001 - whatever a foreign class does when it is pickled
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    assert isinstance(portable, Exception)
    portable.add_note(note)
    return portable
