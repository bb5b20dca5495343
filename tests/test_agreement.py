"""Two networks in a bundle: how far they agree, what is said about it, and that the label map stays as it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from app.agreement import agreement_warning, organ_agreement
from app.backends import network_source
from app.bundle import load_bundle, write_hashes
from app.errors import BundleError, DeviceError
from app.memory import Fitter
from app.memory_need import predict_need
from app.memory_terms import ProcessMemory, ScanHeader
from app.options import Options
from app.plan import parse_plan
from app.sources import NetworkSource, NetworkSources
from app.volume import Geometry
from tests.conftest import run_app, tiny_plan, tissue, write_scan, write_tiny_bundle
from tools.convert.__main__ import main as convert

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def write_sibling(folder: Path, last_bias: float = -1.0, plan: dict[str, Any] | None = None) -> Path:
    """The tiny bundle with another bias for the third organ: with -1 it begins at 250 HU, above all tissue."""
    write_tiny_bundle(folder, plan)
    model = onnx.load(folder / "network.onnx")
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([0, 1, 1, last_bias], np.float32), "biases"))
    onnx.save(model, folder / "network.onnx")
    write_hashes(folder)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tiny bundle with a twin that takes the third organ for the second."""
    folder = write_tiny_bundle(tmp_path / "bundle")
    assert convert(["twin", str(folder), str(write_sibling(tmp_path / "sibling"))]) == 0
    return folder


def run_case(bundle: Path, tmp_path: Path, *options: object) -> tuple[int, bytes, dict[str, Any]]:
    """(exit code, label map's file, report) of a run on one scan."""
    scan = write_scan(tmp_path / "a.nii.gz", tissue())
    files = ("--input", scan, "--output", tmp_path / "labels.nii.gz", "--report", tmp_path / "report.json")
    code = run_app(*files, "--bundle", bundle, "--backend", "openvino", "--threads", 1, *options)
    return code, (tmp_path / "labels.nii.gz").read_bytes(), json.loads((tmp_path / "report.json").read_text())


def test_a_case_worked_by_hand() -> None:
    """First: 3 and 5 voxels, 2 in common. Second: 1 and 1, none in common. Third: in one only. Fourth: in neither."""
    one = np.array([[[1, 1, 1, 0, 0, 0, 2, 0, 3]]], dtype=np.uint8)
    other = np.array([[[0, 1, 1, 1, 1, 1, 0, 2, 0]]], dtype=np.uint8)
    labels = ("first", "second", "third", "fourth")
    assert organ_agreement(one, other, labels) == {"first": 0.5, "second": 0.0, "third": 0.0, "fourth": None}


def test_the_warning_names_the_worst_first_and_not_what_neither_found() -> None:
    found = {"liver": 0.97, "spleen": 0.7, "aorta": 0.65, "pancreas": 0.0, "stomach": None}
    warning = agreement_warning(found, 0.7)
    assert warning is not None
    assert "differ on pancreas (0.00), aorta (0.65): a DSC below 0.7" in warning
    assert agreement_warning({"liver": 0.7, "stomach": None}, 0.7) is None


def test_the_flag_reports_and_leaves_the_label_map_as_it_is(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tissue of 100 HU is the second organ for both, 200 HU the third for the network and the second for the twin."""
    code, plain, without = run_case(bundle, tmp_path)
    assert (code, without["cases"][0]["agreement"], without["cases"][0]["warnings"]) == (0, None, [])
    assert "twin" not in without["cases"][0]["seconds"]
    capsys.readouterr()
    code, with_twin, report = run_case(bundle, tmp_path, "--uncertainty")
    assert code == 0
    assert with_twin == plain
    (case,) = report["cases"]
    second, third = (np.count_nonzero(tissue() == hu) for hu in (100, 200))
    expected = {"first": 1.0, "second": 2 * second / (2 * second + third), "third": 0.0}
    assert case["agreement"] == pytest.approx(expected)
    assert case["seconds"]["twin"] > 0
    assert case["volumes_ml"] == without["cases"][0]["volumes_ml"]
    (warning,) = case["warnings"]
    assert "differ on third (0.00), second (0.6" in warning
    assert f"WARNING labels: {warning}" in capsys.readouterr().err


def test_the_plan_says_when_to_warn(tmp_path: Path) -> None:
    plan = {**tiny_plan(), "warn_below_agreement": 0.0}
    folder = write_tiny_bundle(tmp_path / "bundle", plan)
    assert convert(["twin", str(folder), str(write_sibling(tmp_path / "sibling", plan=plan))]) == 0
    _, _, report = run_case(folder, tmp_path, "--uncertainty")
    assert report["cases"][0]["agreement"]["third"] == 0.0
    assert report["cases"][0]["warnings"] == []
    with pytest.raises(BundleError, match=r"warn_below_agreement is 70\.0; expected a DSC, 0 to 1"):
        parse_plan(json.dumps({**tiny_plan(), "warn_below_agreement": 70}), "plan.json")


@pytest.mark.parametrize("options", [("--mode", "normal"), ("--spacing", "resample", "--crop", "body")])
def test_the_twin_takes_the_way_of_the_network(bundle: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    _, plain, _ = run_case(bundle, tmp_path, *options)
    _, with_twin, report = run_case(bundle, tmp_path, *options, "--uncertainty")
    assert with_twin == plain
    assert report["cases"][0]["agreement"]["first"] == 1.0


def test_a_bundle_without_twin_is_wrong_usage(tiny_bundle: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "a.nii.gz", tissue())
    files = ("--input", scan, "--output", tmp_path / "labels.nii.gz", "--report", tmp_path / "report.json")
    assert run_app(*files, "--bundle", tiny_bundle, "--uncertainty") == 2
    error = json.loads((tmp_path / "report.json").read_text())["error"]
    assert f"--uncertainty: {tiny_bundle} has no twin; expected a bundle with two networks" in error


# --- the bundle -------------------------------------------------------------------------------------------


def test_the_twin_is_hashed_through_its_own_hashes(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.twin is not None
    assert loaded.twin.folder == bundle / "twin"
    assert "twin/SHA256SUMS" in loaded.sha256
    content = bytearray((bundle / "twin" / "network.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "twin" / "network.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"twin/network\.onnx: SHA-256 .* was altered"):
        loaded.twin.read("network.onnx")
    write_hashes(bundle / "twin")
    with pytest.raises(BundleError, match=r"twin/SHA256SUMS: SHA-256 .* was altered"):
        load_bundle(bundle)


def test_a_twin_that_is_altered_ends_the_run_only_if_it_is_used(bundle: Path, tmp_path: Path) -> None:
    (bundle / "twin" / "network.onnx").write_bytes(b"no network")
    assert run_case(bundle, tmp_path)[0] == 0
    code, _, report = run_case(bundle, tmp_path, "--uncertainty")
    assert code == 4
    assert "twin/network.onnx: SHA-256" in report["error"]


def test_another_plan_is_no_twin(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**tiny_plan(), "name": "other", "intensity": {"clip_hu": [-200, 300], "subtract_hu": 0, "divide_hu": 100}}
    before = (bundle / "SHA256SUMS").read_text()
    assert convert(["twin", str(bundle), str(write_sibling(tmp_path / "other", plan=other))]) == 4
    assert "plan.json: intensity not as in" in capsys.readouterr().err
    assert (bundle / "SHA256SUMS").read_text() == before
    assert load_bundle(bundle).twin is not None
    shutil.copyfile(tmp_path / "other" / "plan.json", bundle / "twin" / "plan.json")
    write_hashes(bundle / "twin")
    write_hashes(bundle)
    with pytest.raises(BundleError, match=r"twin/plan\.json: intensity not as in .*/bundle/plan\.json"):
        load_bundle(bundle)


def test_name_and_shortcuts_may_differ(bundle: Path, tmp_path: Path) -> None:
    plan = {**tiny_plan(), "name": "sibling", "shortcuts": {"crop": "body", "margin_mm": 5}}
    assert convert(["twin", str(bundle), str(write_sibling(tmp_path / "named", plan=plan))]) == 0
    loaded = load_bundle(bundle)
    assert loaded.twin is not None
    assert (loaded.twin.plan.name, loaded.twin.plan.shortcuts.crop) == ("sibling", "none")
    assert convert(["shortcuts", str(bundle), "--crop", "body"]) == 0
    assert load_bundle(bundle).twin is not None


def test_a_network_is_not_its_own_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert convert(["twin", str(folder), str(copy)]) == 2
    assert "the same network as in" in capsys.readouterr().err


# --- memory -----------------------------------------------------------------------------------------------


def header() -> ScanHeader:
    geometry = Geometry((200, 300, 400), (3.0, 2.0, 1.0), IDENTITY, (0.0, 0.0, 0.0))
    return ScanHeader(geometry, voxel_bytes=2, reading_bytes=2)


def test_a_twin_keeps_the_image_and_then_the_first_label_map() -> None:
    """24e6 voxels at the plan's spacing: the image is 96e6 bytes, a label map 24e6."""
    plan, process = parse_plan(json.dumps(tiny_plan()), "plan.json"), ProcessMemory(1000, 1000, 3000)
    one, two = (predict_need(header(), plan, Options("fastest", "off"), process, twin=twin) for twin in (False, True))
    more = {stage: two.bytes_by_stage[stage] - size for stage, size in one.bytes_by_stage.items()}
    assert more == {
        "read": 0, "locate": 0, "preprocess": 0, "network": 24_000_000, "restore": 96_000_000,
        "postprocess": 96_000_000, "write": 0,
    }  # fmt: skip


def test_two_networks_share_the_libraries(default_bundle: Path) -> None:
    """OpenVINO's libraries are 85 MiB; what the default network adds, 11 MiB in half precision, counts for each."""
    source = network_source(load_bundle(default_bundle), "openvino", "cpu", "fp32")
    sources = NetworkSources(source, twin=source)
    one, two = sources.memory(), sources.memory(with_twin=True)
    file_bytes = (default_bundle / "network.onnx").stat().st_size
    assert one.libraries_bytes == two.libraries_bytes == 85 * 2**20
    assert two.weights_bytes - one.weights_bytes == pytest.approx(2.17 * file_bytes, rel=1e-6)
    assert two.running_bytes == 2 * one.running_bytes


def test_what_fits_alone_but_not_with_a_twin_is_segmented_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process is taken to hold nothing, so that the need does not depend on the tests before."""
    monkeypatch.setattr("app.memory.resident_bytes", lambda: 0)
    monkeypatch.setattr("app.memory_need._CHUNKS_BYTES", 0)
    monkeypatch.setattr("app.memory._RESERVE", 0)
    code, plain, alone = run_case(bundle, tmp_path)
    need_mib = alone["cases"][0]["memory"]["need_mib"]
    _, _, together = run_case(bundle, tmp_path, "--uncertainty")
    assert together["cases"][0]["memory"]["need_mib"] > need_mib
    code, found, report = run_case(bundle, tmp_path, "--uncertainty", "--max-memory", int((need_mib + 0.01) * 2**20))
    assert (code, found) == (0, plain)
    (case,) = report["cases"]
    assert case["agreement"] is None
    assert case["memory"] == {**alone["cases"][0]["memory"], "limit_mib": case["memory"]["limit_mib"],
                              "limit_source": "--max-memory"}  # fmt: skip
    assert case["warnings"] == ["no uncertainty: there is not enough memory for a second network"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), "not enough memory"), (DeviceError("no room"), "no room"), (RuntimeError("bad"), "bad")],
)
def test_a_twin_that_cannot_be_loaded_costs_no_label_map(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    from app import backends

    create, loaded = backends.create_predictor, []

    def first_only(*arguments: Any) -> Any:
        loaded.append(arguments)
        if len(loaded) > 1:
            raise error
        return create(*arguments)

    monkeypatch.setattr(backends, "create_predictor", first_only)
    code, found, report = run_case(bundle, tmp_path, "--uncertainty")
    assert (code, len(loaded)) == (0, 2)
    loaded.clear()
    assert run_case(bundle, tmp_path)[1] == found
    assert report["cases"][0]["agreement"] is None
    assert f"the second network cannot be loaded ({reason})" in report["warnings"][0]


def test_the_twin_never_makes_the_grid_coarser() -> None:
    """A plan that may be coarsened is not, for the sake of a second network."""
    spacing = {**tiny_plan()["spacing"], "enforce": "resample"}
    plan = parse_plan(json.dumps({**tiny_plan(), "spacing": spacing}), "plan.json")
    source = NetworkSource(plan, lambda: pytest.fail("nothing is loaded to see whether it fits"))
    options = Options("fastest", "resample", max_memory_bytes=100 * 2**20)
    fitter = Fitter(NetworkSources(source, twin=source), options)
    assert fitter.fit_with_twin(header()) is None
