"""What several test modules share: real scans, the two bundles, synthetic scans, the command line.

The tiny network is one 1x1x1 convolution whose logits 0, n + 1, 2n + 1, 3n cross at n = -1, 0 and 1; with its plan's
n = (HU - 50) / 100 that is -50, 50 and 150 HU. ``TISSUE_HU`` lies between, exact in bfloat16 too. The right label
map of a scan on the plan's spacing is therefore ``tiny_label_map``.
"""

import gzip
import json
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from app.__main__ import main
from app.bundle import write_hashes
from app.plan import Plan, PostprocessingPlan, ShortcutPlan, parse_plan
from app.volume import Float32Array, Geometry, LabelArray, Vector
from tools.hostile.bundles import write_tissue_network

ROOT = Path(__file__).resolve().parent.parent
TISSUE_HU = (-100, 0, 100, 200)
TINY_LABELS = ("first", "second", "third")
TINY_PATCH = (16, 16, 16)
TINY_SPACING_ZYX_MM = (3.0, 2.0, 1.0)

# Of the default bundle as it is shipped, in fp32, with the labels of four scans.
_SHORTCUTS = json.loads((ROOT / "tools" / "shortcut_check.json").read_text(encoding="utf-8"))
EXPECTED_MEAN_DSC = {
    row["scan"]: row["mean_dsc"]
    for row in _SHORTCUTS["rows"]
    if row["shortcut"] == "organs" and row["scan"] in ("ct_001", "ct_002", "ct_005", "ct_006")
}

Affine = npt.NDArray[np.float64]


@dataclass
class Oracle:
    """A predictor made of a function of the tile, so that the right answer is known."""

    function: Callable[[Float32Array], Float32Array]
    backend: str = "oracle"
    device: str = "cpu"
    precision: str = "fp32"
    calls: int = 0

    def predict(self, tile: Float32Array) -> Float32Array:
        self.calls += 1
        return self.function(tile)


def default_plan() -> Plan:
    """The default bundle's without its shortcuts and post-processing, which belong to its locator and its labels."""
    plan = parse_plan((ROOT / "weights" / "default" / "plan.json").read_text(), "plan.json")
    return replace(plan, shortcuts=ShortcutPlan(), postprocessing=PostprocessingPlan())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = ROOT.parent / "shared" / "data" / "abdomen_ct"
    if not folder.is_dir():
        pytest.skip("../shared is not here")
    return folder


@pytest.fixture(scope="session")
def default_bundle() -> Path:
    return ROOT / "weights" / "default"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests: copy it before changing it."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(autouse=True)
def _no_log_handler_afterwards() -> Iterator[None]:
    """Takes back the log handler and level that ``main`` sets: they belong to one test."""
    yield
    logging.getLogger("app").handlers.clear()
    logging.getLogger("app").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _same_signal_handlers_afterwards() -> Iterator[None]:
    """Command lines that clean up take SIGTERM for themselves."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def tiny_plan() -> dict[str, Any]:
    """``plan.json`` of the tiny bundle. Its U-Net is never built: that part of a plan is for the torch backend."""
    return {
        "schema_version": 1,
        "name": "tiny",
        "labels": list(TINY_LABELS),
        "orientation": "LPS",
        "mode": "fastest",
        "network": {"features_per_stage": [2, 4], "strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 3]] * 2},
        "intensity": {"clip_hu": [-200, 300], "subtract_hu": 50, "divide_hu": 100},
        "spacing": {
            "target_zyx_mm": list(TINY_SPACING_ZYX_MM),
            "enforce": "off",
            "largest_grid_zyx": [400, 320, 320],
            "header": {
                "in_plane_mm": 0.75,
                "slice_mm": 0.5,
                "few_slices": 150,
                "many_slices": 600,
                "smallest_factor": 0.8,
            },
        },
        "interpolation": {"image_order": 1},
        "sliding_window": {
            "patch_size": list(TINY_PATCH),
            "tile_step_size": 0.5,
            "gaussian_sigma_scale": 0.125,
            "average": "logits",
            "pad_hu": -1024,
            "mirror_axes": [],
        },
        "postprocessing": {},
    }


def write_tiny_bundle(folder: Path, plan: dict[str, Any] | None = None, patch: tuple[int, ...] = TINY_PATCH) -> Path:
    """The tiny bundle in ``folder``; ``plan`` and the ONNX's ``patch`` can be made not to fit."""
    folder.mkdir(parents=True)
    write_tissue_network(folder / "network.onnx", patch)
    (folder / "plan.json").write_text(json.dumps(tiny_plan() if plan is None else plan))
    (folder / "MODEL_CARD.md").write_text("Four thresholds for tests.\n")
    write_hashes(folder)
    return folder


def tiny_label_map(hu_zyx: npt.NDArray[Any]) -> LabelArray:
    """What the tiny bundle makes of a scan: one label up at each of -50, 50 and 150 HU."""
    label_map: LabelArray = np.digitize(hu_zyx, (-50, 50, 150)).astype(np.uint8)
    return label_map


def tissue(shape_zyx: tuple[int, ...] = (10, 11, 12), seed: int = 0) -> npt.NDArray[np.int16]:
    """int16 (z, y, x) HU, voxel by voxel one of ``TISSUE_HU``."""
    return np.random.default_rng(seed).choice(np.array(TISSUE_HU, dtype=np.int16), shape_zyx)


def write_scan(
    path: Path,
    voxels_zyx: npt.NDArray[Any],
    spacing_zyx_mm: Vector = TINY_SPACING_ZYX_MM,
    affine: Affine | None = None,
    version: int = 1,
    endianness: Literal["<", ">"] = "<",
    edit: Callable[[Any], object] = lambda header: None,
) -> Path:
    """Writes a NIfTI file with nibabel's header and, unlike nibabel, whatever ``edit`` makes of it.

    Args:
        path: ends in .nii, or .nii.gz to be compressed.
        voxels_zyx: (z, y, x) or (t, z, y, x), stored as they are.
        spacing_zyx_mm: of a scan stored the usual way (LPS), if there is no ``affine``.
        affine: 4x4 from voxel (i, j, k) to RAS mm; both sform and qform get it.
        version: NIfTI-1 or -2.
        endianness: of header and voxels.
        edit: changes nibabel's header before it is written.
    """
    z, y, x = spacing_zyx_mm
    affine = np.diag([-x, -y, z, 1.0]) if affine is None else affine
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=endianness)
    header.set_data_dtype(voxels_zyx.dtype)
    header.set_data_shape(voxels_zyx.shape[::-1])
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = header.template_dtype.itemsize + 4
    edit(header)
    content = header.binaryblock + bytes(4) + voxels_zyx.astype(voxels_zyx.dtype.newbyteorder(endianness)).tobytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def rotated_affine(degrees: float = 20.0, zooms_xyz: Vector = (1.0, 2.0, 3.0), shear: float = 0.0) -> Affine:
    """4x4 to RAS: an LPS grid turned about the axis (1, 2, 3), away from the origin; k leans to i by ``shear``."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14.0)
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues
    lean = np.array([[1.0, 0.0, shear], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ lean @ np.diag([-zooms_xyz[0], -zooms_xyz[1], zooms_xyz[2]])
    affine[:3, 3] = (30.0, -20.0, 10.0)
    return affine


def ras_affine(geometry: Geometry) -> Affine:
    """4x4 from voxel (i, j, k) to RAS mm of the app's geometry, whose world is (S, P, L) and whose axes are k, j, i."""
    affine = np.eye(4)
    edges = np.asarray(geometry.direction) * np.asarray(geometry.spacing_zyx_mm)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ edges[::-1, ::-1]
    affine[:3, 3] = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(geometry.origin_zyx_mm)[::-1]
    return affine


def run_app(*arguments: object) -> int:
    """The exit code of the command line, run in this process."""
    return main([str(argument) for argument in arguments])


def read_label_map(path: Path) -> LabelArray:
    """uint8 (z, y, x) as nibabel reads it."""
    return np.asarray(nib.load(path).dataobj).transpose()


def mean_dsc(prediction: npt.NDArray[Any], shared_data: Path, case: str) -> float:
    """DSC = 2 |P and R| / (|P| + |R|), mean over the organs that the reference shows; ``prediction`` is (x, y, z)."""
    reference = np.asarray(nib.load(shared_data / "labels" / f"{case}.nii.gz").dataobj)
    scores = []
    for label in range(1, 14):
        found, shown = prediction == label, reference == label
        if shown.any():
            both = np.count_nonzero(found & shown)
            scores.append(2 * both / (np.count_nonzero(found) + np.count_nonzero(shown)))
    return float(np.mean(scores))
