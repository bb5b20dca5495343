"""The app in children of a server that has imported everything: 0.1 s to the first case instead of a second.

Only for faults that come in hundreds; the others start ``python -m app`` itself.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import nibabel.nifti2  # noqa: F401
import scipy.ndimage  # noqa: F401

import app.runs  # noqa: F401
from app.__main__ import main
from app.backends.openvino_cpu import import_core
from tools.hostile.processes import LONGEST_S, Done, hung

import_core()


@contextmanager
def start(arguments: Sequence[object], log: Path) -> Iterator[BaseProcess]:
    """A child that runs the app with these arguments, its stderr in ``log``; it is killed if it outlives the block."""
    log.write_bytes(b"")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=_run, args=([str(argument) for argument in arguments], log))
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def finish(child: BaseProcess, log: Path) -> Done:
    """Waits for it; one that hangs is killed, which counts as a crash."""
    since = time.monotonic()
    child.join(LONGEST_S)
    seconds = time.monotonic() - since
    if child.exitcode is not None:
        return Done(child.exitcode, log.read_text(errors="replace"), seconds)
    child.kill()
    child.join()
    return hung(log.read_text(errors="replace"), seconds)


def _run(arguments: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, sys.stderr.fileno())
    os._exit(main(arguments))
