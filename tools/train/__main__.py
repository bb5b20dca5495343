"""Command line: ``python -m tools.train prepare|fit|resume|export|pack|unpack|curves``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import UsageError
from tools.exit_codes import exit_code_of
from tools.train.arguments import build_parser

if TYPE_CHECKING:
    from tools.train.cache import CaseCache
    from tools.train.fit import Limits
    from tools.train.planning import TrainPlan
    from tools.train.settings import RunOptions, Settings
    from tools.train.trainer import TrainerOptions
    from tools.train.validation import Validation

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # blosc2 imports it, and it greets
    arguments = build_parser().parse_args(argv)
    return exit_code_of(
        lambda: _COMMANDS[arguments.command](arguments), "interrupted; prepared cases and checkpoints are kept"
    )


def _prepare(arguments: argparse.Namespace) -> int:
    from tools.train import prepare

    return prepare.run(arguments)


def _fit(arguments: argparse.Namespace) -> int:
    from tools.train.trainer import TrainerOptions

    plan = _plan(arguments)
    try:
        trainer = TrainerOptions(
            supervised=arguments.supervised,
            confidence_threshold=arguments.confidence,
            ema_decay=arguments.ema,
            precision=arguments.precision,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    settings = _settings(arguments, trainer)
    settings = replace(settings, run=_run_options(arguments, settings.run))
    return _train(arguments, plan, settings, new=True, start_from=arguments.start_from)


def _settings(arguments: argparse.Namespace, trainer: "TrainerOptions") -> "Settings":
    from tools.train.settings import Settings

    return Settings(
        trainer,
        cache=str(arguments.cache.resolve()),
        data=tuple(str(folder.resolve()) for folder in arguments.data),
        hold_out=tuple(arguments.hold_out),
        world_size=_world_size(),
    )


def _resume(arguments: argparse.Namespace) -> int:
    from tools.train.planning import PLAN_FILE, read_train_plan
    from tools.train.settings import read_settings

    plan = read_train_plan(arguments.out / PLAN_FILE)
    settings = read_settings(arguments.out)
    if arguments.precision != "auto":
        settings = replace(settings, trainer=replace(settings.trainer, precision=arguments.precision))
    return _train(arguments, plan, replace(settings, run=_run_options(arguments, settings.run)), new=False)


def _run_options(arguments: argparse.Namespace, before: "RunOptions") -> "RunOptions":
    """What the command line says, else what it was before."""
    given = {key: value for key in asdict(before) if (value := getattr(arguments, key)) is not None}
    try:
        return replace(before, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _train(
    arguments: argparse.Namespace, plan: "TrainPlan", settings: "Settings", new: bool, start_from: Sequence[str] = ()
) -> int:
    """Checks everything, then trains; a new training's folder is made in between."""
    from tools.train.distributed import join_ranks
    from tools.train.fit import Fit, tune_process
    from tools.train.guards import only_run
    from tools.train.handover import trained_networks
    from tools.train.sampling import choose_cases
    from tools.train.settings import start_folder, write_settings

    _check_world_size(settings.world_size)
    limits = _limits(arguments, settings.run)
    cases = _cases(settings, plan)
    for labelled in (True,) if settings.trainer.supervised else (True, False):
        choose_cases(cases, plan, labelled)
    validation = _validation(settings, plan) if settings.run.validate_every else None
    weights = trained_networks(start_from)
    tune_process(settings.run.threads)
    with join_ranks(settings.run.device) as rank, only_run(arguments.out) if rank.leads else nullcontext():
        if new and rank.leads:
            start_folder(arguments.out, plan)
        fit = Fit(arguments.out, plan, settings.trainer, cases, rank, limits, validation, settings.run.workers)
        if new:
            fit.start(weights, start_from)
        else:
            fit.resume()
        if new and rank.leads:
            write_settings(arguments.out, replace(settings, cases=tuple(case.case_id for case in cases)))
        progress = fit.run()
    last = plan.epochs * plan.iterations_per_epoch
    more = "" if progress.step >= last else f"; go on with: python -m tools.train resume {arguments.out}"
    print(f"{arguments.out}: {progress.step} of {last} iterations done{more}", file=sys.stderr)
    return 0


def _cases(settings: "Settings", plan: "TrainPlan") -> list["CaseCache"]:
    """The prepared cases to learn from: of a training that is gone on with those that it began with."""
    from tools.train.cache import open_cache

    found = open_cache(Path(settings.cache), settings.hold_out, plan.app)
    if not settings.cases:
        return found
    by_id = {case.case_id: case for case in found}
    if missing := [case_id for case_id in settings.cases if case_id not in by_id]:
        raise UsageError(
            f"{settings.cache}: lacks {', '.join(missing)}, from which this training learns, so that it would draw "
            "other batches; prepare them again"
        )
    if more := len(found) - len(settings.cases):
        logger.warning("%s: %d cases are left out, which were not there when the training began", settings.cache, more)
    return [by_id[case_id] for case_id in settings.cases]


def _limits(arguments: argparse.Namespace, run: "RunOptions") -> "Limits":
    from tools.train.fit import Limits

    stops = (arguments.stop_after_minutes, arguments.stop_after_cpu_minutes, arguments.stop_at_step)
    try:
        return Limits(run.checkpoint_minutes, run.validate_every, *stops)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_world_size(expected: int) -> None:
    if expected != _world_size():
        start = f"torchrun --nproc-per-node {expected} -m tools.train" if expected > 1 else "python -m tools.train"
        raise UsageError(
            f"this training has {expected} processes, found {_world_size()}; start it with: {start} resume"
        )


def _validation(settings: "Settings", plan: "TrainPlan") -> "Validation":
    """The held-out scans that are labelled."""
    from tools.train.cache import open_cache
    from tools.train.validation import Validation, cases_to_validate

    held_out = [case for case in open_cache(Path(settings.cache)) if case.case_id in settings.hold_out]
    cases = cases_to_validate(held_out, [Path(folder) for folder in settings.data])
    if not cases:
        raise UsageError("--validate-every: nothing to validate on; expected labelled scans with --hold-out")
    return Validation(cases, plan.app)


def _export(arguments: argparse.Namespace) -> int:
    from tools.train.export import export_bundle

    name = arguments.name or arguments.bundle.name
    export_bundle(
        arguments.out, arguments.bundle, name, arguments.network, arguments.raw, arguments.twin, arguments.set
    )
    print(f"{arguments.bundle} written; prove it with: python -m tools.convert verify {arguments.bundle}")
    return 0


def _pack(arguments: argparse.Namespace) -> int:
    from tools.train.handover import pack

    pack(arguments.out, arguments.file)
    print(f"{arguments.file} written, {arguments.file.stat().st_size / 1e6:.1f} MB")
    return 0


def _unpack(arguments: argparse.Namespace) -> int:
    from tools.train.handover import unpack
    from tools.train.trainer import TrainerOptions

    unpack(arguments.file, arguments.out, _settings(arguments, TrainerOptions()))
    print(f"{arguments.out} written; go on with: python -m tools.train resume {arguments.out}")
    return 0


def _curves(arguments: argparse.Namespace) -> int:
    from tools.train.curves import draw_curves

    print(draw_curves(arguments.out))
    return 0


def _plan(arguments: argparse.Namespace) -> "TrainPlan":
    """The cache's plan, a preset or a file, with the values that --set changes."""
    from tools.train.planning import changed, read_train_plan
    from tools.train.prepare import plan_of_cache

    plan = read_train_plan(arguments.plan) if arguments.plan else plan_of_cache(arguments.cache, arguments.preset)
    return changed(plan, arguments.set)


def _world_size() -> int:
    """Processes of this training: 1, or what torchrun started."""
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


_COMMANDS = {
    "prepare": _prepare,
    "fit": _fit,
    "resume": _resume,
    "export": _export,
    "pack": _pack,
    "unpack": _unpack,
    "curves": _curves,
}

if __name__ == "__main__":
    sys.exit(main())
