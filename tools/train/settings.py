"""What a training's folder says about it beside its plan: ``options.json``, written once, read by ``resume``."""

import json
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from app.atomic_files import write_text
from app.errors import AppError, UsageError
from app.json_values import build_value
from tools.train.checkpoint import CHECKPOINT_FILE
from tools.train.planning import PLAN_FILE, TrainPlan, write_train_plan
from tools.train.trainer import TrainerOptions
from tools.train.training_log import LOG_FILE

OPTIONS_FILE = "options.json"


@dataclass(frozen=True)
class RunOptions:
    """How a run of a training goes about it; ``resume`` does as the run before unless it is told otherwise.

    Attributes:
        device: where networks are trained.
        workers: processes that prepare batches, per loader; 0 prepares them in between.
        threads: of one PyTorch operation; None: the number of cores.
        checkpoint_minutes: wall time between checkpoints; 0 writes one after each iteration.
        validate_every: epochs between validations; 0 never.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    workers: int = 1
    threads: int | None = None
    checkpoint_minutes: float = 10.0
    validate_every: int = 0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: expected 0 (batches are made in between) or more")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads {self.threads}: expected 1 or more")
        if not 0 <= self.checkpoint_minutes < inf:
            raise ValueError(f"--checkpoint-minutes {self.checkpoint_minutes:g}: expected 0 or more")
        if self.validate_every < 0:
            raise ValueError(f"--validate-every {self.validate_every}: expected 0 (never) or more")


@dataclass(frozen=True)
class Settings:
    """Everything about a training that its plan does not say.

    Attributes:
        trainer: how the networks learn.
        cache: folder that ``prepare`` wrote.
        data: folders with the scans to validate on; none: where ``prepare`` found them.
        hold_out: scans in neither set.
        world_size: processes; another number would draw other batches.
        run: of the run that started it.
        cases: those that it learns from; others that ``prepare`` adds to the cache would change what is drawn. Empty:
            of a training that is older than this entry, and learns from all.
    """

    trainer: TrainerOptions
    cache: str
    data: tuple[str, ...] = ()
    hold_out: tuple[str, ...] = ()
    world_size: int = 1
    run: RunOptions = field(default_factory=RunOptions)
    cases: tuple[str, ...] = ()


def start_folder(folder: Path, plan: TrainPlan) -> None:
    """Begins the folder of a new training, which ``guards.only_run`` has made, with its plan.

    Its checkpoint comes next and ``write_settings`` last: a folder that looks whole can be gone on with.

    Raises:
        AppError: there is a training already.
        FolderError: the folder cannot be written.
    """
    if any((folder / name).exists() for name in (OPTIONS_FILE, CHECKPOINT_FILE, LOG_FILE)):
        raise AppError(
            f"{folder}: holds a training; expected a new folder. Continue it with `tools.train resume`, or choose "
            "another folder"
        )
    write_train_plan(folder / PLAN_FILE, plan)


def write_settings(folder: Path, settings: Settings) -> None:
    """Writes ``options.json``: from now on ``resume`` goes on with the training, and no other begins in its folder.

    Raises:
        FolderError: the folder cannot be written.
    """
    write_text(folder / OPTIONS_FILE, json.dumps(asdict(settings), indent=1) + "\n")


def read_settings(folder: Path) -> Settings:
    """The options of the training in a folder.

    Raises:
        UsageError: there is none, or its options are damaged.
    """
    path = folder / OPTIONS_FILE
    try:
        settings = build_value(Settings, json.loads(path.read_text(encoding="utf-8")), "options")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); expected the options of a training") from error
    assert isinstance(settings, Settings)
    return settings
