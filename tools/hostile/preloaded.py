"""The app in children of a server that has imported everything: 0.1 s to the first case instead of a second.

Only for faults that come in hundreds; the others start ``python -m app`` itself.
"""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import nibabel.nifti2  # noqa: F401
import scipy.ndimage  # noqa: F401

import app.runs  # noqa: F401
from app.__main__ import main
from app.backends.openvino_cpu import _import_core

_import_core()


def start(arguments: Sequence[object], log: Path) -> BaseProcess:
    """A child that runs the app with these arguments and ends with its exit code; stderr goes to ``log``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=_run, args=([str(argument) for argument in arguments], log))
    child.start()
    return child


def _run(arguments: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, sys.stderr.fileno())
    os._exit(main(arguments))
