"""Command line: ``python -m tools.train prepare|fit|resume|export|pack|unpack|curves``."""

import argparse
import json
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app.errors import AppError, UsageError

_EPILOG = """\
a whole training, from a data folder to label maps:
  python -m tools.train prepare --data DIR --preset compact-3d --out cache
  python -m tools.train fit     --cache cache --out runs/first --data DIR --hold-out ID ID
  python -m tools.train resume  runs/first
  python -m tools.train export  runs/first weights/mine
  python -m tools.train pack    runs/first siblings.safetensors    to go on with elsewhere, or on other scans: unpack
  python -m app --bundle weights/mine --input-dir scans --output-dir labels

several GPUs: torchrun --nproc-per-node 8 -m tools.train fit --device cuda ...
tools/train/README.md says how to reproduce the paper.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from tools.train import prepare
    from tools.train.presets import PRESETS

    parser = argparse.ArgumentParser(
        prog="python -m tools.train",
        description="Trains the paper's networks with Cross-Pseudo Supervision.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepare.add_arguments(commands.add_parser("prepare", help="check, resample and cache scans"))
    fit = commands.add_parser("fit", help="start a training")
    fit.add_argument("--out", type=Path, required=True, help="folder of the training; must be new")
    plans = fit.add_mutually_exclusive_group()
    plans.add_argument(
        "--preset", choices=PRESETS, help="a preset for the cache's data (default: the cache's own plan)"
    )
    plans.add_argument("--plan", type=Path, help="a train_plan.json")
    fit.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the plan, such as epochs=100"
    )
    fit.add_argument("--supervised", action="store_true", help="the baseline: one network, labelled data only")
    fit.add_argument(
        "--confidence", type=float, default=0.0, metavar="P", help="leave out pseudo labels less certain than P"
    )
    fit.add_argument(
        "--ema", type=float, default=0.0, metavar="DECAY", help="keep running means of the networks, 0.999 say"
    )
    fit.add_argument("--seed", type=int, default=0)
    _add_data_arguments(fit)
    _add_run_arguments(fit)
    resume = commands.add_parser("resume", help="continue a training exactly where its checkpoint stands")
    resume.add_argument("out", type=Path, metavar="RUN")
    _add_run_arguments(resume)
    export = commands.add_parser("export", help="write a bundle")
    export.add_argument("out", type=Path, metavar="RUN")
    export.add_argument("bundle", type=Path, metavar="BUNDLE")
    export.add_argument("--name", help="name in the plan (default: the bundle folder's)")
    export.add_argument(
        "--network",
        choices=("1", "2", "both"),
        default="1",
        help="1 as the paper (default); both: mean of their logits",
    )
    export.add_argument("--ema", action="store_true", help="the running means of the weights (fit --ema)")
    pack = commands.add_parser("pack", help="write both networks, in half precision, to go on with elsewhere")
    pack.add_argument("out", type=Path, metavar="RUN")
    pack.add_argument("file", type=Path, metavar="FILE")
    unpack = commands.add_parser("unpack", help="make a training of a packed file; resume then goes on with it")
    unpack.add_argument("file", type=Path, metavar="FILE")
    unpack.add_argument("--out", type=Path, required=True, help="folder of the training; must be new")
    _add_data_arguments(unpack)
    curves = commands.add_parser("curves", help="draw the log")
    curves.add_argument("out", type=Path, metavar="RUN")
    return parser


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What a training learns from."""
    parser.add_argument("--cache", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument("--data", type=Path, help="the data folder; needed to validate on whole scans")
    parser.add_argument(
        "--hold-out", nargs="+", default=[], metavar="ID", help="scans kept out of both sets; validated on if labelled"
    )


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What may differ between the runs of one training."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that prepare batches, per loader (default: 1)"
    )
    parser.add_argument("--threads", type=int, help="threads of one PyTorch operation")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, metavar="M")
    parser.add_argument("--validate-every", type=int, default=0, metavar="EPOCHS", help="0: never (default)")
    parser.add_argument("--stop-after-minutes", type=float, metavar="M", help="stop this run; resume goes on")
    parser.add_argument("--stop-after-cpu-minutes", type=float, metavar="M", help="CPU time of all runs together")
    parser.add_argument("--stop-at-step", type=int, metavar="N", help="stop after iteration N")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # blosc2 imports it, and it greets
    arguments = build_parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments)
    except AppError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _prepare(arguments: argparse.Namespace) -> int:
    from tools.train import prepare

    return prepare.run(arguments)


def _fit(arguments: argparse.Namespace) -> int:
    from tools.train.fit import start_folder
    from tools.train.trainer import TrainerOptions

    plan = _plan(arguments)
    try:
        options = TrainerOptions(
            supervised=arguments.supervised,
            confidence_threshold=arguments.confidence,
            ema_decay=arguments.ema,
            precision=arguments.precision,
            seed=arguments.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    settings = _settings(arguments)
    if _leads():
        start_folder(arguments.out, plan, options, settings)
    return _train(arguments, plan, options, settings)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "cache": str(arguments.cache.resolve()),
        "data": str(arguments.data.resolve()) if arguments.data else None,
        "hold_out": arguments.hold_out,
        "world_size": _world_size(),
    }


def _resume(arguments: argparse.Namespace) -> int:
    from tools.train.fit import OPTIONS_FILE, PLAN_FILE
    from tools.train.planning import read_train_plan
    from tools.train.trainer import TrainerOptions

    plan = read_train_plan(arguments.out / PLAN_FILE)
    try:
        settings = json.loads((arguments.out / OPTIONS_FILE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{arguments.out / OPTIONS_FILE}: cannot be read ({error}); expected a training") from error
    options = TrainerOptions(**settings.pop("trainer"))
    if arguments.precision != "auto":
        options = replace(options, precision=arguments.precision)
    return _train(arguments, plan, options, settings)


def _train(arguments: argparse.Namespace, plan: Any, options: Any, settings: dict[str, Any]) -> int:
    from tools.train.cache import open_cache
    from tools.train.cases import find_training_cases
    from tools.train.distributed import join_ranks
    from tools.train.fit import Fit, Limits, tune_process
    from tools.train.validation import Validation

    tune_process(arguments.threads)
    if settings["world_size"] != _world_size():
        count = settings["world_size"]
        start = f"torchrun --nproc-per-node {count} -m tools.train" if count > 1 else "python -m tools.train"
        raise UsageError(f"this training has {count} processes, found {_world_size()}; start it with: {start} resume")
    held_out = set(settings["hold_out"])
    if arguments.validate_every and not (settings["data"] and held_out):
        raise UsageError("--validate-every: nothing to validate on; the training needs --data and --hold-out")
    cases = open_cache(Path(settings["cache"]), held_out, plan.app)
    validation = None
    if settings["data"]:
        labelled = [case for case in find_training_cases(Path(settings["data"])) if case.label_path is not None]
        validation = Validation([case for case in labelled if case.case_id in held_out], plan.app)
    limits = Limits(
        arguments.checkpoint_minutes,
        arguments.validate_every,
        arguments.stop_after_minutes,
        arguments.stop_after_cpu_minutes,
        arguments.stop_at_step,
    )
    with join_ranks(arguments.device) as rank:
        progress = Fit(arguments.out, plan, options, cases, rank, limits, validation, arguments.workers).run()
    last = plan.epochs * plan.iterations_per_epoch
    more = "" if progress.step >= last else f"; go on with: python -m tools.train resume {arguments.out}"
    print(f"{arguments.out}: {progress.step} of {last} iterations done{more}", file=sys.stderr)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from tools.train.export import export_bundle

    export_bundle(
        arguments.out, arguments.bundle, arguments.name or arguments.bundle.name, arguments.network, arguments.ema
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

    unpack(arguments.file, arguments.out, _settings(arguments))
    print(f"{arguments.out} written; go on with: python -m tools.train resume {arguments.out}")
    return 0


def _curves(arguments: argparse.Namespace) -> int:
    from tools.train.curves import draw_curves

    print(draw_curves(arguments.out))
    return 0


def _plan(arguments: argparse.Namespace) -> Any:
    """The cache's plan, a preset or a file, with the values that --set changes."""
    from tools.train.planning import parse_train_plan, read_train_plan
    from tools.train.prepare import plan_of_cache

    plan = read_train_plan(arguments.plan) if arguments.plan else plan_of_cache(arguments.cache, arguments.preset)
    if not arguments.set:
        return plan
    values = asdict(plan)
    for change in arguments.set:
        key, separator, text = change.partition("=")
        if not separator or key not in values:
            raise UsageError(f"--set {change}: expected KEY=VALUE with a key of the plan: {', '.join(sorted(values))}")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return parse_train_plan(json.dumps(values), "--set")


def _world_size() -> int:
    """Processes of this training: 1, or what torchrun started."""
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


def _leads() -> bool:
    """Whether this is the process that makes the folder (the only one, or rank 0 of torchrun)."""
    import os

    return int(os.environ.get("RANK", "0")) == 0


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
