"""Equal input, equal bytes: run after run, alone or among others, in a container; nearly equal across threads."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from app.volume import LabelArray
from tools.hostile.containers import run_container
from tools.hostile.processes import check_end, run_app
from tools.hostile.workshop import hashes
from tools.phantom import write_phantoms

RUNS = 20
LEAST_DSC = 0.999
SMALLEST_ML = 1.0
_SCANS, _SHAPE_ZYX, _SPACING_ZYX_MM = 3, (48, 64, 64), (6.0, 6.0, 6.0)


def check_determinism(runs: int, bundle: Path, scan: Path | None, image: str) -> dict[str, Any]:
    """Runs a bundle many times over the same scan, and says what differed.

    Args:
        runs: cold processes with the scan alone.
        bundle: any.
        scan: a real one; None for a phantom.
        image: a container image; empty for none.

    Raises:
        AppError: the app failed; of the kind that it failed with.
    """
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        inputs = folder / "phantoms" / "images"
        list(write_phantoms(folder / "phantoms", _SCANS, 1, None, False, _SHAPE_ZYX, _SPACING_ZYX_MM))
        if scan is not None:
            shutil.copy(scan, inputs / "phantom_000_0000.nii.gz")  # takes the place of the first
        alone = folder / "alone"
        alone.mkdir()
        shutil.copy(inputs / "phantom_000_0000.nii.gz", alone)
        return _check(runs, bundle, folder, alone, inputs, image)


def _check(runs: int, bundle: Path, folder: Path, alone: Path, inputs: Path, image: str) -> dict[str, Any]:
    seen = [_digest(_run(alone, folder / f"run_{index}", bundle, 1)) for index in range(runs)]
    among = _digest(_run(inputs, folder / "among", bundle, 1))
    failures = []
    if len(set(seen)) != 1:
        failures.append(f"{len(set(seen))} different label maps in {runs} runs")
    if among != seen[0]:
        failures.append("in a folder of three another label map than alone")
    contained = _in_container(alone, folder / "contained", bundle, image) if image else None
    if contained is not None and contained != seen[0]:
        failures.append("in the container another label map than outside of it")
    two = _run(alone, folder / "two", bundle, 2)
    scores = dict(organ_scores(folder / "run_0" / _NAME, two / _NAME))
    failures += [
        f"label {label}: DSC {dsc:.5f} between one thread and two" for label, dsc in scores.items() if dsc < LEAST_DSC
    ]
    return {
        "runs": runs,
        "bundle": bundle.name,
        "different": len(set(seen)),
        "in_folder_equal": among == seen[0],
        "in_container_equal": None if contained is None else contained == seen[0],
        "threads_equal": _digest(two) == seen[0],
        "dsc_across_threads": {str(label): dsc for label, dsc in scores.items()},
        "failures": failures,
    }


def organ_scores(first: Path, second: Path) -> Iterator[tuple[int, float]]:
    """(label, DSC between two label maps) of every organ that has more than 1 ml in the first."""
    image = nibabel.load(first)
    voxel_ml = float(np.prod(image.header.get_zooms())) / 1000
    one: LabelArray = np.asarray(image.dataobj)
    two: LabelArray = np.asarray(nibabel.load(second).dataobj)
    for label in map(int, np.unique(one)):
        volumes = [np.count_nonzero(found == label) for found in (one, two)]
        if label and volumes[0] * voxel_ml > SMALLEST_ML:
            yield label, 2 * np.count_nonzero((one == label) & (two == label)) / sum(volumes)


_NAME = "phantom_000.nii.gz"


def _run(inputs: Path, outputs: Path, bundle: Path, threads: int) -> Path:
    check_end(run_app(*_files(inputs, outputs), "--bundle", bundle, *_options(threads)), "the app")
    return outputs


def _files(inputs: Path, outputs: Path) -> tuple[object, ...]:
    return ("--input-dir", inputs, "--output-dir", outputs)


def _options(threads: int) -> tuple[str, ...]:
    return ("--device", "cpu", "--backend", "openvino", "--precision", "fp32", "--threads", str(threads))


def _in_container(inputs: Path, outputs: Path, bundle: Path, image: str) -> str:
    outputs.mkdir()
    mounts = (f"{inputs}:/in:ro", f"{outputs}:/out", f"{bundle}:/bundle:ro")
    options = (*_files(Path("/in"), Path("/out")), "--bundle", "/bundle", *_options(1))
    check_end(run_container(image, mounts, options), f"the app in a container of {image}")
    return _digest(outputs)


def _digest(outputs: Path) -> str:
    return hashes(outputs)[_NAME]
