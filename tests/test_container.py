"""The cpu image, built and run as FLARE runs it: on real scans, and without anything that it must not need."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import EXPECTED_MEAN_DSC, mean_dsc
from tests.real_docker import BASE_IMAGE
from tools.bench.scans import prepare_scan
from tools.hostile.memory_limits import container
from tools.hostile.workshop import make_workshop
from tools.submit.__main__ import main as submit

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGE = "3dcps:test"
LARGEST_ADDITION_BYTES = 750_000_000
# What livers, spleens and kidneys of adults measure, enlarged and partly seen ones among them.
PLAUSIBLE_ML = {1: (800, 2500), 2: (50, 400), 3: (80, 600), 13: (50, 400)}
IMPORTS = "import app.__main__, app.runs, app.backends.openvino_cpu as backend; backend.import_core()"
INSPECTION = """
import importlib.metadata, json, pathlib, sys
print(json.dumps({
    "packages": [found.name for found in importlib.metadata.distributions(path=[sys.argv[1]])],
    "files": [str(path) for path in pathlib.Path().rglob("*") if path.is_file() and path.suffix != ".pyc"],
}))
"""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def image() -> str:
    """The cpu image's name, after building it."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    engine = _docker("info", "--format", "{{.ServerVersion}}")
    if engine.returncode:
        pytest.skip(f"no Docker engine: {(engine.stderr.strip() or 'docker info failed').splitlines()[-1]}")
    build = _docker("build", "--network", "host", "--target", "cpu", "--tag", IMAGE, str(REPOSITORY))
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]
    return IMAGE


def test_image_adds_at_most_750_mb_to_its_base(image: str) -> None:
    assert _inspect(image)["Size"] - _inspect(BASE_IMAGE)["Size"] <= LARGEST_ADDITION_BYTES


def test_image_configuration(image: str) -> None:
    config = _inspect(image)["Config"]
    assert not config["Entrypoint"]
    assert not config["User"]
    assert config["WorkingDir"] == "/workspace"
    assert not any(variable.startswith("CUDA_VISIBLE_DEVICES") for variable in config["Env"])


def test_image_holds_what_it_runs_and_nothing_else(image: str) -> None:
    requirements = (REPOSITORY / "app" / "requirements-cpu.txt").read_text()
    inspection = ["python", "-c", INSPECTION, "/opt/venv/lib/python3.11/site-packages"]
    run = _docker("run", "--rm", "--network", "none", image, *inspection)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    packages = {name.lower().replace("_", "-") for name in found["packages"]}
    assert packages == set(re.findall(r"^([a-z0-9-]+)==", requirements, flags=re.MULTILINE))
    left_out = ("network.safetensors", "network-fp16.onnx")
    bundle = [path for path in (REPOSITORY / "weights" / "default").rglob("*") if path.is_file()]
    kept = {path.relative_to(REPOSITORY).as_posix() for path in bundle if path.name not in left_out}
    others = {path for path in found["files"] if not path.startswith("app/")}
    assert others == {"predict.sh", *kept}
    assert {"weights/default/plan.json", "weights/default/network.onnx"} <= others


def test_no_start_compiles_python(image: str) -> None:
    """Neither the app nor a package nor the standard library: ``python -v`` tells where each module's code is from."""
    run = _docker("run", "--rm", "--network", "none", "--read-only", image, "python", "-v", "-c", IMPORTS)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "# code object from '/workspace/app/__pycache__/pipeline.cpython-311.pyc'" in run.stderr
    assert re.findall(r"^# code object from (.*\.py)$", run.stderr, flags=re.MULTILINE) == []


@pytest.mark.parametrize("case", sorted(EXPECTED_MEAN_DSC))
def test_flares_command_on_a_real_scan(image: str, case: str, shared_data: Path, tmp_path: Path) -> None:
    """Same bytes as on the host, the scan's own grid, the expected DSC, organs of human size, and no other trace."""
    scan = shared_data / "images" / f"{case}_0000.nii.gz"
    inputs, outputs = _folders(tmp_path)
    shutil.copy(scan, inputs)
    before = _hashes(inputs)
    run = _run_flare(image, inputs, outputs, ["--network", "none", "-m", "8g"])
    assert run.returncode == 0, run.stderr
    assert _hashes(inputs) == before
    assert [path.name for path in outputs.iterdir()] == [f"{case}.nii.gz"]
    label_map = _check_grid(outputs / f"{case}.nii.gz", scan)
    assert mean_dsc(label_map, shared_data, case) == pytest.approx(EXPECTED_MEAN_DSC[case], abs=0.01)
    voxel_ml = float(np.prod(nib.load(scan).header.get_zooms())) / 1000
    for label, (least, most) in PLAUSIBLE_ML.items():
        assert least < np.count_nonzero(label_map == label) * voxel_ml < most, f"label {label}"
    assert _hashes(outputs) == _hashes(_predict_on_host(inputs, tmp_path / "host"))


@pytest.mark.parametrize(("name", "memory"), [("ct_007_slices_621", "2g"), ("ct_007_tiled_1200", "4g")])
def test_long_scans_in_little_memory(image: str, shared_data: Path, tmp_path: Path, name: str, memory: str) -> None:
    """As planned, without swap: nothing is coarser, and the kernel has nobody to kill."""
    inputs, outputs = _folders(tmp_path)
    reports = tmp_path / "reports"
    reports.mkdir()
    scan = prepare_scan(name, shared_data / "images", tmp_path / "made")
    shutil.copy(scan, inputs)
    limits = ["--network", "none", "-m", memory, "--memory-swap", memory, "-v", f"{reports}:/reports"]
    run = _run_flare(image, inputs, outputs, limits, "sh predict.sh --report /reports/report.json")
    assert run.returncode == 0, run.stderr
    (case,) = json.loads((reports / "report.json").read_text())["cases"]
    assert case["memory"]["strategy"] == "as planned"
    assert "memory.limit_in_bytes" in case["memory"]["limit_source"] or "memory.max" in case["memory"]["limit_source"]
    assert nib.load(outputs / f"{name}.nii.gz").shape == nib.load(scan).shape


@pytest.mark.parametrize("user", [0, 1000, 2_000_000_000])
def test_hardened_container(image: str, tmp_path: Path, user: int) -> None:
    """Nothing can be written but outputs, not even /tmp; no capabilities; root, and users without a name or HOME."""
    inputs, outputs = _folders(tmp_path)
    _write_synthetic_scan(inputs / "body_0000.nii.gz")
    inputs.chmod(0o555)
    outputs.chmod(0o777)
    flags = "--network none -m 8g --read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 256"
    run = _run_flare(image, inputs, outputs, [*flags.split(), "--user", f"{user}:{user}"], "env -u HOME sh predict.sh")
    assert run.returncode == 0, run.stderr
    assert [path.name for path in outputs.iterdir()] == ["body.nii.gz"]
    assert (outputs / "body.nii.gz").stat().st_uid == user
    _check_grid(outputs / "body.nii.gz", inputs / "body_0000.nii.gz")


def test_exit_code_comes_through(image: str, tmp_path: Path) -> None:
    """No scan: code 3, and nothing written."""
    inputs, outputs = _folders(tmp_path)
    run = _run_flare(image, inputs, outputs, ["--network", "none"])
    assert run.returncode == 3, run.stderr
    assert list(outputs.iterdir()) == []


def test_submission(image: str, tmp_path: Path) -> None:
    """Every check passes, and the archive is an image with the team's tag."""
    inputs, _ = _folders(tmp_path)
    _write_synthetic_scan(inputs / "body_0000.nii.gz")
    team, out = f"submission{os.getpid()}", tmp_path / "submission"
    assert _docker("image", "tag", image, f"{team}:latest").returncode == 0
    try:
        code = submit(["--image", f"{team}:latest", "--inputs", str(inputs), "--out", str(out)])
    finally:
        _docker("image", "rm", f"{team}:latest")
    assert code == 0, (out / "submission.md").read_text()
    with tarfile.open(out / f"{team}.tar.gz") as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        assert json.load(manifest)[0]["RepoTags"] == [f"{team}:latest"]
    (out / f"{team}.tar.gz").unlink()  # pytest keeps folders, and this is large


def test_a_scan_too_large_for_the_container_is_refused_and_not_killed(image: str, tmp_path: Path) -> None:
    """682 MB of voxels with ``-m 700m``: exit code 1 and a message, not the kernel's 137."""
    assert container(make_workshop(tmp_path / "shop", image=image)).failures == ()


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``docker`` with the builder that every engine has."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
    return subprocess.run(["docker", *arguments], env=environment, capture_output=True, encoding="utf-8", check=False)


def _run_flare(
    image: str, inputs: Path, outputs: Path, flags: Sequence[str], command: str = "sh predict.sh"
) -> subprocess.CompletedProcess[str]:
    """FLARE's own command line, plus ``flags``."""
    name = f"3dcps-test-{os.getpid()}"
    mounts = ["-v", f"{inputs}/:/workspace/inputs/", "-v", f"{outputs}/:/workspace/outputs/"]
    return _docker("container", "run", "--name", name, "--rm", *flags, *mounts, image, "/bin/bash", "-c", command)


def _predict_on_host(inputs: Path, outputs: Path) -> Path:
    """The folder with what ``sh predict.sh`` makes without a container.

    Settings of OpenBLAS do not enter a container: another kernel (OPENBLAS_CORETYPE) rounds otherwise, which moves a
    few voxels in bf16.
    """
    command = ["sh", str(REPOSITORY / "predict.sh"), "--input-dir", str(inputs), "--output-dir", str(outputs)]
    own = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    subprocess.run(command, env={**own, "PYTHON": sys.executable}, capture_output=True, check=True)
    return outputs


def _inspect(image: str) -> Any:
    return json.loads(_docker("image", "inspect", image).stdout)[0]


def _folders(parent: Path) -> tuple[Path, Path]:
    inputs, outputs = parent / "inputs", parent / "outputs"
    inputs.mkdir()
    outputs.mkdir()
    return inputs, outputs


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _check_grid(label_path: Path, scan_path: Path) -> Any:
    """The label map's voxels, as nibabel reads them; it stands on the scan's grid and holds organ numbers only."""
    found, scan = nib.load(label_path), nib.load(scan_path)
    assert found.shape == scan.shape
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(found.affine, scan.affine)
    for name in ("sform_code", "qform_code", "xyzt_units"):
        assert found.header[name] == scan.header[name]
    voxels = np.asarray(found.dataobj)
    assert voxels.dtype == np.uint8
    assert voxels.max() <= 13
    return voxels


def _write_synthetic_scan(path: Path) -> None:
    """A body of 240 x 192 x 120 mm: an ellipsoid of 40 HU in air, a bright one within it where the liver is."""
    shape_xyz, spacing_xyz_mm = (80, 64, 24), (3.0, 3.0, 5.0)
    place_mm = (np.indices(shape_xyz).T + 0.5 - np.divide(shape_xyz, 2)) * spacing_xyz_mm
    voxels = np.full(shape_xyz[::-1], -1000, dtype=np.int16)
    for centre_mm, radii_mm, value_hu in (((0, 0, 0), (105, 80, 90), 40), ((-40, 0, 10), (45, 50, 45), 110)):
        voxels[(((place_mm - centre_mm) / radii_mm) ** 2).sum(axis=-1) < 1] = value_hu
    nib.save(nib.Nifti1Image(voxels.T, np.diag([-3.0, -3.0, 5.0, 1.0])), path)
