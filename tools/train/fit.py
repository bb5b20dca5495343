"""The training loop: epochs, log, checkpoints, validation, an exact resume."""

import ctypes
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from app.errors import AppError
from tools.train.cache import CaseCache
from tools.train.checkpoint import load_checkpoint, save_checkpoint
from tools.train.cps import consistency_weight
from tools.train.distributed import Rank
from tools.train.guards import catch_signals
from tools.train.planning import TrainPlan
from tools.train.running_time import RunningClock
from tools.train.sampling import Batch, BatchLoader
from tools.train.schedule import Schedule
from tools.train.trainer import Trainer, TrainerOptions
from tools.train.training_log import append_line, drop_later_lines
from tools.train.validation import Validation

logger = logging.getLogger(__name__)

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Limits:
    """When a training writes a checkpoint, validates and stops, apart from the plan's last epoch.

    Wall time is what ``RunningClock`` counts: while the process is stopped or the machine sleeps, it stands still.

    Attributes:
        checkpoint_minutes: wall time between checkpoints; 0 writes one after each iteration.
        validate_every: epochs between validations; 0 never.
        stop_after_minutes: wall time of this run, None without limit.
        stop_after_cpu_minutes: CPU time of this process over all of its runs, None without limit.
        stop_at_step: iteration after which it stops, None at the plan's last.
    """

    checkpoint_minutes: float = 10.0
    validate_every: int = 0
    stop_after_minutes: float | None = None
    stop_after_cpu_minutes: float | None = None
    stop_at_step: int | None = None

    def __post_init__(self) -> None:
        for name in ("stop_after_minutes", "stop_after_cpu_minutes", "stop_at_step"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name.replace('_', '-')} {value:g}: expected more than 0")


@dataclass
class Progress:
    """Where a training stands; kept in checkpoints.

    Attributes:
        step: iterations done.
        cpu_s, wall_s: spent in all runs so far; wall time without what the process was stopped for.
        sums: losses of the current epoch's iterations, added up.
    """

    step: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)


class Fit:
    """One training in one folder: ``start`` or ``resume`` it, then ``run``."""

    def __init__(
        self,
        folder: Path,
        plan: TrainPlan,
        options: TrainerOptions,
        cases: Sequence[CaseCache],
        rank: Rank,
        limits: Limits,
        validation: Validation | None = None,
        workers: int = 1,
    ) -> None:
        self._folder, self._plan, self._options, self._rank, self._limits = folder, plan, options, rank, limits
        self._cases, self._validation, self._workers = cases, validation, workers
        self._trainer = Trainer(plan, options, rank)
        self._schedule = Schedule(plan, options.supervised)
        self._progress = Progress()
        self._terminated = False
        self._waited_s = 0.0
        self._clock = RunningClock()
        self._cpu_start_s = time.process_time()

    def start(self, weights: Sequence[dict[str, torch.Tensor]] = (), sources: Sequence[str] = ()) -> None:
        """Begins a new training, which ``resume`` finds from now on.

        Args:
            weights: of other trainings, to begin with; none: random ones.
            sources: where these are from, for the log.

        Raises:
            UsageError: they do not fit the plan's network.
        """
        if weights:
            self._trainer.start_from(weights)
        self._save()
        if weights:
            self._log({"kind": "start", "start_from": list(sources), "precision": self._trainer.precision})

    def resume(self) -> None:
        """Goes on where the checkpoint stands.

        Raises:
            AppError: there is no whole checkpoint.
        """
        state = load_checkpoint(self._folder)
        self._progress = Progress(**state["progress"])
        self._trainer.load_state(state["trainer"])
        self._schedule.load_state(state["schedule"], self._progress.step // self._plan.iterations_per_epoch)
        if self._rank.leads:
            drop_later_lines(self._folder, self._progress.step)

    def run(self) -> Progress:
        """Trains until the plan's end or a limit; a checkpoint stands at the end either way.

        SIGTERM and Ctrl-C end the current iteration, write a checkpoint and return.
        """
        last = self._plan.epochs * self._plan.iterations_per_epoch
        if self._limits.stop_at_step is not None:
            last = min(last, self._limits.stop_at_step)
        if self._rank.leads:
            logger.info("training in %s on %s", self._trainer.precision, self._rank.device)
        with self._clock, catch_signals(self._terminate), self._loaders() as loaders, self._bar(last) as bar:
            saved_s = self._clock.elapsed_s()
            while self._progress.step < last and not self._rank.any_of(self._terminated or self._time_is_up()):
                self._iterate(*loaders, bar)
                if self._clock.elapsed_s() - saved_s >= self._limits.checkpoint_minutes * 60:
                    self._save()
                    saved_s = self._clock.elapsed_s()
            self._save()
        return self._progress

    def _iterate(self, labelled: BatchLoader, unlabelled: BatchLoader | None, bar: "tqdm[Any]") -> None:
        step, plan = self._progress.step, self._plan
        weight = consistency_weight(step / plan.iterations_per_epoch, plan.ramp_up_epochs, plan.consistency_weight)
        batches = self._next_batches(labelled, unlabelled)
        try:
            numbers = self._trainer.step(*batches, weight, self._schedule.rate)
        except FloatingPointError as error:
            raise AppError(
                f"{self._folder}: {error} in iteration {step + 1}; the training diverged. Start again with a lower "
                "learning_rate"
            ) from error
        for name, value in numbers.items():
            self._progress.sums[name] = self._progress.sums.get(name, 0.0) + value
        self._progress.step += 1
        bar.update()
        bar.set_postfix(loss=f"{numbers['supervised']:.3f}", weight=f"{weight:.2f}", lr=f"{self._trainer.rate:.1e}")
        if self._progress.step % plan.iterations_per_epoch == 0:
            self._finish_epoch(step // plan.iterations_per_epoch, weight)

    def _next_batches(self, labelled: BatchLoader, unlabelled: BatchLoader | None) -> tuple[Batch, Batch | None]:
        """Nothing has begun with the iteration yet: if they cannot be had, the iterations before it are kept."""
        start_s = self._clock.elapsed_s()
        try:
            batches = next(labelled), None if unlabelled is None else next(unlabelled)
        except Exception:
            self._save()
            raise
        self._waited_s += self._clock.elapsed_s() - start_s
        return batches

    def _finish_epoch(self, epoch: int, weight: float) -> None:
        means = {name: total / self._plan.iterations_per_epoch for name, total in self._progress.sums.items()}
        self._progress.sums = {}
        self._schedule.finish_epoch(epoch, means["supervised"])
        entry = {"kind": "epoch", "epoch": epoch, "losses": means, "waited_for_data_s": round(self._waited_s, 3)}
        self._waited_s = 0.0
        self._log({**entry, "consistency_weight": weight, "learning_rate": self._trainer.rate})
        every = self._limits.validate_every
        if self._validation and every and (epoch + 1) % every == 0:
            network = (self._trainer.averages or self._trainer.networks)[0]
            self._log({"kind": "validation", "epoch": epoch, **self._validation.score(network, self._rank)})

    def _log(self, entry: dict[str, Any]) -> None:
        if not self._rank.leads:
            return
        wall_s, cpu_s = self._spent()
        line = {"step": self._progress.step, "wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), **entry}
        append_line(self._folder, line)
        logger.info("%s", line)

    @contextmanager
    def _loaders(self) -> Iterator[tuple[BatchLoader, BatchLoader | None]]:
        def open_loader(labelled: bool, seed: int) -> BatchLoader:
            return BatchLoader(
                self._cases, self._plan, labelled, seed, self._progress.step, self._workers,
                self._rank.rank, self._rank.world_size,
            )  # fmt: skip

        labelled = open_loader(True, self._options.seed * 2)
        unlabelled = None if self._options.supervised else open_loader(False, self._options.seed * 2 + 1)
        try:
            yield labelled, unlabelled
        finally:
            labelled.close()
            if unlabelled:
                unlabelled.close()

    def _bar(self, last: int) -> "tqdm[Any]":
        return tqdm(total=last, initial=self._progress.step, unit="it", desc="training", disable=not self._rank.leads)

    def _terminate(self) -> None:
        self._terminated = True

    def _time_is_up(self) -> bool:
        wall_s, cpu_s = self._clock.elapsed_s(), self._spent()[1]
        over_wall = self._limits.stop_after_minutes is not None and wall_s >= self._limits.stop_after_minutes * 60
        over_cpu = self._limits.stop_after_cpu_minutes is not None and cpu_s >= self._limits.stop_after_cpu_minutes * 60
        return over_wall or over_cpu

    def _spent(self) -> tuple[float, float]:
        """(wall, CPU) seconds over all runs."""
        wall_s = self._progress.wall_s + self._clock.elapsed_s()
        return wall_s, self._progress.cpu_s + time.process_time() - self._cpu_start_s

    def _save(self) -> None:
        if not self._rank.leads:
            return
        wall_s, cpu_s = self._spent()
        progress = {"step": self._progress.step, "wall_s": wall_s, "cpu_s": cpu_s, "sums": self._progress.sums}
        state = {"trainer": self._trainer.state(), "schedule": self._schedule.state(), "progress": progress}
        save_checkpoint(self._folder, state)


def tune_process(threads: int | None) -> None:
    """Sets the threads of one PyTorch operation (None: the number of cores) and keeps freed memory for the next step.

    glibc gives large blocks back to the system at once and gets them again with a page fault every 4 KiB: a step of
    compact-3d took 9.6 s with that and 5.5 s without (medians, EPYC with bf16, two cores).
    """
    if threads:
        torch.set_num_threads(threads)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 256 << 20)
