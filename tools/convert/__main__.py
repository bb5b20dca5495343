"""Command line: ``python -m tools.convert nnunet-v1|nnunet-v2|onnx|shortcuts|postprocessing|twin|hashes|verify``."""

import argparse
import sys
from pathlib import Path

from app.bundle import HASH_FILE, load_bundle
from app.errors import UsageError
from tools.exit_codes import exit_code_of

_EPILOG = """\
examples:
  python -m tools.convert nnunet-v1 RESULTS/3d_fullres/TASK/nnUNetTrainerV2__nnUNetPlansv2.1 --out weights/mine
  python -m tools.convert nnunet-v2 RESULTS/DATASET/nnUNetTrainer__nnUNetPlans__3d_fullres --out weights/mine
  python -m tools.convert verify weights/mine --scan scan.nii.gz    do all runtimes agree with PyTorch on it?
  python -m tools.convert onnx weights/mine          write both ONNX files anew from network.safetensors
  python -m tools.convert hashes weights/mine        after plan.json or MODEL_CARD.md was edited
then: python -m app --bundle weights/mine --input-dir scans --output-dir labels

exit codes: 0 done, 1 verify found a difference beyond its limits, 2 wrong use, 3 --out holds something else,
4 the model is incomplete, is refused, or names code in a pickle (which is not run), 130 interrupted
"""

_V1_TEXT = """\
Imports one fold of an nnU-Net v1 model: 3d_fullres, 3d_lowres or 2d.

MODEL_DIR is the folder that nnU-Net calls TRAINER__PLANS. It holds
  fold_0/model_final_checkpoint.model      the weights; a 3D-CPS checkpoint has two networks, the first is taken
  fold_0/model_final_checkpoint.model.pkl  trainer and plans: spacing, intensities, patch, transposes
  postprocessing.json                      optional
  dataset.json                             optional, copy it there: the names of the labels
"""

_V2_TEXT = """\
Imports one fold of an nnU-Net v2 model: 3d_fullres, 3d_lowres or 2d, plain or residual-encoder U-Net.

MODEL_DIR is the folder that nnU-Net calls TRAINER__PLANS__CONFIGURATION. It holds
  plans.json, dataset.json
  fold_0/checkpoint_final.pth              the weights, which configuration, which axes were mirrored
  crossval_results_folds_*/                optional, the post-processing that was found
A network that app/network.py cannot build is written as network.onnx alone; the torch backend then does not run it.
"""

_IMPORT_EPILOG = """\
Every fact of inference goes into plan.json, where you can read it. What a bundle cannot say is refused and named:
cascades, region-based labels, several channels or folds, other normalisations, resamplings or trainers.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert",
        description="Makes bundles of nnU-Net's models, and proves that all runtimes agree on a bundle.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_import(commands, "nnunet-v1", "an nnU-Net v1 model -> a bundle", _V1_TEXT, "model_final_checkpoint")
    _add_import(commands, "nnunet-v2", "an nnU-Net v2 model -> a bundle", _V2_TEXT, "checkpoint_final.pth")
    export = commands.add_parser(
        "onnx", help="safetensors -> ONNX (opset 17, fixed shape), in fp32 and for GPUs in fp16"
    )
    export.add_argument("bundle", type=Path, metavar="BUNDLE")
    shortcuts = commands.add_parser(
        "shortcuts",
        help="what the app leaves out of a scan with this bundle: air, what is not body, what is far from the organs",
    )
    shortcuts.add_argument("bundle", type=Path, metavar="BUNDLE")
    shortcuts.add_argument("--crop", choices=("none", "body", "organs"), help="the box that is segmented")
    shortcuts.add_argument("--margin", type=float, metavar="MM", help="around the organs")
    shortcuts.add_argument("--least", type=float, metavar="ML", help="less than this of organs is not believed")
    shortcuts.add_argument("--locator", type=Path, metavar="BUNDLE2", help="coarse network that finds them; is copied")
    shortcuts.add_argument(
        "--skip-air", action=argparse.BooleanOptionalAction, help="calculate windows of air once (same label map)"
    )
    cleaning = commands.add_parser(
        "postprocessing",
        help="find out of which organs only the largest component, or the large ones, should stay",
        description="Compares label maps of patients that the network has not learnt from with references, with all "
        "components of an organ and with its largest one, and writes into the bundle which organs gain while no "
        "patient loses. Make the label maps with the bundle while its postprocessing.largest_component is empty.",
    )
    cleaning.add_argument("bundle", type=Path, metavar="BUNDLE")
    cleaning.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="X.nii.gz")
    cleaning.add_argument("--references", type=Path, required=True, metavar="DIR", help="X.nii.gz of the same patients")
    cleaning.add_argument(
        "--smallest-share",
        type=_share,
        default=1.0,
        metavar="PART",
        help="keep components of at least this part of the largest one's voxels, too (default: 1, the largest alone, "
        "as nnU-Net; 0.1 spares an organ that lies in two parts)",
    )
    twin = commands.add_parser("twin", help="copy a second network into a bundle, for the app's --uncertainty")
    twin.add_argument("bundle", type=Path, metavar="BUNDLE")
    twin.add_argument("source", type=Path, metavar="BUNDLE2", help="same plan, other weights: another fold, a sibling")
    hashes = commands.add_parser(
        "hashes", help="SHA256SUMS anew, after you edited plan.json or MODEL_CARD.md, also of locator and twin in it"
    )
    hashes.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify = commands.add_parser(
        "verify",
        help="compare ONNX Runtime and OpenVINO with PyTorch on patches",
        description="Runs noise, a synthetic scan and your scans, one patch each, through PyTorch (app/network.py, or "
        "nnU-Net v2's own library for a network that only network.onnx describes), ONNX Runtime and OpenVINO.",
    )
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.add_argument("--scan", type=Path, action="append", default=[], help="also compare on this scan (repeatable)")
    verify.add_argument("--random", type=int, default=2, metavar="N", help="patches of noise (default: 2)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        return exit_code_of(
            lambda: _COMMANDS.get(arguments.command, _import)(arguments),
            "interrupted; files may be missing: run it again",
        )
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed; `make setup` installs what the tools need", file=sys.stderr)
        return 4


def _add_import(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, title: str, text: str, checkpoint: str
) -> None:
    command = commands.add_parser(
        name,
        help=title,
        description=text,
        epilog=_IMPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("model", type=Path, metavar="MODEL_DIR")
    command.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to write, e.g. weights/mine")
    command.add_argument("--fold", default="0", help="0 to 4, or all (default: 0)")
    command.add_argument("--checkpoint", default=checkpoint, metavar="NAME", help="of the fold (default: %(default)s)")
    command.add_argument(
        "--tile-step-size",
        type=_part,
        default=0.5,
        metavar="S",
        help="step between windows as a part of the patch; 0.7 takes about a third of the time in 3-D (default: 0.5)",
    )
    command.add_argument(
        "--mode",
        choices=("normal", "fastest"),
        default="normal",
        help="bring back every class's map and then decide, as nnU-Net does, or decide first (v1's fastest)",
    )
    command.add_argument(
        "--half",
        action="store_true",
        help="round the weights to float16: half the size, no longer quite the same network",
    )
    command.add_argument(
        "--trainer",
        metavar="NAME",
        help="for a trainer of your own: the one of nnU-Net's that it inherits network and mirroring from",
    )
    command.add_argument(
        "--no-postprocessing", action="store_true", help="do not import the model's post-processing of components"
    )


def _import(arguments: argparse.Namespace) -> int:
    from tools.convert import nnunet_v1, nnunet_v2
    from tools.convert.importing import import_model, summary
    from tools.convert.model_folder import Request

    reader = nnunet_v1.read_model if arguments.command == "nnunet-v1" else nnunet_v2.read_model
    request = Request(
        model=arguments.model,
        fold=arguments.fold,
        checkpoint=arguments.checkpoint,
        name=arguments.out.resolve().name,
        mode=arguments.mode,
        tile_step_size=arguments.tile_step_size,
        trainer=arguments.trainer,
        postprocessing=not arguments.no_postprocessing,
    )
    print(summary(import_model(reader, request, arguments.out, arguments.half)))
    print(f"{arguments.out} written; prove it with: python -m tools.convert verify {arguments.out}")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from tools.convert.bundles import rebuild_onnx

    rebuild_onnx(arguments.bundle)
    print(f"{arguments.bundle / 'network.onnx'} and network-fp16.onnx written")
    return 0


def _set_shortcuts(arguments: argparse.Namespace) -> int:
    from tools.convert.bundles import set_shortcuts

    wanted = (arguments.crop, arguments.margin, arguments.least, arguments.skip_air, arguments.locator)
    found = set_shortcuts(arguments.bundle, *wanted)
    print(f"{arguments.bundle / 'plan.json'}: {found}")
    return 0


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a part, above 0 to 1")
    return share


def _set_largest_components(arguments: argparse.Namespace) -> int:
    from tools.convert.components import set_largest_components
    from tools.evaluate.cases import pair_cases

    found = pair_cases(arguments.predictions, arguments.references).pairs
    pairs = [pair for pair in found if pair.prediction.exists()]
    kept_if_taken = "largest" if arguments.smallest_share == 1 else "large"
    print(f"| organ | cases | DSC, all components | DSC, {kept_if_taken} | cases that lose | kept |")
    print("|---|---:|---:|---:|---:|---|")
    for choice in set_largest_components(arguments.bundle, pairs, arguments.smallest_share):
        kept = kept_if_taken if choice.taken else "all"
        scores = f"{choice.before:.4f} | {choice.after:.4f} | {choice.losers}"
        print(f"| {choice.organ} | {choice.cases} | {scores} | {kept} |")
    return 0


def _add_twin(arguments: argparse.Namespace) -> int:
    from tools.convert.twins import add_twin

    add_twin(arguments.bundle, arguments.source)
    print(
        f"{arguments.bundle / 'twin'} written; use it with: python -m app --bundle {arguments.bundle} --uncertainty ..."
    )
    return 0


def _write_hashes(arguments: argparse.Namespace) -> int:
    from tools.convert.bundles import renew_hashes

    renew_hashes(arguments.bundle)
    print(f"{arguments.bundle / HASH_FILE} written")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from tools.convert import verify

    if arguments.random < 0:
        raise UsageError(f"--random {arguments.random}: expected 0 or more")
    bundle = load_bundle(arguments.bundle)
    patches = verify.random_patches(bundle.plan, arguments.random)
    patches["phantom"] = verify.phantom_patch(bundle.plan)
    for scan in arguments.scan:
        patches[scan.name] = verify.real_patch(bundle.plan, scan)
    results = verify.compare_runtimes(bundle, patches)
    print(f"{'patch':<28} {'runtime':<12} {'difference':>11} {'agreement':>10}")
    for result in results:
        mark = "" if result.passed else "  beyond the limits"
        print(
            f"{result.patch:<28} {result.backend:<12} {result.relative_difference:>11.2e} "
            f"{result.agreement:>10.6f}{mark}"
        )
    print(f"compared with {verify.reference_name(bundle)}")
    print(
        f"limits: difference {verify.LARGEST_RELATIVE_DIFFERENCE:g} of the largest logit, "
        f"agreement {verify.SMALLEST_AGREEMENT:g} of the voxels"
    )
    if not arguments.scan:
        print("no real scan was among the patches; --scan FILE adds one")
    return 0 if all(result.passed for result in results) else 1


def _part(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a part of the patch, above 0 and up to 1")
    return value


_COMMANDS = {
    "onnx": _convert,
    "shortcuts": _set_shortcuts,
    "postprocessing": _set_largest_components,
    "twin": _add_twin,
    "hashes": _write_hashes,
    "verify": _verify,
}

if __name__ == "__main__":
    sys.exit(main())
