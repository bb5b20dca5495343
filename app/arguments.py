"""The options of ``python -m app``: argparse and nothing else, so that --help and usage errors cost no imports."""

import argparse
from pathlib import Path

from app import __version__
from app.errors import UsageError
from app.machine_limits import DEFAULT_MAX_MEMORY, parse_bytes

_DESCRIPTION = "Segments 13 abdominal organs in CT scans: one NIfTI label map per scan, on the scan's own voxel grid."
_EPILOG = """\
inputs: *.nii.gz, *.nii, *.mha, *.mhd, *.nrrd, *.nhdr, and folders with one DICOM series each.
X_0000.nii.gz gives X.nii.gz; a name without _0000 is kept; others give NAME.nii.gz.

examples:
  python -m app --input-dir scans --output-dir labels
  python -m app --input scan.nii.gz --output labels.nii.gz --mode normal --report report.json

the paper's two protocols, with a bundle B that was trained with mirroring:
  python -m app --bundle B --spacing off --mode normal --mirror --input-dir scans --output-dir labels    (validation)
  python -m app --bundle B --spacing header --mode fastest --input-dir scans --output-dir labels         (test)

exit codes:
  0  all cases segmented, or there already with --skip-existing
  1  some case failed; the others were segmented
  2  wrong usage
  3  no input found, or the output cannot be written
  4  bundle or device unusable
  130 interrupted (Ctrl-C, SIGTERM); whole label maps only
"""
_DEFAULT_BUNDLE = Path(__file__).resolve().parent.parent / "weights" / "default"


def build_parser() -> argparse.ArgumentParser:
    """The command line; ``--help`` explains all of it."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_files(parser)
    _add_network(parser)
    _add_pipeline(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log every stage, also on a terminal")
    parser.add_argument("-q", "--quiet", action="store_true", help="log errors only, show no progress bar")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def check_usage(arguments: argparse.Namespace) -> None:
    """Raises UsageError unless there is one complete pair of input and output."""
    folders = (arguments.input_dir, arguments.output_dir)
    files = (arguments.input, arguments.output)
    given = [all(pair) for pair in (folders, files)]
    if sum(given) != 1 or any(any(pair) and not all(pair) for pair in (folders, files)):
        raise UsageError("expected --input-dir with --output-dir, or --input with --output; see --help")


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files (a pair of folders, or a pair of files)")
    files.add_argument("--input-dir", type=Path, metavar="DIR", help="folder with scans")
    files.add_argument("--output-dir", type=Path, metavar="DIR", help="folder for label maps; made if it is not there")
    files.add_argument("--input", type=Path, metavar="FILE", help="one scan, or a folder with one DICOM series")
    files.add_argument("--output", type=Path, metavar="FILE", help="its label map (.nii.gz or .nii)")
    files.add_argument("--report", type=Path, metavar="FILE.json", help="write stage times, warnings and organ volumes")
    files.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave cases alone whose label map is there; what --report said of them before is kept in it",
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument(
        "--bundle", type=Path, metavar="DIR", default=_DEFAULT_BUNDLE, help="trained network (default: weights/default)"
    )
    network.add_argument(
        "--backend",
        choices=("auto", "openvino", "onnxruntime", "torch"),
        default="auto",
        help="what runs it; auto: OpenVINO on a CPU, ONNX Runtime on CUDA",
    )
    network.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: CUDA if it is there and works, else the CPU",
    )
    network.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 where that is faster on the CPU (AMX, or AVX-512 BF16 of AMD's), else fp32; on CUDA fp16 "
        "where the bundle has a network for it",
    )
    network.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help="CPU threads of the network (default: the processors that affinity and the container's quota allow)",
    )


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    pipeline = parser.add_argument_group("pipeline (all other constants are in the bundle's plan.json)")
    pipeline.add_argument(
        "--mode",
        choices=("fastest", "normal"),
        help="fastest: arg max, then nearest neighbour; normal: arg max of interpolated logits (default: the plan's)",
    )
    pipeline.add_argument(
        "--mirror", action="store_true", help="average over mirrored passes along the plan's mirror_axes"
    )
    pipeline.add_argument(
        "--spacing",
        choices=("bundle", "off", "header", "resample"),
        default="bundle",
        help="enforced spacing. bundle: what the plan says (default); off: none; header: the paper's override by "
        "slice count; resample: true spacing, bounded grid",
    )
    pipeline.add_argument(
        "--crop",
        choices=("bundle", "none", "body", "organs"),
        default="bundle",
        help="segment the whole scan (none), the body, or the box of what the bundle's locator finds "
        "(default: bundle, what the plan says)",
    )
    pipeline.add_argument(
        "--uncertainty",
        action="store_true",
        help="run the bundle's second network too: how far both agree on each organ goes into the report, little "
        "agreement is a warning. The label map stays the same; takes twice the time",
    )
    pipeline.add_argument(
        "--max-memory",
        type=_size,
        metavar="SIZE",
        default=DEFAULT_MAX_MEMORY,
        help="memory that this process may take, such as 28g, 1500m or bytes; less if the container or the machine has "
        "less; a twentieth of it stays in reserve. A case that needs more gets sums along another axis, then in half "
        "precision, then a coarser spacing if the bundle allows it, or fails at once (default: %(default)s)",
    )


def _size(text: str) -> int:
    """Bytes of ``--max-memory``."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _count(text: str) -> int:
    """A number of threads."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)
