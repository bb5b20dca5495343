"""The same work on many cases in several processes, with a progress bar."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from app.errors import FolderError
from tools.train.cases import TrainingCase

Result = TypeVar("Result")


def each_case(
    work: Callable[[TrainingCase], Result], cases: Sequence[TrainingCase], workers: int, what: str
) -> Iterator[tuple[TrainingCase, Result]]:
    """(case, result) as they get ready, with a progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=len(cases), desc=what, unit="case", disable=None) as bar:
        for case, result in _results(work, cases, min(workers, len(cases))):
            bar.update()
            yield case, result


def _results(
    work: Callable[[TrainingCase], Result], cases: Sequence[TrainingCase], workers: int
) -> Iterator[tuple[TrainingCase, Result]]:
    if workers <= 1:
        yield from ((case, work(case)) for case in cases)
        return
    with _one_thread_each(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        futures: dict[Future[Result], TrainingCase] = {executor.submit(work, case): case for case in cases}
        try:
            for future in as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise FolderError(
                "a worker was killed, probably for lack of memory; use fewer --workers. What is done is kept"
            ) from error
        finally:
            executor.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Workers that start in this block calculate with one thread: as many processes as cores are enough."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
