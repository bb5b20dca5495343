"""Command line: ``python -m tools.degrade SCAN OUT.nii.gz --kind KIND``."""

import argparse
import sys
from pathlib import Path

from app.cases import prepare_output_folder
from app.errors import EXIT_OK, CaseError, UsageError
from app.volume_io import write_label_map
from tools.ct import read_ct, write_ct
from tools.degrade.arguments import add_seed
from tools.degrade.effects import NotApplicable
from tools.degrade.kinds import KINDS, degrade
from tools.evaluate.flare import CORRECTED
from tools.exit_codes import exit_code_of


def main(argv: list[str] | None = None) -> int:
    """Degrades one scan; returns the exit code."""
    kinds = "\n".join(f"  {name:13} {kind.text}" for name, kind in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.degrade",
        description="Makes a scan worse, and takes its label map along.",
        epilog=f"kinds:\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scan", type=Path, metavar="SCAN", help="whatever the app reads")
    parser.add_argument("out", type=Path, metavar="OUT.nii.gz", help="the degraded scan, turned to LPS")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--labels", type=Path, metavar="FILE", help="its label map; chest needs it")
    parser.add_argument("--labels-out", type=Path, metavar="OUT.nii.gz", help="the label map of the degraded scan")
    add_seed(parser)
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: _run(arguments), "interrupted; files of this run are whole or missing")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.labels_out and not arguments.labels:
        raise UsageError("--labels-out: expected --labels, the label map to take along")
    files = [arguments.scan, arguments.labels, arguments.out, arguments.labels_out]
    places = [path.resolve() for path in files if path]
    if len(set(places)) < len(places):
        raise UsageError(f"{', '.join(str(path) for path in files if path)}: expected different files")
    for path in filter(None, (arguments.out, arguments.labels_out)):
        if not path.name.endswith(".nii.gz"):
            raise UsageError(f"{path}: expected a name that ends in .nii.gz")
        prepare_output_folder(path.parent)
    ct = read_ct(arguments.scan, arguments.labels, tuple(organ.name for organ in CORRECTED.organs))
    try:
        found = degrade(ct, arguments.kind, arguments.seed)
    except NotApplicable as error:
        raise CaseError(f"{arguments.scan}: {error}") from error
    write_ct(arguments.out, found.voxels_hu, found.geometry)
    if arguments.labels_out and found.label_map is not None:
        write_label_map(arguments.labels_out, found.label_map, found.volume)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
