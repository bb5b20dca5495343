"""The arguments of ``python -m tools.train``."""

import argparse
from pathlib import Path

from tools.train import prepare
from tools.train.presets import PRESETS

_EPILOG = """\
a whole training, from a data folder to label maps:
  python -m tools.train prepare --data DIR --preset compact-3d --out cache
  python -m tools.train fit     --cache cache --out runs/first --hold-out ID ID --validate-every 10
  python -m tools.train resume  runs/first
  python -m tools.train export  runs/first weights/mine
  python -m tools.train pack    runs/first siblings.safetensors    to go on with elsewhere, or on other scans: unpack
  python -m app --bundle weights/mine --input-dir scans --output-dir labels

several GPUs: torchrun --nproc-per-node 8 -m tools.train fit --device cuda ...
tools/train/README.md says how to reproduce the paper.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.train",
        description="Trains the paper's networks with Cross-Pseudo Supervision.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepare.add_arguments(commands.add_parser("prepare", help="check, resample and cache scans"))
    _add_fit_arguments(commands.add_parser("fit", help="start a training"))
    resume = commands.add_parser(
        "resume",
        help="continue a training exactly where its checkpoint stands",
        description="Continues a training exactly where its checkpoint stands. Device, workers, threads, minutes "
        "between checkpoints and epochs between validations are those that fit was given, unless given here (the "
        "defaults below are fit's).",
    )
    resume.add_argument("out", type=Path, metavar="RUN")
    _add_run_arguments(resume)
    _add_export_arguments(commands.add_parser("export", help="write a bundle"))
    pack = commands.add_parser("pack", help="write both networks, in half precision, to go on with elsewhere")
    pack.add_argument("out", type=Path, metavar="RUN")
    pack.add_argument("file", type=Path, metavar="FILE")
    unpack = commands.add_parser(
        "unpack", help="make a training of a packed file (prepare --plan FILE makes its cache); resume goes on with it"
    )
    unpack.add_argument("file", type=Path, metavar="FILE")
    unpack.add_argument("--out", type=Path, required=True, help="folder of the training; must be new")
    _add_data_arguments(unpack)
    curves = commands.add_parser("curves", help="draw the log")
    curves.add_argument("out", type=Path, metavar="RUN")
    return parser


def _add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """What makes a training."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the training; must be new")
    plans = parser.add_mutually_exclusive_group()
    plans.add_argument(
        "--preset", choices=PRESETS, help="a preset for the cache's data (default: the cache's own plan)"
    )
    plans.add_argument("--plan", type=Path, help="a train_plan.json, or a packed training whose plan to take")
    _add_set(parser)
    parser.add_argument("--supervised", action="store_true", help="the baseline: one network, labelled data only")
    parser.add_argument(
        "--confidence", type=float, default=0.0, metavar="P", help="leave out pseudo labels less certain than P"
    )
    parser.add_argument(
        "--ema", type=float, default=0.0, metavar="DECAY", help="keep running means of the networks, 0.999 say"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start-from",
        nargs="+",
        default=[],
        metavar="TRAINING",
        help="begin with the networks of other trainings (folders or packed files, in this order; TRAINING:2 is its "
        "second network alone) instead of random ones; a sibling for which none is left is random",
    )
    _add_data_arguments(parser)
    _add_run_arguments(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the plan, such as epochs=100, augmentation.dose_probability=0.2 or "
        "app.spacing.enforce=header",
    )


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Which of a training's networks a bundle gets."""
    parser.add_argument("out", type=Path, metavar="RUN")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--name", help="name in the plan (default: the bundle folder's)")
    parser.add_argument(
        "--network",
        choices=("1", "2", "both"),
        default="1",
        help="1 as the paper (default); both: mean of their logits",
    )
    parser.add_argument(
        "--twin",
        action="store_true",
        help="write the other sibling too: `python -m app --uncertainty` then says on which organs they differ",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="the weights themselves; default: their running means where the training keeps them (fit --ema), since "
        "validation scores these",
    )
    _add_set(parser)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What a training learns from."""
    parser.add_argument("--cache", type=Path, required=True, help="folder that prepare wrote")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders with the scans to validate on (default: where prepare found them)",
    )
    parser.add_argument(
        "--hold-out", nargs="+", default=[], metavar="ID", help="scans kept out of both sets; validated on if labelled"
    )


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What may differ between the runs of one training; see ``settings.RunOptions`` for those without a default."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: cpu)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--workers", type=int, help="processes that prepare batches, per loader (default: 1)")
    parser.add_argument("--threads", type=int, help="threads of one PyTorch operation (default: the number of cores)")
    parser.add_argument("--checkpoint-minutes", type=float, metavar="M", help="(default: 10)")
    parser.add_argument("--validate-every", type=int, metavar="EPOCHS", help="0: never (default)")
    parser.add_argument("--stop-after-minutes", type=float, metavar="M", help="stop this run; resume goes on")
    parser.add_argument("--stop-after-cpu-minutes", type=float, metavar="M", help="CPU time of all runs together")
    parser.add_argument("--stop-at-step", type=int, metavar="N", help="stop after iteration N")
